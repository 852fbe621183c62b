"""`mlx-stack mesh simulate`. Loaded when called: it is the only command that needs the scheduler's code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from mesh import render
from mesh import simulate as simulation
from mesh.cli_base import Command, as_json, client
from mesh.render import Block, Table, milliseconds

NOW = "as it is"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(cls=Command)
@click.option("--trace", "trace_file", metavar="FILE", type=FILE, help="Requests to replay, one JSON object a line.")
@click.option("--recorded", is_flag=True, help="Replay this mesh's own routes (what is done without --trace).")
@click.option("--fleet", "fleet_file", metavar="FILE", type=FILE, help="Machines in YAML; default: this mesh's nodes.")
@click.option("--add", "added", metavar="MAC", multiple=True, help='One machine more, like "M4 Max 64GB".')
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests a second; default: as they came.")
@click.option("--last", type=click.IntRange(1, 100_000), default=2000, show_default=True, help="How many at most.")
@as_json
def simulate(
    *,
    trace_file: Path | None,
    recorded: bool,
    fleet_file: Path | None,
    added: tuple[str, ...],
    rate: float | None,
    last: int,
    as_json: bool,
) -> None:
    """What this mesh, or another, would do with recorded requests.

    They are replayed with this scheduler, and for comparison with two rules: least in flight, round robin. Nothing is
    sent anywhere. Speeds are those that nodes have measured, else what their memory's bandwidth lets expect
    (docs/operations.md).
    """
    if trace_file is not None and recorded:
        raise click.UsageError("--trace and --recorded exclude each other")
    fleet = simulation.fleet_of_file(fleet_file) if fleet_file else simulation.fleet_of_status(client().mesh_status())
    if trace_file is not None:
        trace = simulation.trace_of_file(trace_file)
    else:
        trace = simulation.trace_of_routes(client().routes(last).routes)
    trace, notes = simulation.replayable(trace, fleet, last)
    fleets = {NOW: fleet}
    if added:
        fleets[f"with {' and '.join(added)}"] = simulation.with_added(fleet, added, simulation.asked(trace))
    found = simulation.simulate(trace, fleets, rate=rate, notes=notes)
    if as_json:
        render.show_json(found)
    else:
        render.show(list(_page(found)))


def _page(found: simulation.Simulation) -> Iterator[Block]:
    how = "all at once" if found.rate is None else f"{found.rate:.3g} a second"
    asked = ", ".join(f"{name} {count}" for name, count in sorted(found.models.items()))
    yield f"{found.requests} requests, {how}: {asked}"
    yield ""
    several = len({run.fleet for run in found.runs}) > 1
    rows = []
    for run in found.runs:
        r = run.result
        times = (r.ttft_s_mean, r.ttft_s_p50, r.ttft_s_p99, r.e2e_s_mean, r.e2e_s_p99)
        rows.append(((run.fleet,) if several else ()) + (run.policy, *(milliseconds(t * 1000) for t in times)))
    heads = ("POLICY", "FIRST TOKEN MEAN>", "P50>", "P99>", "WHOLE MEAN>", "P99>")
    yield Table((("FLEET",) if several else ()) + heads, tuple(rows))
    for fleet in dict.fromkeys(run.fleet for run in found.runs):
        yield ""
        yield _load(fleet if several else "", [run for run in found.runs if run.fleet == fleet])
    for note in found.notes:
        yield f"Note: {note}"


def _load(title: str, runs: list[simulation.Replayed]) -> Table:
    """Requests that each machine answered, and the part of the time it was busy."""
    columns = ["NODE"]
    for run in runs:
        columns += [f"{run.policy.upper()}>", "BUSY>"]
    rows = []
    for machine in range(len(runs[0].result.machines)):
        shares = [run.result.machines[machine] for run in runs]
        cells = [shares[0].name]
        for share in shares:
            cells += [str(share.jobs), f"{share.busy:.0%}"]
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows), title)
