"""`mlx-stack config`: every setting with its value, its default and where it came from."""

from __future__ import annotations

import sys
from typing import Any

import click

from mesh import config as configuration
from mesh import render, values
from mesh.cli_base import Commands, as_json, client, home, warn
from mesh.client import MeshClientError
from mesh.config import Config, ConfigError
from mesh.config_keys import KEYS, Key


@click.group(cls=Commands)
def config() -> None:
    """Settings: config.yaml in the home folder, over it MLX_STACK_<KEY> in the environment."""


def _entry(found: Config, key: Key) -> dict[str, Any]:
    return {
        "key": key.name,
        "value": configuration.shown(key, found.value(key)),
        "default": configuration.shown(key, key.default),
        "source": found.source(key),
        "ignored": key.ignored,
    }


def _text(key: Key, value: Any) -> str:
    return key.automatic if key.automatic and value in (None, (), []) else values.shown(value)


@config.command("list")
@as_json
def list_(as_json: bool) -> None:
    """Every setting: its value, its default, where the value came from."""
    found = configuration.load(home())
    if as_json:
        render.show_json({"config": [_entry(found, key) for key in KEYS]})
        return
    rows = []
    for key in KEYS:
        value = _text(key, configuration.shown(key, found.value(key)))
        source = found.source(key) + (" (no effect here)" if key.ignored else "")
        rows.append((key.name, value, key.default_shown, source))
    render.show([render.Table(("KEY", "VALUE", "DEFAULT", "SOURCE"), tuple(rows))])
    for warning in found.warnings:
        warn(warning)


@config.command()
@click.argument("key")
@as_json
def get(key: str, as_json: bool) -> None:
    """The value of KEY."""
    found = configuration.load(home())
    entry = configuration.find_key(key)
    if as_json:
        render.show_json(_entry(found, entry))
    else:
        value = _text(entry, configuration.shown(entry, found.value(entry)))
        click.echo("" if value == "-" else value)  # a script wants nothing, where a table wants a mark


@config.command("set")
@click.argument("key")
@click.argument("value")
@as_json
def set_(key: str, value: str, as_json: bool) -> None:
    """Write KEY: VALUE into config.yaml. A list is written "a, b". A running node takes it over by itself."""
    place = home()
    entry = configuration.find_key(key)
    configuration.set_values(place, {entry.name: value})
    try:
        found = configuration.load(place)
    except ConfigError as error:  # What else stands there may be wrong, and be what is mended next.
        raise ConfigError(f"{entry.name} is written, but {error}") from error
    running = place.running() is not None
    if running:
        try:
            client().reload()
        except MeshClientError as error:
            warn(f"written, but the running node did not take it over: {error.message}")
    if as_json:
        render.show_json(_entry(found, entry))
    else:
        when = f" ({entry.applies})" if running and entry.applies != "at once" else ""
        click.echo(f"{entry.name} = {_text(entry, configuration.shown(entry, found.value(entry)))}{when}")
    if found.source(entry) not in ("config.yaml", "default"):
        warn(f"{found.source(entry)} is set in the environment and counts instead of config.yaml")
    if entry.ignored:
        warn(f"{entry.name} has no effect here: {entry.what}")


@config.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(yes: bool) -> None:
    """Back to the defaults. config.yaml is set aside, not deleted."""
    place = home()
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("say --yes to set config.yaml aside without being asked")
        click.confirm(f"Set {place.config} aside and use the defaults?", abort=True)
    kept = configuration.reset(place)
    click.echo(
        "Defaults, as before: there was no config.yaml" if kept is None else f"Defaults again; the old file: {kept}"
    )
