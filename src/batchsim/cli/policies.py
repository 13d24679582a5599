"""``batchsim policies``: the named combinations."""

from __future__ import annotations

import click


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Also say where each departs from its paper.")
def policies(verbose: bool) -> None:
    """List the presets: their combination, paper and departures."""
    from batchsim.policies.presets import PRESETS, Policy, names_of

    page = click.HelpFormatter(max_width=_WIDEST)
    page.write_text("Policies: queueing x sizing x batching (x routing)")
    for title, is_iteration_level in _WORLDS.items():
        with page.section(title):
            for name in names_of(is_iteration_level=is_iteration_level):
                preset = PRESETS[name]
                answers = Policy(name, preset.queueing, preset.sizing, preset.batching, preset.routing)
                page.write_text(click.style(name, bold=True))
                with page.indentation():
                    page.write_text(answers.describe())
                    page.write_text(preset.paper)
                    if verbose and preset.departs:
                        page.write_text(f"departs: {preset.departs}")
    click.echo(page.getvalue(), nl=False)


_WIDEST = 120  # longer lines are hard to read
_WORLDS = {"Batches that run to completion": False, "Batches that change at every iteration": True}
