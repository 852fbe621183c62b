"""`python -m tests.sim`: replay one run with a readable transcript, run many for a while, or rewrite the golden runs.

--seed N [--nodes K]                 one chaos run
--seed N --fault cut --net bad       one fault of a settled mesh's coordinator
--seed N --net wifi --nodes 5 --quiet-hours 0.5
--seed N --rail                      one node with more models than memory
--minutes M [--out FILE] [--jobs J]  as many as fit; figures as JSON; exit 1 if anything was violated
    [--chaos N] [--quiet H]          at least so many chaos seeds and quiet hours, however long that takes
    [--only election|rail] [--first-seed N]
--rewrite                            the golden transcripts, after a change that was meant
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import msgspec

from bench import report
from tests.sim import broken, rail_runs, runs, scenarios
from tests.sim.rail_world import World as RailWorld
from tests.sim.runs import Setup
from tests.sim.summary import AnyResult, Job, Summary, Violation

BATCH = 20  # chaos seeds handed to a process at a time, one of them with 7 to 16 nodes
RAIL_BATCH = 100
QUIET_HOURS = 1.0
QUIET_NODES = (*(2, 3, 2, 4, 3, 5, 2, 3, 6) * 4, 10, 16)
FIRST_SEED = 1_000_000  # of --minutes; pytest has the small ones

Work = tuple[Job, list[AnyResult], list[Violation], float]


def _one(job: Job, seed: int) -> AnyResult:
    if job.kind == "rail":
        return rail_runs.rail(seed)
    if job.kind == "chaos":
        return runs.chaos(seed, job.nodes or None)
    if job.kind == "fault":
        return runs.one_fault(seed, job.net, job.fault)
    return runs.quiet(seed, job.net, job.nodes, job.hours)


def _work(job: Job) -> Work:
    """In a child process: never raises for a violation, so that one does not hide the next."""
    results: list[AnyResult] = []
    violations = []
    begin = time.process_time()
    for seed in range(job.first, job.first + job.seeds):
        try:
            results.append(_one(job, seed))
        except Exception as error:  # noqa: BLE001 - whatever a run raises is what we look for
            violations.append({"replay": job.command(seed), "error": f"{type(error).__name__}: {error}"})
        gc.collect()
    return job, results, violations, time.process_time() - begin


def _election_jobs(first: int) -> Iterator[Job]:
    """Without end: mostly chaos (each twentieth seed with 7 to 16 nodes), every fault on every network, quiet hours."""
    turn = 0
    while True:
        for net in runs.NETS:
            for fault in runs.FAULTS:
                for _ in range(2):
                    yield Job("chaos", first, BATCH - 1)
                    yield Job("chaos", first + BATCH - 1, 1, nodes=7 + (first // BATCH) % 10)
                    first += BATCH
                yield Job("fault", first, BATCH // 4, net=net, fault=fault)
                yield Job("quiet", first, 2, net=net, nodes=QUIET_NODES[turn % len(QUIET_NODES)], hours=QUIET_HOURS)
                turn += 1


def _rail_jobs(first: int) -> Iterator[Job]:
    while True:
        yield Job("rail", first, RAIL_BATCH)
        first += RAIL_BATCH


def _jobs(only: str, first: int) -> Iterator[Job]:
    election, rail = _election_jobs(first), _rail_jobs(first)
    while True:
        if only != "rail":
            for _ in range(3):
                yield next(election)
        if only != "election":
            yield next(rail)


def run_for(
    minutes: float, processes: int, *, only: str = "", chaos: int = 0, quiet_h: float = 0.0, first: int = FIRST_SEED
) -> Summary:
    """As many jobs as fit into `minutes` of wall time; at least `chaos` seeds and `quiet_h` simulated quiet hours."""
    summary, jobs, end = Summary(), _jobs(only, first), time.monotonic() + 60 * minutes

    def enough() -> bool:
        quiet = summary.simulated_s.get("quiet", 0.0) >= 3600 * quiet_h
        return time.monotonic() >= end and quiet and summary.seeds.get("chaos", 0) >= chaos

    with ProcessPoolExecutor(processes) as pool:
        caught = [pool.submit(broken.catch, rule) for rule in broken.RULES] if only != "rail" else []
        open_jobs: set[Future[Work]] = set()
        while open_jobs or not enough():
            while len(open_jobs) < 2 * processes and not enough():
                open_jobs.add(pool.submit(_work, next(jobs)))
            done, open_jobs = wait(open_jobs, return_when=FIRST_COMPLETED)
            for future in done:
                summary.add(*future.result())
                for violation in future.result()[2]:
                    print(f"VIOLATED: {violation['replay']}: {violation['error']}", file=sys.stderr, flush=True)
        summary.caught = [future.result() for future in caught]
    return summary


def _replay(job: Job) -> int:
    setup, rails = Setup(narrate=True), list[RailWorld]()
    try:
        if job.kind == "rail":
            found = rail_runs.rail(job.first, on_world=rails.append)
            print("\n".join(rails[0].transcript or ()), f"holds: {found}", sep="\n")
            return 0
        if job.kind == "chaos":
            result = runs.chaos(job.first, job.nodes or None, setup=setup)
        elif job.kind == "fault":
            result = runs.one_fault(job.first, job.net, job.fault, setup=setup)
        else:
            result = runs.quiet(job.first, job.net, job.nodes, job.hours, setup=setup)
        end, code = f"holds: agreed after {result.agreed_s:.2f} s, trace {result.digest:08x}", 0
    except AssertionError as error:
        end, code = f"VIOLATED: {error}", 1
    transcript = (setup.worlds[0] if setup.worlds else rails[0]).transcript
    print("\n".join(transcript or ()), end, sep="\n")
    return code


def _publish(summary: Summary, minutes: float, out: Path | None) -> None:
    figures = summary.figures(minutes)
    report.show("sim", figures)
    if out is not None:
        document = report.document(figures) | {"failures": summary.violations[:50]}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int)
    parser.add_argument("--nodes", type=int, default=0, help="default: 2 to 6 by the seed; 5 for quiet hours")
    parser.add_argument("--net", choices=runs.NETS, default="wired")
    parser.add_argument("--fault", choices=runs.FAULTS)
    parser.add_argument("--quiet-hours", type=float, default=0.0)
    parser.add_argument("--rail", action="store_true")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--chaos", type=int, default=0)
    parser.add_argument("--quiet", type=float, default=0.0)
    parser.add_argument("--only", choices=("election", "rail"), default="")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rewrite", action="store_true")
    args = parser.parse_args()
    if args.rewrite:
        print(*(f"changed {path}" for path in scenarios.rewrite()), "golden transcripts are up to date", sep="\n")
        return 0
    if args.seed is not None:
        kind = "rail" if args.rail else "fault" if args.fault else "quiet" if args.quiet_hours else "chaos"
        nodes = args.nodes or (5 if kind == "quiet" else 0)
        return _replay(Job(kind, args.seed, 1, args.net, args.fault or "", nodes, args.quiet_hours))
    if args.minutes is None:
        parser.error("one of --seed, --minutes, --rewrite")
    begin = time.monotonic()
    summary = run_for(
        args.minutes, max(1, args.jobs), only=args.only, chaos=args.chaos, quiet_h=args.quiet, first=args.first_seed
    )
    _publish(summary, (time.monotonic() - begin) / 60, args.out)
    return 1 if summary.violations else 0


if __name__ == "__main__":
    sys.exit(main())
