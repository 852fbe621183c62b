"""`mlx-stack logs`: what the daemon and the model servers wrote."""

from __future__ import annotations

import time
from contextlib import suppress

import click

from mesh import config, logfiles, render
from mesh.cli_base import Command, as_json, home
from mesh.log import utc


@click.command(cls=Command)
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is added.")
@click.option("--tail", "lines", type=click.IntRange(0), default=50, show_default=True, help="Last lines to print.")
@click.option("--rotate", is_flag=True, help="Pack the logs now (all, or NAME) and begin new ones.")
@click.option("--all", "everything", is_flag=True, help="All that is kept, packed logs first.")
@as_json
def logs(*, name: str | None, follow: bool, lines: int, rotate: bool, everything: bool, as_json: bool) -> None:
    """List the logs, or print the log NAME: `daemon`, or a model's."""
    place = home()
    found = logfiles.find(place.logs)
    log = next((log for log in found if log.name == name), None)
    if name is not None and log is None:
        raise click.ClickException(f"no log '{name}' in {place.logs}: there is {_names(found)}")
    if rotate:
        _rotate([log] if log else found, config.load(place).log_max_files)
    elif log is None:
        if follow or everything:
            raise click.UsageError(f"say which log: {_names(found)}")
        _list(found, as_json)
    elif as_json:
        raise click.UsageError("--json lists the logs; the daemon's own lines are JSON already")
    else:
        for line in logfiles.whole(log) if everything else logfiles.tail(log.path, lines):
            click.echo(line)
        if follow:
            with suppress(KeyboardInterrupt):
                for line in logfiles.follow(log.path):
                    click.echo(line)


def _names(found: list[logfiles.LogFile]) -> str:
    return ", ".join(log.name for log in found) or "none yet"


def _list(found: list[logfiles.LogFile], as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "name": log.name,
                "path": str(log.path),
                "size_bytes": log.size_bytes,
                "changed_at": utc(log.changed_at),
                "archives": [str(archive) for archive in log.archives],
            }
            for log in found
        ]
        render.show_json({"logs": rows})
        return
    now = time.time()
    table = tuple(
        (
            log.name,
            render.size(log.size_bytes),
            f"{render.duration(max(0, now - log.changed_at))} ago",
            str(len(log.archives)),
        )
        for log in found
    )
    render.show([render.Table(("LOG", "SIZE>", "CHANGED>", "PACKED>"), table)] if found else ["No logs yet."])


def _rotate(found: list[logfiles.LogFile], keep: int) -> None:
    for log in found:
        try:
            done = logfiles.rotate(log.path, keep=keep)
        except OSError as error:
            raise click.ClickException(f"{log.path} cannot be rotated: {error.strerror}") from error
        click.echo(f"{log.name}: {'rotated' if done else 'empty, left as it is'}")
