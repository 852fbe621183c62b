"""`mlx-stack mesh drill`. Loaded when called: nothing else needs its threads and clients."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator

import click
from msgspec import to_builtins

from mesh import config, drill, render
from mesh.cli_base import Command, as_json, client, home
from mesh.drill import WHATS, Plan, Report, Stopped, What
from mesh.drill_load import Load
from mesh.drill_run import Run, RunSettings
from mesh.render import Block, Table, milliseconds

CLIENTS_MAX, SECONDS_MIN, SECONDS_MAX = 32, 5, 300


@click.command(cls=Command)
@click.argument("nodes", nargs=-1, required=True, metavar="NODE [NODE ...]")
@click.option("--only", type=click.Choice(WHATS), metavar="WHAT", help="worker, node or coordinator alone.")
@click.option("--model", default="", metavar="NAME", help="Ask for this model; default: the one most nodes serve.")
@click.option(
    "--clients", type=click.IntRange(1, CLIENTS_MAX), default=6, show_default=True, help="Who ask at the same time."
)
@click.option(
    "--seconds",
    type=click.IntRange(SECONDS_MIN, SECONDS_MAX),
    default=20,
    show_default=True,
    help="How long they go on asking after each stop.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
def drill_command(
    *, nodes: tuple[str, ...], only: What | None, model: str, clients: int, seconds: int, yes: bool, as_json: bool
) -> None:
    """Stop a worker, then a node, then the coordinator, and see what is lost.

    A few clients of its own ask this node meanwhile. Only what is named is stopped, and it comes back by itself. Says
    what it will do and asks first. Exit code 1: a request was lost, or not all is as before.
    """
    daemon = client()
    status = daemon.mesh_status()
    plan = drill.plan(status, nodes, model=model, only=only)
    if not yes:
        if as_json or not _asks():
            raise click.UsageError("say --yes to stop things without being asked")
        for line in _announcement(plan, clients):
            click.echo(line)
        click.confirm("Go on?", abort=True)
    name = f"drill-{secrets.token_hex(4)}"
    settings = config.load(home())
    host = settings.bind[0] if settings.bind else "localhost"  # where this node's edge is reached from here
    own = daemon.status()
    load = Load(
        host,
        own.port,
        plan.model,
        name,
        clients=clients,
        limit_s=settings.request_timeout,
        tls=own.url.startswith("https:"),
    )

    def say(line: str) -> None:
        if not as_json:
            click.echo(line)

    report = Run(daemon, load, plan, name=name, clients=clients, seconds=float(seconds), say=say).run()
    if as_json:
        render.show_json(to_builtins(report))
    else:
        render.show(list(page(report)))
    if not report.good:
        raise click.exceptions.Exit(1)


def _asks() -> bool:
    """Somebody is there to answer."""
    return sys.stdin.isatty()


def _announcement(plan: Plan, clients: int) -> Iterator[str]:
    steps = [step for step in plan.steps if not step.left_out]
    yield f"While {clients} clients ask this node for {plan.model}, one after another:"
    for number, step in enumerate(steps, start=1):
        yield f"  {number}. {drill.announced(step, RunSettings().away_s)}"
    for step in plan.steps:
        if step.left_out:
            yield f"  no {step.what}: {step.left_out}"
    yield "Requests of others that run there are carried on elsewhere, as those of the drill."


def page(report: Report) -> Iterator[Block]:
    """The report for people."""
    heads = (
        *("STOPPED", "ON", "SEEN AFTER>", "HANDED OVER>", "LONGEST PAUSE>", "AS BEFORE>"),
        *("REQUESTS>", "LOST>", "RESUMED>", "RETRIED>"),
    )
    yield ""
    yield Table(heads, tuple(_row(step) for step in report.steps))
    yield ""
    for step in report.steps:
        if step.left_out:
            yield f"{step.what}: left out, {step.left_out}"
        elif not step.ran:
            yield f"{step.what}: nothing of the drill ran on {step.node} when it was stopped"
        for why, count in sorted(step.why_lost.items()):
            yield f"{step.what}: {count} lost: {why}"
    yield from report.changed
    lost = (
        f"{report.lost} of {report.requests} requests lost"
        if report.lost
        else f"none of {report.requests} requests lost"
    )
    yield f"{lost}; {'not as before: ' + ', '.join(report.missing) if report.missing else 'all is as before'}"


def _row(step: Stopped) -> tuple[str, ...]:
    if step.left_out:
        return (step.what, step.node or "-", *["-"] * 8)
    times = (step.detected_s, step.handed_over_s, step.pause_s, step.back_s)
    counts = (step.requests, step.lost, step.resumed, step.retried)
    shown = tuple(milliseconds(None if t is None else t * 1e3) for t in times)
    return (step.what, step.node, *shown, *map(str, counts))
