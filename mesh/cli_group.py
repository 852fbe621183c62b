"""Groups of commands that know what a mistyped name was meant to be, and load a command's code when it is called."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import click


def _short(error: click.UsageError) -> click.UsageError:
    """The same mistake in one line instead of click's four. The help that a bare group prints stays whole."""
    if error.ctx is None or isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        return error
    return click.UsageError(f"{error.format_message()} (`{error.ctx.command_path} --help` says more)")


class Group(click.Group):
    """A group that answers an unknown command with the closest names, and wrong usage with one line and exit code 2."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        wanted, known = args[0], self.list_commands(ctx)
        if wanted not in known and not wanted.startswith("-"):
            near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}?" if near else f"there is {', '.join(known)}"
            raise click.UsageError(f"no command '{wanted}': {hint}")
        return super().resolve_command(ctx, args)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise _short(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _short(error) from error


class LateGroup(Group):
    """A group whose commands are imported when called: `--help` and shell completion stay fast.

    `late` maps a command's name to (module, attribute, one line of help).
    """

    def __init__(self, *args: Any, late: Mapping[str, tuple[str, str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._late = late

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._late, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._late:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = self._late[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = self.list_commands(ctx)
        room = formatter.width - max(map(len, names)) - 6
        lines = {name: help_line for name, (_, _, help_line) in self._late.items()}
        lines |= {name: command.get_short_help_str(room) for name, command in self.commands.items()}
        rows = [(name, lines[name]) for name in names]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
