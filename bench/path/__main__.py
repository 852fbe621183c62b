"""`make bench-path`: what a request costs on its way through this program, beside nginx and haproxy.

Loader and engine (C, compiled by gcc at the first run) on one core, what is measured on another; all subjects one after
the other, round after round, so that a busy machine harms all alike.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

from bench.path import memory
from bench.path.measures import Measure, Run, held, measured, measures
from bench.path.native import missing
from bench.path.profile import profiled, written
from bench.path.rows import Bench, figures
from bench.path.subjects import REFERENCES, Subject, engine, subject
from bench.report import Figure, publish

RATES = (1000.0, 800.0, 600.0, 400.0, 200.0, 100.0, 50.0)
RATE_PART = 0.6  # of what a subject can do: at more, it would be its queue that is measured
CROWDS = (400, 200, 100, 50, 25)
TRIES = 3  # the best counts: the first requests warm it up
FULL = 0.85  # of a core: above it the crowd is smaller
KINDS = ("requests", "long", "paced", "first", "hop", "crowd", "burst", "memory")


def within_reach(
    ours: list[Subject], direct: Subject, folder: Path, seconds: float, realtime: bool
) -> tuple[float, int]:
    """A rate and a crowd that everybody can do; the others can do more than ours."""
    rate, crowd = RATES[0], CROWDS[0]
    for one in ours:
        asked = [measured(measures(seconds, 0, 1)["requests"], one, direct, folder, seconds) for _ in range(TRIES)]
        cost_us = min((r.cpu_us for r in asked if r.cpu_us is not None), default=1e6)
        able = 1e6 / cost_us  # by its processor time: others may have had the core
        rate = next((r for r in RATES if r <= min(rate, able * RATE_PART)), RATES[-1])
        for streams in CROWDS:
            run = measured(held("crowd", streams, seconds), one, direct, folder, seconds, realtime=realtime)
            crowd = min(crowd, streams)
            if run.load.peak == streams and run.cpu_s / run.load.seconds < FULL:
                break
    return rate, crowd


def profile(one: Subject, direct: Subject, folder: Path, chosen: list[Measure]) -> None:
    """Each kind of load, while the profilers look."""
    print(written("\n".join(_profile(one, direct, folder, measure) for measure in chosen)))


def _profile(one: Subject, direct: Subject, folder: Path, measure: Measure) -> str:
    found: list[str] = []
    watcher = Thread(target=lambda: found.append(profiled(one.pids[0], 5.0)))
    measured(measure, one, direct, folder, 14.0, during=watcher.start)
    watcher.join()
    return f"== {measure.name}\n\n{found[0]}"


def run(options: argparse.Namespace) -> list[Figure]:
    """Everything."""
    chosen = set(options.only) or set(KINDS)
    with tempfile.TemporaryDirectory(prefix="mlx-b-") as folder, ExitStack() as stack:
        home = Path(folder)
        home.chmod(0o755)  # nginx's worker may be another user
        direct = stack.enter_context(engine())
        names = [*REFERENCES, "ours", *(["two"] if options.two else [])]
        found: list[Figure] = []
        if "memory" in chosen:
            found = memory.figures(names, direct, home, options.realtime)
        if not chosen - {"memory"}:
            return found
        subjects = [direct, *(stack.enter_context(subject(n, direct.port, home / n)) for n in names)]
        ours = [s for s in subjects if s.name in ("ours", "two")]
        rate, crowd = within_reach(ours, direct, home, options.seconds, options.realtime)
        print(f"open loop at {rate:g} req/s, crowd of {crowd} streams", flush=True)
        kinds = [m for m in measures(options.seconds, rate, crowd).values() if m.name in chosen]
        runs: list[Run] = []
        for number in range(options.rounds):
            began, turn = time.monotonic(), number % len(subjects)
            for kind in kinds:
                order = subjects[turn:] + subjects[:turn]
                runs += [measured(kind, one, direct, home, options.seconds, number, options.realtime) for one in order]
            print(f"round {number + 1} of {options.rounds}: {time.monotonic() - began:.0f} s", flush=True)
        if options.profile:
            profile(ours[0], direct, home, [k for k in kinds if k.mode != "hold"])
        return figures(Bench(runs, rate, crowd)) + found


def main() -> None:
    """Prints the table and writes bench/out/path.json; a goal that is missed is reported, no failure."""
    parser = argparse.ArgumentParser(prog="bench.path", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each window")
    parser.add_argument("--only", nargs="+", default=[], choices=KINDS, help="these measures only")
    parser.add_argument(
        "--realtime", action="store_true", help="before all that others run, where it does not fill the cores (root)"
    )
    parser.add_argument("--two", action="store_true", help="through two nodes as well: edge, peer, engine")
    parser.add_argument("--profile", action="store_true", help="afterwards, into bench/out/path-profile.txt")
    options = parser.parse_args()
    if why := missing("gcc", *REFERENCES):
        sys.exit(f"bench-path: {why}")
    print(publish("path", run(options)))


if __name__ == "__main__":
    main()
