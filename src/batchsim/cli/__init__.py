"""The command line: each command is a few lines over a library call.

Help, completion and a mistyped command answer at once: at their top the modules here import click, what
can be chosen by name, and each other; a command imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import gc
import io
import sys
from typing import Any

import click

from batchsim._version import __version__
from batchsim.cli import (
    fits,
    hardware,
    interchange,
    policies,
    profiles,
    recommend,
    report,
    runs,
    sizing,
    studies,
    traces,
)
from batchsim.cli.evidence import fidelity, operators, roofline, validation
from batchsim.cli.groups import Group
from batchsim.errors import BatchsimError, ConfigError, TraceError

_MOST_SHOWN = 800  # characters of a sentence


# To load what a command needs makes many objects and hardly any garbage: looking for it after every 700
# takes a fiftieth of a short run.
gc.set_threshold(50_000)


class _Commands(Group):
    """Turns our errors into one sentence on stderr: exit 2 for bad input, 1 for a run that failed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for given in args:
            if any("\ud800" <= char <= "\udfff" for char in given):
                ctx.fail(f"{ascii(given)[:80]} holds bytes that are no UTF-8 text; give it another name")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):  # of a terminal that knows fewer letters than we use
            sys.stdout.reconfigure(errors="replace")
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            raise _as_setting(error) from None
        except BatchsimError as error:
            text = str(error)
            if len(text) > _MOST_SHOWN:  # a long value stands in its middle
                text = f"{text[: _MOST_SHOWN // 2]}...{text[-_MOST_SHOWN // 2 :]}"
            click.echo(f"Error: {text}", err=True)
            ctx.exit(2 if isinstance(error, ConfigError | TraceError) else 1)
        except (MemoryError, RecursionError) as error:
            short = "memory" if isinstance(error, MemoryError) else "depth"
            click.echo(f"Error: there is not enough {short} for this; give less at once", err=True)
            ctx.exit(1)
        except OSError as error:
            if error.errno == errno.EPIPE:  # who read our output has seen enough; click ends in silence
                raise
            click.echo(f"Error: {error.filename or 'output'}: {error.strerror or error}", err=True)
            ctx.exit(1)


def _as_setting(error: click.NoSuchOption) -> click.UsageError:
    """Say how a setting is given that has no option of its own: ``--gpu h100`` of a run."""
    from batchsim.config.load import settings_named

    assert error.ctx is not None, "the options of a command are read in its context"
    keys = settings_named(error.option_name.lstrip("-").replace("-", "_"))
    if not keys or all("--set" not in param.opts for param in error.ctx.command.params):
        return error
    told = " or ".join(f"--set {key}=VALUE" for key in keys)
    return click.UsageError(f"no option {error.option_name}; write {told}", error.ctx)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="batchsim")
def main() -> None:
    """Simulate an LLM serving cluster under a batching policy, over a trace.

    How long its GPUs take is derived from data sheets, or fitted to measurements (batchsim fit).
    """


main.add_command(runs.run)
main.add_command(runs.compare_)
main.add_command(policies.policies)
main.add_command(hardware.hardware)
main.add_command(sizing.capacity)
main.add_command(recommend.recommend)
main.add_command(studies.sweep)
main.add_command(studies.figures)
main.add_command(studies.query)
main.add_command(report.report)
main.add_command(fits.fit)
main.add_command(profiles.import_profile)
main.add_command(validation.validate)
main.add_command(validation.pace)
main.add_command(fidelity.fidelity)
main.add_command(fidelity.fidelity_report)
main.add_command(roofline.roofline_error)
main.add_command(operators.fidelity_hardware)
main.add_command(traces.trace)
main.add_command(interchange.export)
main.add_command(interchange.import_results)
