"""A group of commands that knows what a mistyped one was meant to be."""

from __future__ import annotations

import click

from batchsim.errors import nearest


class Group(click.Group):
    """Suggests the nearest command, as all our messages about names do."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which ones come near."""
        name = args[0]
        if self.get_command(ctx, name) is None and not (name.startswith("-") or ctx.resilient_parsing):
            ctx.fail(f"no command {name!r}; {nearest(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)
