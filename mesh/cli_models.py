"""`mlx-stack models`: what this node serves. Adding and removing edits the stack file; a running node follows."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
import msgspec

from mesh import answers, config, render, stack
from mesh.cli_base import Commands, as_json, client, home, warn
from mesh.client import MeshClientError
from mesh.home import Home

LOOK_EVERY_S = 0.3  # at a download that is waited for


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
    """Serve SOURCE: a directory with MLX weights, a name below models/, or a model of the hub, ORG/NAME.

    The running node downloads what is not here; this command shows how far it is, and Ctrl-C leaves it going on. Of a
    node that is down, the next start does that. A gated model needs HF_TOKEN, or `hf auth login`, where the node runs.
    """
    place = home()
    place.create()
    tier = stack.add_tier(place, config.load(place), source, name=name, aliases=aliases)
    running = _reload()
    hub = _hub_of(place, tier)
    if not as_json:
        click.echo(f"Added tier '{tier}' to {place.stack}; {_takes_effect(running, hub)}")
    state = _follow(tier) if running and hub else None
    if as_json:
        render.show_json({"added": tier, "stack": str(place.stack), "running": running, "state": state})


def _hub_of(place: Home, tier: str) -> str:
    """Where a tier's model must be fetched from; "" when it is here."""
    found = stack.load(place, config.load(place))
    return next((s.hub for s in found.specs if tier in (s.name, *s.aliases)), "")


def _follow(tier: str) -> str:
    """Shows the download of a tier's model until it is over, if there is one; the model's state then. Exits 1 when it
    fails; an interrupt ends the watching, not the download."""
    shown = False
    try:
        with _bar(tier) as draw:
            while (found := client().model(tier)).state == "downloading":
                shown = True
                draw(found.progress or 0.0, (found.error or "").removeprefix("downloading, "))
                time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        click.echo(
            f"\n'{tier}' goes on downloading in the running node: `mlx-stack models` shows how far it is, "
            f"`mlx-stack models remove {tier}` ends it",
            err=True,
        )
        sys.exit(1)
    if found.state == "failed":
        again = f"`mlx-stack models load {tier}` tries again now, `mlx-stack models remove {tier}` gives it up"
        raise click.ClickException(f"{found.name}: {found.error}\n{again}")
    if shown:
        click.echo(f"'{tier}' is here; it is loaded as far as memory allows", err=True)
    return found.state


@contextmanager
def _bar(tier: str) -> Iterator[Callable[[float, str], None]]:
    """Draws (share, text) on stderr: a bar on a terminal, else a line for each tenth."""
    if not sys.stderr.isatty():
        last = -1

        def line(share: float, text: str) -> None:
            nonlocal last
            if int(10 * share) > last:
                last = int(10 * share)
                click.echo(f"{tier}: {text}", err=True)

        yield line
        return
    # Loaded only when there is something to watch: it takes longer than the whole command otherwise does.
    from rich.console import Console  # noqa: PLC0415 - as said above
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415 - as said above

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(tier, total=1.0, text="", visible=False)
        yield lambda share, text: progress.update(task, completed=share, text=text, visible=True)


@models.command()
@click.argument("name")
@as_json
def remove(name: str, as_json: bool) -> None:
    """Serve NAME no longer: a tier, or a model with all its tiers. A download of it ends; the weights stay on disk."""
    place = home()
    gone = stack.remove_tier(place, name)
    running = _reload()
    if as_json:
        render.show_json({"removed": gone, "stack": str(place.stack), "running": running})
    else:
        click.echo(f"Removed {', '.join(gone)} from {place.stack}; {_takes_effect(running)}")


def _takes_effect(running: bool, hub: str = "") -> str:
    if hub:
        return f"the running node downloads {hub}" if running else f"the next `mlx-stack up` downloads {hub}"
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
