"""``batchsim policies``: the named combinations."""

from __future__ import annotations

import click

from batchsim.cli.output import echo_table
from batchsim.policies.presets import PRESETS, Policy


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Also say where each departs from its paper.")
def policies(verbose: bool) -> None:
    """List the presets: their combination, paper and departures."""
    columns = ("preset", "combination", "world", "paper", *(("departs",) if verbose else ()))
    rows = [
        (
            name,
            Policy(name, preset.queueing, preset.sizing, preset.batching, preset.routing).describe(),
            "iteration" if preset.is_iteration_level else "batch",
            preset.paper,
            *((preset.departs or "-",) if verbose else ()),
        )
        for name, preset in PRESETS.items()
    ]
    echo_table("Policies: queueing x sizing x batching (x routing)", columns, rows)
