"""`mlx-stack keys`: which clients on other machines may use this mesh."""

from __future__ import annotations

import sys

import click

from mesh import answers, render
from mesh.cli_base import Commands, as_json, client, warn
from mesh.client import MeshClientError

FIRST = (
    "This is the first key. From now on clients on other machines are refused unless they send a key; programs on the "
    "Macs of the mesh themselves go on without where they ask localhost, not the mesh's name or an address."
)


@click.group(cls=Commands)
def keys() -> None:
    """Which clients may use this mesh.

    Until the first key is created, everybody on the LAN and the tailnet may. From then on clients on other machines
    need a key, as their API key; programs on the Macs themselves (localhost) never do.
    """


@keys.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask, also when this is the first key and others are refused then.")
@as_json
def create(name: str, yes: bool, as_json: bool) -> None:
    """Make a key and print it: this once, for only its hash is kept.

    NAME says whose it is; routes and the log show it. The key counts on every node of the mesh.
    """
    daemon = client()
    try:
        made = daemon.create_key(name, first=yes)
    except MeshClientError as error:
        if error.code != "first_key" or as_json or not sys.stdin.isatty():
            raise
        click.confirm(f"{FIRST}\nCreate it?", abort=True, err=True)
        made = daemon.create_key(name, first=True)
    if as_json:
        render.show_json(made)
        return
    click.echo(f"Key '{made.name}' ({made.id}): keep it, it is not shown again. Clients send it as API key.", err=True)
    click.echo(made.key)


@keys.command(name="list")
@as_json
def list_(as_json: bool) -> None:
    """The keys that count, without the keys themselves."""
    found = client().keys()
    if as_json:
        render.show_json(found)
    elif found.keys:
        render.show(render.client_keys(found))
    else:
        click.echo(_none(found))


def _none(found: answers.Keys) -> str:
    if found.needed:
        return "No key counts: clients on other machines are refused. `mlx-stack keys create NAME` makes one."
    return "No key is needed. `mlx-stack keys create NAME` makes the first one."


@keys.command()
@click.argument("key", metavar="NAME_OR_ID")
@as_json
def revoke(key: str, as_json: bool) -> None:
    """Let a key count no more, on every node; for nodes that are away, from when they are back."""
    gone = client().revoke_key(key)
    if as_json:
        render.show_json(gone)
    else:
        click.echo(f"Key '{gone.revoked}' ({gone.id}) counts no more")
    if not gone.left:
        warn(
            "no key is left, so clients on other machines are all refused: `mlx-stack keys create NAME` makes one, "
            "`mlx-stack keys off` lets everybody in again"
        )


@keys.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
def off(yes: bool, as_json: bool) -> None:
    """End all keys: clients on other machines need none again, on every node."""
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise click.UsageError("everybody on the LAN may use this mesh then: --yes if that is wanted")
        click.confirm("All keys end, and everybody on the LAN may use this mesh again. Go on?", abort=True)
    found = client().keys_off()
    if as_json:
        render.show_json(found)
    else:
        click.echo("No key is needed any more")
