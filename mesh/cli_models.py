"""`mlx-stack models`: what this node serves. Adding and removing edits the stack file; a running node follows."""

from __future__ import annotations

import click
import msgspec

from mesh import answers, config, render, stack
from mesh.cli_base import Commands, as_json, client, home, warn
from mesh.client import MeshClientError


@click.group(cls=Commands, invoke_without_command=True)
@as_json
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """The models of this node."""
    if ctx.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError(f"--json belongs behind the command: models {ctx.invoked_subcommand} --json", ctx)
        return
    found = _models()
    if as_json:
        render.show_json({"models": found})
    elif found:
        render.show(render.models(found))
    else:
        click.echo("No models here. `mlx-stack models add DIRECTORY` adds one.")


def _models() -> tuple[answers.ModelDetails, ...]:
    """As the running node reports them; of a node that is down, what its stack file says."""
    place = home()
    if place.running() is not None:
        return client().models()
    found = stack.load(place, config.load(place))
    for warning in found.warnings:
        warn(warning)
    return tuple(
        answers.ModelDetails(
            name=spec.name,
            aliases=spec.aliases,
            source=spec.source,
            engine=spec.engine,
            state="failed" if spec.problem else "absent",
            slots=spec.slots,
            error=spec.problem or None,
        )
        for spec in found.specs
    )


@models.command()
@click.argument("source")
@click.option("--as", "name", default="", metavar="NAME", help="The tier's name; default: the last part of SOURCE.")
@click.option("--alias", "aliases", multiple=True, metavar="A", help="One more name it answers to; may be repeated.")
@as_json
def add(source: str, name: str, aliases: tuple[str, ...], as_json: bool) -> None:
    """Serve SOURCE: a directory with MLX weights, a name below models/, or a model in the local hub cache."""
    place = home()
    place.create()
    tier = stack.add_tier(place, config.load(place), source, name=name, aliases=aliases)
    running = _reload()
    if as_json:
        render.show_json({"added": tier, "stack": str(place.stack), "running": running})
    else:
        click.echo(f"Added tier '{tier}' to {place.stack}; {_takes_effect(running)}")


@models.command()
@click.argument("name")
@as_json
def remove(name: str, as_json: bool) -> None:
    """Serve NAME no longer: a tier, or a model with all its tiers. The weights stay on disk."""
    place = home()
    gone = stack.remove_tier(place, name)
    running = _reload()
    if as_json:
        render.show_json({"removed": gone, "stack": str(place.stack), "running": running})
    else:
        click.echo(f"Removed {', '.join(gone)} from {place.stack}; {_takes_effect(running)}")


def _takes_effect(running: bool) -> str:
    return "the running node follows now" if running else "it takes effect at the next `mlx-stack up`"


def _reload() -> bool:
    """Tells a running node; False when none runs."""
    if home().running() is None:
        return False
    try:
        client().reload()
    except MeshClientError as error:
        warn(f"the stack file is written, but the running node did not follow: {error.message}")
    return True


@models.command()
@click.argument("name")
@as_json
def show(name: str, as_json: bool) -> None:
    """All about one model, by its name or an alias."""
    if home().running() is not None:
        found = client().model(name)
    else:
        known = _models()
        match = next((m for m in known if name in (m.name, *m.aliases)), None)
        if match is None:
            raise click.ClickException(f"no model '{name}' here: there is {', '.join(m.name for m in known) or 'none'}")
        found = match
    _print(found, as_json)


@models.command()
@click.argument("name")
@as_json
def load(name: str, as_json: bool) -> None:
    """Bring a model into memory now; returns when it can answer."""
    _print(client().load(name), as_json)


@models.command()
@click.argument("name")
@as_json
def unload(name: str, as_json: bool) -> None:
    """Take a model out of memory once its requests have ended."""
    _print(client().unload(name), as_json)


def _print(found: answers.ModelDetails, as_json: bool) -> None:
    if as_json:
        render.show_json(msgspec.to_builtins(found))
    else:
        render.show(render.model(found))
