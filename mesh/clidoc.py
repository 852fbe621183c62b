"""docs/cli.md, written from the commands themselves: `python -m mesh.clidoc > docs/cli.md`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import click

from mesh.cli import root

HEAD = """# Commands

Written by `python -m mesh.clidoc > docs/cli.md` from the commands themselves; a test keeps it fresh.

`mlx-stack` and `mlx-stack-mesh` are the same command: the second is for machines where the older mlx-stack owns the
first name. Exit code 0: done. 1: failed, and one or two lines on stderr say what, why and what to do. 2: not
understood. Everything that prints data takes `--json`; then a failure prints nothing on stdout. On a terminal tables
are drawn, elsewhere columns are aligned with spaces.
"""


def document() -> str:
    """The whole page."""
    return HEAD + "".join(_sections(root, click.Context(root, info_name="mlx-stack")))


def _sections(command: click.Command, ctx: click.Context) -> Iterator[str]:
    yield f"\n## {ctx.command_path}\n\n{_text(command.help)}\n\n{_usage(command, ctx)}"
    params = [param for param in command.get_params(ctx) if "--help" not in param.opts]
    options = [_option(param) for param in params if isinstance(param, click.Option)]
    if options:
        yield "\n| Option | Meaning |\n|---|---|\n" + "".join(options)
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            inner = command.get_command(ctx, name)
            assert inner is not None
            yield from _sections(inner, click.Context(inner, info_name=name, parent=ctx))


def _usage(command: click.Command, ctx: click.Context) -> str:
    return f"    {ctx.command_path} {' '.join(command.collect_usage_pieces(ctx))}\n"


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len, reverse=True))
    value = "" if option.is_flag else f" {option.metavar or 'N'}"
    default = f" (default {option.default})" if option.show_default else ""
    return f"| {names}{value} | {option.help}{default} |\n"


def _text(text: str | None) -> str:
    """A help text as a paragraph: click's line breaks are the terminal's affair."""
    return "\n\n".join(re.sub(r"\s*\n\s*", " ", part.strip()) for part in (text or "").split("\n\n"))


if __name__ == "__main__":
    sys.stdout.write(document())
