"""Profiles as LLMServingSim wrote them first: ``layers.csv`` and ``attention.csv`` in a ``tp<N>`` folder.

They differ from those that `operator_profile` reads in names and units, and in what was not measured:
attention of a prompt from its first token on, told here by least squares over the chunks that were, and of
chunks beside decodes, here the sum of both alone. Decodes were measured on KV that they shared: 128 of 2,048
tokens on an A6000 read ten terabytes a second. Where the rate of the memory is known, they take at least the
time to read their own. Such tables become those of the newer form; experts are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from batchsim.errors import ConfigError, TraceError
from batchsim.files.tables import CsvTable
from batchsim.latency.base import Floats
from batchsim.latency.profiles.tables import ProfileTables
from batchsim.latency.roofline import ACTIVATION_BYTES

_COLUMNS = ("layer_name", "input", "latency(ns)")
_ATTENTION = (
    *("batch_size", "prefill_chunk_size", "kv_cache_size"),
    *("n_embd", "n_q_head", "n_kv_head"),
)
_PREFILL_MS, _DECODE_MS = "time_stats.attn_prefill.median", "time_stats.attn_decode.median"

#: Points of the grids; each as far as it was measured.
_CHUNKS = (32, 64, 128, 256, 512, 1024)
_BEFORE = (0, 256, 1024)
_SEQS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 168, 256)
_CONTEXTS = (32, 64, 128, 256, 512, 1024, 1344)


@dataclass(slots=True)
class FirstTables(ProfileTables):
    """The tables of such a folder, in the newer form.

    Attributes
    ----------
    memory_bytes_per_s
        Rate at which a GPU reads its memory; ``None``: not known.
    """

    memory_bytes_per_s: float | None = None

    def find(self, name: str, folder: Path | None = None) -> Path | None:
        """Return the path of a file, if it is there."""
        return None if name in ("skew", "moe") else ProfileTables.find(self, name, folder)

    def read(self, name: str, *columns: str, folder: Path | None = None) -> pd.DataFrame:
        """Read counts, and times as ``seconds``."""
        if name == "attention":
            return self._attention()
        if name == "moe":
            raise ConfigError(f"{self.folder}: experts of such a profile are not read")
        layers = self.read_raw("layers", *_COLUMNS)
        is_head = layers["layer_name"] == "lm_head"
        # `attn` is attention of fresh tokens, which attention.csv has, too.
        rows = layers[is_head if name == "per_sequence" else ~is_head & (layers["layer_name"] != "attn")]
        axis = columns[-1]
        frame = rows.rename(columns={"layer_name": "layer", "input": axis})
        frame["seconds"] = frame["latency(ns)"] * 1e-9
        return frame.groupby(["layer", axis])["seconds"].mean().reset_index()

    def _attention(self) -> pd.DataFrame:
        table = self.table("attention", *_ATTENTION, "is_prefill", _PREFILL_MS, _DECODE_MS)
        is_prefill = table.truths("is_prefill")
        counts = pd.DataFrame({name: table.counts(name, least=0) for name in _ATTENTION})
        if not is_prefill.any():
            raise TraceError(f"{table.path}: no row of it is_prefill; attention of prompts is needed")
        prefill_ms = table.where(is_prefill).times(_PREFILL_MS, 1e-3)
        prefill_s = _prefill(counts[is_prefill], np.asarray(prefill_ms * 1e-3, dtype=np.float64))
        decodes = counts[~is_prefill].assign(ms=table.where(~is_prefill).times(_DECODE_MS, 1e-3))
        times = decodes.groupby(["batch_size", "kv_cache_size"])["ms"].median() * 1e-3
        read_s = self._read_s(table)
        decode_s = {
            (seqs, context): max(times[seqs, context], seqs * context * read_s)
            for seqs, context in product(_SEQS, _CONTEXTS)
            if (seqs, context) in times.index
        }
        if len(decode_s) < len(_SEQS) * len(_CONTEXTS):
            raise TraceError(f"{self.find('attention')}: lacks decodes of a grid of {_SEQS} by {_CONTEXTS}")
        rows = [(chunk, before, 0, 0, time_s) for (chunk, before), time_s in prefill_s.items()]
        rows += [(0, 0, seqs, context, time_s) for (seqs, context), time_s in decode_s.items()]
        rows += [
            (*chunk, *decode, one_s + other_s)
            for (chunk, one_s), (decode, other_s) in product(prefill_s.items(), decode_s.items())
        ]
        self.notices.append("attention of chunks beside decodes was not profiled: both alone are added up")
        names = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "seconds")
        return pd.DataFrame(rows, columns=list(names))

    def _read_s(self, table: CsvTable) -> float:
        """Seconds to read keys and values of a token in one layer."""
        if self.memory_bytes_per_s is None:
            return 0.0
        width, heads, kv_heads = (
            int(table.counts(name).iloc[0]) for name in ("n_embd", "n_q_head", "n_kv_head")
        )
        return 2 * kv_heads * (width // heads) * ACTIVATION_BYTES / self.memory_bytes_per_s


def _prefill(chunks: pd.DataFrame, times_s: Floats) -> dict[tuple[int, int], float]:
    """Tell attention of chunks at the grid by least squares of what it is made of."""

    def terms(chunk: np.ndarray, before: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones(len(chunk)), chunk, before, chunk * before, chunk**2])

    size, before = (
        chunks[name].to_numpy(dtype=np.float64) for name in ("prefill_chunk_size", "kv_cache_size")
    )
    values, *_ = np.linalg.lstsq(terms(size, before) / times_s[:, None], np.ones(len(times_s)), rcond=None)
    places = list(product(_CHUNKS, _BEFORE))
    told_s = terms(*np.array(places, dtype=np.float64).T) @ values
    least_s = times_s.min() / 10  # whatever the fit says
    return {place: max(time_s, least_s) for place, time_s in zip(places, told_s.tolist(), strict=True)}
