"""A table of passes that all take as long, in place of what a package would tell."""

from typing import Any

from batchsim.latency.base import Domain, LatencyInfo
from batchsim.latency.operators import OperatorTable
from batchsim.latency.passes import PassTableLatency


def flat_passes(details: dict[str, Any] | None = None) -> PassTableLatency:
    """10 ms for each of its four tables."""
    beside_attention = OperatorTable(((1, 2**15),), (0.01, 0.01))
    return PassTableLatency(
        beside_attention,
        beside_attention,
        OperatorTable(((1, 1024), (1, 2**15), (0, 2**17)), (0.01,) * 8),
        OperatorTable(((1, 1024), (1, 2**17)), (0.01,) * 4),
        Domain(),
        LatencyInfo("made up", "derived", details or {}),
    )
