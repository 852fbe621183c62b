"""`mlx-stack logs`: what the daemon and the model servers wrote."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

import click
import msgspec

from mesh import answers, config, logfiles, render
from mesh.cli_base import Command, as_json, client, home, warn
from mesh.home import Home
from mesh.log import utc

EVENTS_MAX = 100_000  # all that are kept


@click.command(cls=Command)
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is added.")
@click.option("--tail", "lines", type=click.IntRange(0), default=50, show_default=True, help="Last lines to print.")
@click.option("--rotate", is_flag=True, help="Pack the logs now (all, or NAME) and begin new ones.")
@click.option("--all", "everything", is_flag=True, help="All that is kept, packed logs first.")
@click.option("--events", is_flag=True, help="What happened to this node and its models (of NAME only, if given).")
@as_json
def logs(
    *, name: str | None, follow: bool, lines: int, rotate: bool, everything: bool, events: bool, as_json: bool
) -> None:
    """List the logs, or print the log NAME: `daemon`, or a model's. With --events: loads, evictions, failures."""
    if events:
        if rotate:
            raise click.UsageError("--rotate packs logs; events have a bound of their own")
        _events(EVENTS_MAX if everything else lines, name or "", follow=follow, as_json=as_json)
        return
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


def _events(count: int, model: str, *, follow: bool, as_json: bool) -> None:
    """From the daemon; when none runs, from its file: that is when one asks why it ended."""
    place = home()
    if follow:
        with suppress(KeyboardInterrupt):
            for event in client().follow_events(count, model):
                if as_json:
                    render.show_json(event, lines=True)
                else:
                    click.echo(render.event_line(event))
        return
    found = client().events(count, model) if place.running() is not None else _stored(place, count, model)
    if as_json:
        render.show_json({"events": found})
    elif found:
        render.show([render.event_line(event) for event in found])
    else:
        click.echo(f"No events of '{model}'." if model else "No events yet.")


def _stored(place: Home, count: int, model: str) -> Sequence[answers.Event]:
    if not place.events.exists():
        return ()
    from mesh.event_store import EventStore  # noqa: PLC0415 - SQLite, for this alone

    store = EventStore(place.events, warn)
    try:
        return msgspec.convert(store.last(count, model), list[answers.Event])
    finally:
        store.close()


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
