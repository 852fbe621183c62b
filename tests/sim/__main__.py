"""`python -m tests.sim`: replay one run with a readable transcript, run many for a while, or rewrite the golden runs.

--seed N [--nodes K]                 one chaos run
--seed N --fault cut --net bad       one fault of a settled mesh's coordinator
--seed N --net wifi --nodes 5 --quiet-hours 0.5
--seed N --rail                      one node with more models than memory
--minutes M [--out FILE] [--jobs J]  as many as fit; a summary as JSON; exit 1 if anything was violated
--rewrite                            the golden transcripts, after a change that was meant
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tests.sim import rail_runs, runs, scenarios
from tests.sim.rail_world import World as RailWorld
from tests.sim.world import World

AnyResult: TypeAlias = runs.Result | rail_runs.RailResult

BATCH = 20  # runs handed to a process at a time
RAIL_BATCH = 100
FIRST_SEED = 1_000_000  # of --minutes; pytest has the small ones


@dataclass(frozen=True)
class Job:
    """Runs of one kind: `seeds` of them from `first` on."""

    kind: str  # chaos | fault | quiet | rail
    first: int
    seeds: int
    net: str = ""
    fault: str = ""
    nodes: int = 0
    hours: float = 0.0

    def command(self, seed: int) -> str:
        """What replays one of them."""
        more = {
            "chaos": f" --nodes {self.nodes}" if self.nodes else "",
            "fault": f" --fault {self.fault} --net {self.net}",
            "rail": " --rail",
        }.get(self.kind, f" --net {self.net} --nodes {self.nodes} --quiet-hours {self.hours}")
        return f"python -m tests.sim --seed {seed}{more}"


@dataclass
class Summary:
    """What many runs showed."""

    agreed_s: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    takeovers: dict[tuple[str, str], int] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    simulated_s: dict[str, float] = field(default_factory=dict)
    rail: list[rail_runs.RailResult] = field(default_factory=list)
    violations: list[dict[str, str]] = field(default_factory=list)

    def add(self, job: Job, results: list[AnyResult], violations: list[dict[str, str]]) -> None:
        self.violations.extend(violations)
        self.seeds[job.kind] = self.seeds.get(job.kind, 0) + job.seeds
        self.simulated_s[job.kind] = self.simulated_s.get(job.kind, 0.0) + sum(r.simulated_s for r in results)
        self.rail += [r for r in results if isinstance(r, rail_runs.RailResult)]
        if job.kind != "rail":
            self._add_election(job, [r for r in results if isinstance(r, runs.Result)])

    def _add_election(self, job: Job, results: list[runs.Result]) -> None:
        key = (job.net, job.fault) if job.kind == "fault" else ("", job.kind)
        self.agreed_s.setdefault(key, []).extend(r.agreed_s for r in results)
        self.takeovers[key] = max([self.takeovers.get(key, 0), *(r.takeovers for r in results)])

    def as_dict(self, minutes: float) -> dict[str, object]:
        rows = [
            {
                "network": runs.NET_WORDS[net],
                "fault": runs.FAULT_WORDS[fault],
                "runs": len(times),
                **_quantiles(times),
                "takeovers_max": self.takeovers[net, fault],
            }
            for (net, fault), times in sorted(self.agreed_s.items())
            if net and times
        ]
        return {
            "minutes": round(minutes, 2),
            "violations": len(self.violations),
            "failures": self.violations[:50],
            "election": {
                **self._counted("chaos", "fault", "quiet"),
                "after_chaos": _quantiles(self.agreed_s.get(("", "chaos"), [])),
                "agreement": rows,
            },
            "rail": {
                **self._counted("rail"),
                "requests": sum(r.requests for r in self.rail),
                "answered": sum(r.answered for r in self.rail),
                "loads": sum(r.loads for r in self.rail),
                "evictions": sum(r.evictions for r in self.rail),
                "longest_wait_s": round(max((r.longest_wait_s for r in self.rail), default=0.0), 1),
            },
        }

    def _counted(self, *kinds: str) -> dict[str, object]:
        return {
            "seeds": {kind: self.seeds[kind] for kind in kinds if kind in self.seeds},
            "simulated_hours": {k: round(self.simulated_s[k] / 3600, 1) for k in kinds if k in self.simulated_s},
        }


def _quantiles(seconds: list[float]) -> dict[str, float | None]:
    """Nearest-rank p50 and p99, and the largest, in ms."""
    ordered = sorted(seconds)
    if not ordered:
        return {"p50_ms": None, "p99_ms": None, "max_ms": None}

    def at(q: float) -> float:
        return round(1000 * ordered[max(0, math.ceil(q * len(ordered)) - 1)], 1)

    return {"p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0)}


def _one(job: Job, seed: int) -> AnyResult:
    if job.kind == "rail":
        return rail_runs.rail(seed)
    if job.kind == "chaos":
        return runs.chaos(seed, job.nodes or None)
    if job.kind == "fault":
        return runs.one_fault(seed, job.net, job.fault)
    return runs.quiet(seed, job.net, job.nodes, job.hours)


def _work(job: Job) -> tuple[Job, list[AnyResult], list[dict[str, str]]]:
    """In a child process: never raises for a violation, so that one does not hide the next."""
    results: list[AnyResult] = []
    violations = []
    for seed in range(job.first, job.first + job.seeds):
        try:
            results.append(_one(job, seed))
        except Exception as error:  # noqa: BLE001 - whatever a run raises is what we look for
            violations.append({"replay": job.command(seed), "error": f"{type(error).__name__}: {error}"})
    return job, results, violations


def _jobs() -> Iterator[Job]:
    """Without end: the rail; of the election mostly chaos (each twentieth seed with 7 to 16 nodes), every fault on
    every network, quiet hours."""
    first = rail = FIRST_SEED
    while True:
        for net in runs.NETS:
            for fault in runs.FAULTS:
                for _ in range(2):
                    yield Job("chaos", first, BATCH - 1)
                    yield Job("chaos", first + BATCH - 1, 1, nodes=7 + (first // BATCH) % 10)
                    first += BATCH
                yield Job("fault", first, BATCH // 4, net=net, fault=fault)
                for _ in range(3):
                    yield Job("rail", rail, RAIL_BATCH)
                    rail += RAIL_BATCH
            for nodes in (2, 3, 5):
                yield Job("quiet", first + nodes, 1, net=net, nodes=nodes, hours=0.5)


def run_for(minutes: float, processes: int) -> Summary:
    """As many jobs as fit into `minutes` of wall time."""
    summary, jobs, end = Summary(), _jobs(), time.monotonic() + 60 * minutes
    with ProcessPoolExecutor(processes) as pool:
        open_jobs: set[Future[tuple[Job, list[AnyResult], list[dict[str, str]]]]] = set()
        while open_jobs or time.monotonic() < end:
            while len(open_jobs) < 2 * processes and time.monotonic() < end:
                open_jobs.add(pool.submit(_work, next(jobs)))
            done, open_jobs = wait(open_jobs, return_when=FIRST_COMPLETED)
            for future in done:
                summary.add(*future.result())
    return summary


def _replay(job: Job) -> int:
    worlds: list[World | RailWorld] = []
    try:
        if job.kind == "rail":
            found = rail_runs.rail(job.first, on_world=worlds.append)
            print("\n".join(worlds[0].transcript or ()), f"holds: {found}", sep="\n")
            return 0
        if job.kind == "chaos":
            result = runs.chaos(job.first, job.nodes or None, on_world=worlds.append)
        elif job.kind == "fault":
            result = runs.one_fault(job.first, job.net, job.fault, on_world=worlds.append)
        else:
            result = runs.quiet(job.first, job.net, job.nodes, job.hours, on_world=worlds.append)
        end, code = f"holds: agreed after {result.agreed_s:.2f} s, trace {result.digest:08x}", 0
    except AssertionError as error:
        end, code = f"VIOLATED: {error}", 1
    print("\n".join(worlds[0].transcript or ()), end, sep="\n")
    return code


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int)
    parser.add_argument("--nodes", type=int, default=0, help="default: 2 to 6 by the seed; 5 for quiet hours")
    parser.add_argument("--net", choices=runs.NETS, default="wired")
    parser.add_argument("--fault", choices=runs.FAULTS)
    parser.add_argument("--quiet-hours", type=float, default=0.0)
    parser.add_argument("--rail", action="store_true")
    parser.add_argument("--minutes", type=float)
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
    summary = run_for(args.minutes, max(1, args.jobs)).as_dict((time.monotonic() - begin) / 60)
    document = json.dumps(summary, indent=2)
    print(document)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(document + "\n")
    return 1 if summary["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
