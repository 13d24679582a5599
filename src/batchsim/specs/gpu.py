"""What a GPU is to the simulator: the numbers of its data sheet."""

from __future__ import annotations

from dataclasses import dataclass

from batchsim.specs.fields import check_fields
from batchsim.specs.model import Arithmetic


@dataclass(frozen=True, slots=True)
class GPUSpec:
    """A GPU as its data sheet has it.

    Attributes
    ----------
    flop_per_s
        Peak of dense (not sparse) bf16 products.
    memory_bytes_per_s
        Peak memory bandwidth.
    link_bytes_per_s
        Peak rate at which it sends to the other GPUs of its machine, one direction; ``None``: not known.
    link_latency_s
        Seconds of an all-reduce between these GPUs besides its transfers.
    fp8_flop_per_s, fp4_flop_per_s
        Peaks of dense fp8 and fp4 products; ``None``: it has none, or not known.
    power_watts
        Most that it draws for long (TDP), memory included; ``None``: not known, or its maker's to choose.
    source
        Where the numbers come from, and which of them nobody has confirmed.
    """

    name: str
    memory_bytes: int
    flop_per_s: float
    memory_bytes_per_s: float
    source: str = ""
    link_bytes_per_s: float | None = None
    link_latency_s: float | None = None
    fp8_flop_per_s: float | None = None
    fp4_flop_per_s: float | None = None
    power_watts: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def rate(self, arithmetic: Arithmetic) -> float:
        """Peak of such products; where it has none, that of the next wider ones, to which engines go."""
        fp8 = self.fp8_flop_per_s or self.flop_per_s
        return {"bf16": self.flop_per_s, "fp8": fp8, "fp4": self.fp4_flop_per_s or fp8}[arithmetic]
