"""The command line: each command is a few lines over a library call."""

from __future__ import annotations

from typing import Any

import click

from batchsim.errors import BatchsimError, ConfigError, TraceError
from batchsim_calibration.check_command import check
from batchsim_calibration.measure_command import measure
from batchsim_calibration.replay_command import replay
from batchsim_calibration.replay_vllm_command import replay_vllm
from batchsim_calibration.vllm_command import vllm


class _Commands(click.Group):
    """Turns our errors into one sentence on stderr: exit 2 for bad input, 1 for a run that failed."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BatchsimError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2 if isinstance(error, ConfigError | TraceError) else 1)
        except OSError as error:
            click.echo(f"Error: {error.filename or 'output'}: {error.strerror or error}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="batchsim-calibration", prog_name="batchsim-calibrate")
def main() -> None:
    """Measure how long a real model takes on this machine, and replay traces on it."""


main.add_command(measure)
main.add_command(check)
main.add_command(replay)
main.add_command(vllm)
main.add_command(replay_vllm)
