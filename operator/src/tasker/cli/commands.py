"""Commands that other distributions bring: found by their entry points, imported only when they are used or listed."""

from __future__ import annotations

from importlib.metadata import entry_points

import click

from tasker.errors import ConfigurationError

GROUP = "tasker.commands"
"""The group of entry points: a name, and the click command behind it."""

KNOWN = {"dev": ("tasker-devcluster", "Run a development cluster on this machine (not installed).")}
"""Commands of this project that are listed even without their distribution: which one has them, and what they do."""


class CommandGroup(click.Group):
    """A group with the commands of installed distributions beside its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *KNOWN, *entry_points(group=GROUP).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            return found
        for entry in entry_points(group=GROUP, name=cmd_name):
            command: click.Command = entry.load()
            return command
        return _not_installed(cmd_name) if cmd_name in KNOWN else None


def _not_installed(name: str) -> click.Command:
    """Stands for a command whose distribution is not installed; says which one to install, whatever its arguments."""
    distribution, help_text = KNOWN[name]

    @click.command(name, help=help_text, add_help_option=False, context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        raise ConfigurationError(f"`tasker {name}` is not installed: pip install {distribution}")

    return command
