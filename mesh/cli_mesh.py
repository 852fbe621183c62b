"""`mlx-stack mesh`: many Macs as one. The group can be mounted in another Click root."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from mesh import config, render, render_routes
from mesh.cli_base import LateCommands, address, as_json, client, duration, home, warn
from mesh.client import MeshClientError
from mesh.config_keys import KEYS
from mesh.join_settings import JoinSettings
from mesh.settings import DRAIN_MAX_S

WATCH_EVERY_S = 1.0


LATE = {
    "drill": ("mesh.cli_drill", "drill_command", "Stop a worker, a node, the coordinator, and see what is lost."),
    "simulate": ("mesh.cli_simulate", "simulate", "What this mesh, or another, would do with recorded requests."),
}


@click.group(cls=LateCommands, late=LATE)
def mesh() -> None:
    """Many Macs as one: who is there, who coordinates, where requests ran."""


@mesh.command()
@click.option("--priority", type=click.IntRange(0, 1_000_000), help="The highest coordinates; 0: never this node.")
@click.option("--name", metavar="MESH", help="Which mesh; nodes of another name are not seen.")
@click.option("--invite", metavar="TOKEN", help="Join the mesh where `mlx-stack mesh invite` printed this.")
@as_json
def enable(priority: int | None, name: str | None, invite: str | None, as_json: bool) -> None:
    """Join the other Macs here, or begin a mesh.

    Now, and after each start of this node.
    """
    changes = {"mesh-enabled": True, "mesh-priority": priority, "mesh-name": name}
    if invite is not None and home().running() is None:
        raise click.ClickException("an invite is used at once, and mlx-stack is not running here: `mlx-stack up` first")
    _switch({key: value for key, value in changes.items() if value is not None}, as_json, invite)


@mesh.command()
@as_json
def disable(as_json: bool) -> None:
    """Leave the mesh and go on alone.

    What others sent is finished first, and goodbye is said.
    """
    _switch({"mesh-enabled": False}, as_json)


def _switch(changes: dict[str, object], as_json: bool, invite: str | None = None) -> None:
    place = home()
    enabled = changes["mesh-enabled"] is True
    if place.running() is None:
        config.set_values(place, changes)
        if as_json:
            render.show_json({"mesh": {"enabled": enabled}, "running": False})
        else:
            click.echo(f"The mesh is {'on' if enabled else 'off'}; it takes effect at the next `mlx-stack up`")
    else:
        priority, name = changes.get("mesh-priority"), changes.get("mesh-name")
        assert priority is None or isinstance(priority, int)
        assert name is None or isinstance(name, str)
        found = client().enable(priority=priority, name=name, invite=invite) if enabled else client().disable()
        if as_json:
            render.show_json(found)
        else:
            render.show(render.mesh_status(found))
    now = config.load(place)
    for key in KEYS:
        if key.name in changes and now.source(key) not in ("config.yaml", "default"):
            warn(f"{now.source(key)} is set in the environment and counts instead of config.yaml at the next start")


def _window_time(written: str) -> float:
    """An argument like "10m" that a window can be open: seconds."""
    for_s, longest_s = duration(written), JoinSettings().window_max_s
    if not 0 < for_s <= longest_s:
        raise click.BadParameter(f"{written!r}: must be more than 0 s and at most {longest_s / 3600:.0f}h")
    return for_s


@mesh.command()
@click.option("--watch", is_flag=True, help="Look again each second.")
@as_json
def status(watch: bool, as_json: bool) -> None:
    """Every node with its models, memory and queues."""
    daemon = client()
    with _until_interrupted():
        while True:
            found = daemon.mesh_status()
            if watch and sys.stdout.isatty():
                click.clear()
            if as_json:
                render.show_json(found, lines=watch)
            else:
                render.show(render.mesh_status(found))
            if not watch:
                return
            sys.stdout.flush()
            time.sleep(WATCH_EVERY_S)


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """Ctrl-C is how watching and following end: not a failure."""
    try:
        yield
    except KeyboardInterrupt:
        return


@mesh.command()
@click.option("--tailnet", is_flag=True, help="Look for further nodes among the machines of your tailnet.")
@as_json
def nodes(tailnet: bool, as_json: bool) -> None:
    """The nodes alone, one row each."""
    daemon = client()
    found, running = daemon.mesh_status(), daemon.tailnet() if tailnet else None
    if as_json:
        render.show_json(found.nodes if running is None else {"nodes": found.nodes, "tailnet": running})
    else:
        render.show([*render.nodes(found), *(render.tailnet(found, running) if running is not None else ())])


@mesh.command()
@click.argument("peer", type=address, metavar="HOST[:PORT]")
@click.option(
    "--invite", metavar="TOKEN", default="", help="Join its mesh: `mlx-stack mesh invite` there printed this."
)
@as_json
def add(peer: str, invite: str, as_json: bool) -> None:
    """Make a node known that mDNS cannot find.

    One on another subnet or a tailnet: the address you know it by, mac-mini-3.tailnet:4000.
    """
    found = client().add(peer, invite)
    if as_json:
        render.show_json(found)
    else:
        render.show(render.added(peer, found))


@mesh.command()
@click.argument("name")
@as_json
def remove(name: str, as_json: bool) -> None:
    """Put a node out of the mesh, everywhere and for good, by its name or id.

    Only `mlx-stack mesh accept` lets it back. One that waits is sent away.
    """
    gone = client().remove(name)
    if as_json:
        render.show_json({"removed": gone})
    else:
        click.echo(f"{gone} is out of the mesh; `mlx-stack mesh accept {gone}` lets it back")


@mesh.command("open")
@click.option("--for", "for_s", type=_window_time, metavar="T", help='Like "10m"; default: 30 minutes after each join.')
@as_json
def open_(for_s: float | None, as_json: bool) -> None:
    """Let new nodes join by themselves for a while."""
    found = client().open_window(for_s)
    if as_json:
        render.show_json(found)
    else:
        click.echo(f"New nodes on this network join by themselves for {render.duration(found['for_s'])}")


@mesh.command()
@as_json
def close(as_json: bool) -> None:
    """Let no new node join by itself any more.

    One that asks is shown as waiting, with what to type.
    """
    found = client().close_window()
    if as_json:
        render.show_json(found)
    else:
        click.echo("New nodes wait until they are accepted")


@mesh.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--check", metavar="NUMBER", default="", help="Only if this is its check number here.")
@as_json
def accept(names: tuple[str, ...], check: str, as_json: bool) -> None:
    """Let in a node that waits, or confirm one that joined by itself.

    Compare its check number with the one that `mlx-stack mesh status` shows there.
    """
    if check and len(names) > 1:
        raise click.UsageError("--check is of one node")
    daemon = client()
    found = [daemon.accept(name, check) for name in names]
    if as_json:
        render.show_json({"accepted": found})
    else:
        for one in found:
            click.echo(f"{one['name']} is {one['done']}")


@mesh.command()
@as_json
def invite(as_json: bool) -> None:
    """Print a token that lets one node in, once, within ten minutes."""
    found = client().invite()
    if as_json:
        render.show_json(found)
    else:
        click.echo(f"On the new node, within {render.duration(found['for_s'])}:\n\n    {found['command']}\n")
        click.echo(
            "or, where it is not on this network: `mlx-stack mesh add HOST --invite TOKEN` with this Mac's address"
        )


@mesh.command()
@click.option("--last", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many, newest first.")
@click.option("--why", "why_id", metavar="ID", help="All about one request: candidates, costs, attempts.")
@click.option("--follow", is_flag=True, help="Print each as it ends.")
@as_json
def routes(last: int, why_id: str | None, follow: bool, as_json: bool) -> None:
    """Where requests ran. ID may be the client's own, or the beginning of one."""
    if why_id is not None and follow:
        raise click.UsageError("--why and --follow exclude each other")
    if why_id is not None:
        _why(why_id, as_json)
    elif follow:
        with _until_interrupted():
            for route in client().follow():
                if as_json:
                    render.show_json(route, lines=True)
                else:
                    click.echo(render_routes.route_line(route))
                sys.stdout.flush()
    else:
        found = client().routes(last)
        if as_json:
            render.show_json(found)
        else:
            render.show(render_routes.routes(found))


def _why(route_id: str, as_json: bool) -> None:
    daemon = client()
    route = daemon.route(route_id)
    if as_json:
        render.show_json(route)
        return
    try:
        names = {node.id: node.name for node in daemon.mesh_status().nodes}
    except MeshClientError:
        names = {}  # the route itself matters more than its nodes' names
    render.show(render_routes.why(route, names))


def _drain_time(written: str) -> float:
    """An argument like "30m" that a drain can last: seconds."""
    for_s = duration(written)
    if not 0 < for_s <= DRAIN_MAX_S:
        raise click.BadParameter(f"{written!r}: must be more than 0 s and at most {DRAIN_MAX_S / 86400:.0f} days")
    return for_s


@mesh.command()
@click.argument("node")
@click.option("--for", "for_s", type=_drain_time, metavar="T", help='Until then, like "30m"; default: until undrain.')
@click.option("--now", is_flag=True, help="Break off what it runs: it goes on elsewhere, where there is another copy.")
@as_json
def drain(node: str, for_s: float | None, now: bool, as_json: bool) -> None:
    """Give NODE no new work; what it runs goes on to its end."""
    _print_drain(client().drain(node, for_s, now=now), as_json)


@mesh.command()
@click.argument("node")
@as_json
def undrain(node: str, as_json: bool) -> None:
    """Give NODE work again."""
    _print_drain(client().undrain(node), as_json)


def _print_drain(found: dict[str, object], as_json: bool) -> None:
    if as_json:
        render.show_json(found)
    else:
        said = found.get("reason") or "takes no new work"
        click.echo(f"{found.get('node')}: {said if found.get('draining') else 'takes work again'}")
