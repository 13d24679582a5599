"""Whose requests are: labels of tenants and classes, read from a trace or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.config import TenantConfig
from batchsim.errors import ConfigError
from batchsim.workload.columns import refuse
from batchsim.workload.request import Workload
from batchsim.workload.sessions import session_numbers

#: Columns of names: whose a request is, and which limits hold for it.
TENANT, SLO_CLASS = LABELS = ("tenant", "slo_class")


def labels_of(table: pd.DataFrame, where: str) -> dict[str, NDArray[np.object_]]:
    """The columns of names that a table has, as text, empty where there is none.

    `TraceError` with the row for what is neither text nor a whole number.
    """
    return {name: _texts(table[name], where) for name in LABELS if name in table}


def _texts(column: pd.Series, where: str) -> NDArray[np.object_]:
    codes, values = pd.factorize(column)
    is_name = [isinstance(one, str | int | np.integer) and not isinstance(one, bool) for one in values]
    bad = ~np.array([*is_name, True], dtype=bool)[codes]  # -1, of what is missing, is the last
    if bad.any():
        refuse(column, int(np.argmax(bad)), where, "a name is needed: text, or a whole number")
    texts: NDArray[np.object_] = np.array([*(str(value).strip() for value in values), ""], dtype=object)
    return texts[codes]


def assign_tenants(workload: Workload, tenants: Sequence[TenantConfig], rng: np.random.Generator) -> Workload:
    """Share requests out over tenants at random, the turns of a session together.

    Raises
    ------
    ConfigError
        If the workload says already what is to be assigned, or two tenants have one name.
    """
    if len({one.name for one in tenants}) < len(tenants):
        raise ConfigError("workload.tenants: two tenants have one name; each needs a name of its own")
    given: dict[str, list[Any]] = {
        TENANT: [one.name for one in tenants],
        SLO_CLASS: [one.slo_class for one in tenants],
        "priority": [one.priority for one in tenants],
    }
    given = {name: values for name, values in given.items() if any(value is not None for value in values)}
    for name in given:
        if name in workload.extra:
            raise ConfigError(
                f"workload.tenants says the {name} of requests, but {workload.source.name} has a column of "
                "that name; leave one of them out"
            )
    shares = np.array([one.share for one in tenants])
    drawn, of_sessions = rng.choice(len(tenants), size=(2, len(workload)), p=shares / shares.sum())
    sessions = session_numbers(workload)
    which = np.where(sessions >= 0, of_sessions[sessions], drawn)
    columns = {}
    for name, values in given.items():
        neutral, dtype = (0, np.int64) if name == "priority" else ("", object)
        filled = [neutral if value is None else value for value in values]
        columns[name] = np.array(filled, dtype=dtype)[which]
    return replace(workload, extra={**workload.extra, **columns})
