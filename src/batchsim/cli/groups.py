"""A group of commands that knows what a mistyped one was meant to be, and what was given."""

from __future__ import annotations

import shlex

import click

from batchsim.errors import nearest

_GIVEN = "batchsim.given"


def given_command() -> str:
    """The command that runs, as it was given."""
    return str(click.get_current_context().meta[_GIVEN])


class Group(click.Group):
    """Suggests the nearest command, as all our messages about names do."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep what was given, for `given_command`."""
        ctx.meta.setdefault(_GIVEN, shlex.join(["batchsim", *args]))
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which ones come near."""
        name = args[0]
        if self.get_command(ctx, name) is None and not (name.startswith("-") or ctx.resilient_parsing):
            ctx.fail(f"no command {name!r}; {nearest(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List each command with its whole first sentence, which click would cut to what a line holds."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, one.get_short_help_str(limit=200)) for name, one in commands if one is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
