"""The command line: each command is a few lines over a library call.

Help, completion and a mistyped command answer at once: at their top the modules here import click, what
can be chosen by name, and each other; a command imports what it needs when it runs.
"""

from __future__ import annotations

from typing import Any

import click

from batchsim._version import __version__
from batchsim.cli import (
    fidelity,
    fits,
    policies,
    profiles,
    roofline,
    runs,
    sizing,
    studies,
    traces,
    validation,
)
from batchsim.cli.groups import Group
from batchsim.cli.output import printable
from batchsim.errors import BatchsimError, ConfigError, TraceError


class _Commands(Group):
    """Turns our errors into one sentence on stderr: exit 2 for bad input, 1 for a run that failed."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BatchsimError as error:
            click.echo(f"Error: {printable(str(error))}", err=True)
            ctx.exit(2 if isinstance(error, ConfigError | TraceError) else 1)
        except OSError as error:
            click.echo(f"Error: {error.filename or 'output'}: {error.strerror or error}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="batchsim")
def main() -> None:
    """Simulate an LLM serving cluster under a batching policy, on a measured GPU, over a trace."""


main.add_command(runs.run)
main.add_command(runs.compare_)
main.add_command(policies.policies)
main.add_command(sizing.capacity)
main.add_command(studies.sweep)
main.add_command(studies.figures)
main.add_command(fits.fit)
main.add_command(profiles.import_profile)
main.add_command(validation.validate)
main.add_command(fidelity.fidelity)
main.add_command(fidelity.fidelity_report)
main.add_command(roofline.roofline_error)
main.add_command(traces.trace)
