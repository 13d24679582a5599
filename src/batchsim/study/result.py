"""What one simulated run gave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from batchsim.config import RunConfig
from batchsim.metrics.cluster.tenants import PLAIN_TARIFF, Tariff, tenant_table
from batchsim.metrics.cost import Expense
from batchsim.metrics.efficiency import Hardware
from batchsim.metrics.summary import summarise
from batchsim.metrics.system import Window
from batchsim.metrics.weighted import Floats
from batchsim.records import Records, arrays
from batchsim.results.sketches import sketch
from batchsim.results.store import CLUSTER_TABLES, ITERATION_TABLES, TABLES, save_run


@dataclass(frozen=True, slots=True, eq=False)
class SimulationResult:
    """What one run gave.

    Attributes
    ----------
    config
        As used, defaults filled in.
    summary
        Flat and JSON-ready: numbers of `metrics.summary.summarise`, and what they hold for (policy, predictor
        and its quality, latency model and its provenance, workload).
    records
        All that left the simulation; `requests`, `batches`, `controllers`, `iterations` and `preemptions` are
        its tables.
    manifest
        Configuration, versions, seed, hashes and provenance: what it takes to repeat the run.
    hardware
        What the replicas of an iteration-level run are, if they are alike.
    expenses
        What each replica costs and draws.
    tariff
        What counts as service to tenants.
    """

    config: RunConfig
    summary: Mapping[str, Any]
    records: Records
    manifest: Mapping[str, Any]
    hardware: Hardware | None = None
    expenses: Sequence[Expense] = ()
    tariff: Tariff = PLAIN_TARIFF

    @property
    def requests(self) -> pd.DataFrame:
        """One row per request: `records.REQUEST_COLUMNS`."""
        return self.records.requests

    @property
    def batches(self) -> pd.DataFrame:
        """One row per batch: `records.BATCH_COLUMNS`."""
        return self.records.batches

    @property
    def controllers(self) -> pd.DataFrame:
        """One row per decision of a controller: `records.CONTROLLER_COLUMNS`."""
        return self.records.controllers

    @property
    def iterations(self) -> pd.DataFrame:
        """One row per span of iterations: `records.ITERATION_COLUMNS`."""
        return self.records.iterations

    @property
    def preemptions(self) -> pd.DataFrame:
        """One row per preemption: `records.PREEMPTION_COLUMNS`."""
        return self.records.preemptions

    @property
    def transfers(self) -> pd.DataFrame:
        """One row per hand-over of KV: `records.TRANSFER_COLUMNS`."""
        return self.records.transfers

    @property
    def tenants(self) -> pd.DataFrame:
        """One row per tenant and per class, where the workload tells them apart: `records.TENANT_COLUMNS`."""
        summary = self.summary
        ends_s = (summary["window_start_s"], summary["window_end_s"])
        window = Window(*(math.nan if end_s is None else end_s for end_s in ends_s))
        return tenant_table(
            arrays(self.requests), self.config.slo, summary["num_warmup"], window, self.tariff
        )

    @property
    def decode_steps(self) -> pd.DataFrame:
        """One row per step of a sequence with drafts: `records.DECODE_STEP_COLUMNS`."""
        return self.records.decode_steps

    @property
    def replica_states(self) -> pd.DataFrame:
        """One row per time that a replica was on, off, or between: `records.REPLICA_STATE_COLUMNS`."""
        return self.records.replica_states

    @property
    def kv_copies(self) -> pd.DataFrame:
        """One row per copy of KV to or from a tier below a GPU: `records.KV_COPY_COLUMNS`."""
        return self.records.kv_copies

    @property
    def tables(self) -> Mapping[str, pd.DataFrame]:
        """The tables of the run's world, by name."""
        names = ITERATION_TABLES if self.records.is_iteration_level else TABLES
        more = {name: getattr(self, name) for name in CLUSTER_TABLES}
        filled = {name: frame for name, frame in more.items() if len(frame)}
        return {name: getattr(self, name) for name in names} | filled

    @property
    def sketches(self) -> Mapping[str, Floats]:
        """Distributions of its times, `results.sketches.sketch`."""
        return sketch(self.records, self.summary["num_warmup"])

    def with_warmup(self, num_requests: int) -> SimulationResult:
        """Summarise again with this many requests cut as warm-up."""
        if num_requests == self.summary["num_warmup"]:
            return replace(self, summary={**self.summary, "warmup_rule": num_requests})
        numbers = summarise(
            self.records, self.config.slo, num_requests, self.hardware, self.expenses, self.tariff
        )
        return replace(self, summary={**self.summary, **numbers})

    def save(
        self,
        directory: str | Path,
        *,
        overwrite: bool = False,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> Path:
        """Write the run directory, which appears whole or not at all; return its path.

        ``more`` is written as it is, texts by file name.
        """
        save_run(
            Path(directory),
            dict(self.manifest),
            dict(self.summary),
            self.tables,
            more=more,
            sketches=self.sketches,
            overwrite=overwrite,
        )
        return Path(directory)
