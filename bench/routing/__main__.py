"""`make bench-routing`: the shipped Scheduler in replays of request traces, against clairvoyants and what others do.

The public traces are read from $TRACES (JSONL, docs/bench.md); without them seeded ones of our own are replayed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from bench import scaling
from bench.report import publish, show
from bench.routing import figures, timing, traces
from bench.routing.clairvoyant import REFERENCES
from bench.routing.fleets import FLEETS
from bench.routing.peers import PEERS, THEORY
from bench.routing.runs import OURS, Run, Runs
from router.replay.result import Result

CALLS = 1500


def main() -> None:
    """A goal that is missed is reported, no failure."""
    parser = argparse.ArgumentParser(prog="bench.routing", description=__doc__)
    parser.add_argument("-n", "--n", dest="calls", type=int, default=CALLS, help="calls of each replay")
    parser.add_argument("--fleets", nargs="+", choices=list(FLEETS), default=list(FLEETS))
    parser.add_argument("--traces", nargs="+", default=[], help="names of files in $TRACES, without .jsonl")
    parser.add_argument("--loads", nargs="+", type=float, default=list(figures.LOADS))
    parser.add_argument("--seed", type=int, default=1, help="draws how wrong the bandwidths are that ours is told")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="replays side by side")
    parser.add_argument(
        "--quick", action="store_true", help="without stale reports, wrong caches, slow machines, timing, real daemons"
    )
    parser.add_argument("--rows", action="store_true", help="each scenario, ratio to the best clairvoyant and peer")
    parser.add_argument("--policies", action="store_true", help="every policy's ratio to the best clairvoyant")
    parser.add_argument("--fresh", action="store_true", help="do again what bench/out holds of others")
    parser.add_argument("--dry", action="store_true", help="write no bench/out/routing.json")
    options = parser.parse_args()
    began = time.monotonic()
    found = traces.load(tuple(options.traces))
    cached = tuple(name for name, trace in found.items() if trace.block)
    matrix = figures.Matrix(
        tuple(options.fleets), tuple(found), tuple(options.loads), options.calls, cached, options.seed
    )
    runs = Runs(options.jobs, fresh=options.fresh)
    wanted = figures.main_runs(matrix)
    wanted += [] if options.quick else figures.robust_runs(matrix)
    wanted += [matrix.run(s, p) for s in matrix.scenarios() for p in THEORY] if options.policies else []
    results = runs.do(wanted)
    if options.rows:
        _rows(matrix, results)
    if options.policies:
        _policies(matrix, results)
    rows = figures.main_figures(matrix, results)
    if not options.quick:
        rows += figures.robust_figures(matrix, results) + timing.figures() + scaling.figures()
    if options.dry:
        show("routing", rows)
    else:
        print(publish("routing", rows))
    where = traces.folder() or "made here"
    print(f"{runs.did} replays of {options.calls} calls, traces {where}, {time.monotonic() - began:.0f} s")


def _rows(matrix: figures.Matrix, results: Mapping[Run, Result]) -> None:
    """Ours in each scenario: seconds, and ratios to the best clairvoyant | the best peer and which that is."""
    table = Table("fleet", "trace", "load", *figures.METRICS, "hit", "idle", "loads", title="ours: s, ratios")
    for scenario in matrix.scenarios():
        ours = results[matrix.run(scenario)]
        cells = []
        for metric in figures.METRICS.values():
            mine = metric(ours)
            clair = min(metric(results[matrix.run(scenario, p)]) for p in REFERENCES)
            name = min(PEERS, key=lambda p: metric(results[matrix.run(scenario, p)]))
            peer = metric(results[matrix.run(scenario, name)])
            cells.append(f"{mine:.2f} {mine / clair:.2f} | {mine / peer:.2f} {name}")
        loads = sum(m.loads for m in ours.machines)
        fleet, trace, load = scenario
        table.add_row(fleet, trace, f"{load:.0%}", *cells, f"{ours.hit:.2f}", f"{ours.idle_s:.0f}", str(loads))
    Console(width=200).print(table)


def _policies(matrix: figures.Matrix, results: Mapping[Run, Result]) -> None:
    """Geometric means of the ratio to the best clairvoyant [worst TTFT p99]."""
    table = Table("policy", *matrix.fleets, title="TTFT mean / p99 / e2e mean / p99 over the best clairvoyant, gm")
    for policy in (OURS, *REFERENCES, *THEORY, *PEERS):
        cells = []
        for fleet in matrix.fleets:
            scenarios = matrix.scenarios([fleet])
            ratios = {
                name: [
                    metric(results[matrix.run(s, policy)]) / min(metric(results[matrix.run(s, p)]) for p in REFERENCES)
                    for s in scenarios
                ]
                for name, metric in figures.METRICS.items()
            }
            worst = max(ratios["TTFT p99"])
            cells.append("/".join(f"{figures.gm(r):.2f}" for r in ratios.values()) + f" [{worst:.2g}]")
        table.add_row(policy, *cells)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
