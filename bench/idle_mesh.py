"""What a mesh costs each of its nodes while nobody asks anything: real daemons, one to a namespace, the first few with
a loaded model.

`python -m bench.idle_mesh --nodes 5 16 --seconds 600`
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil
from msgspec import Struct

from bench.idle import EVERY_S, MIB, SETTLE_S, cpu_s, slope
from bench.report import ROOT, Figure, publish, within
from demo.model import build_tiny, default_cache
from tests.lab.macs import Mac, agreed, wait_until
from tests.lab.netlab import Lab, unavailable

MODELS = 5  # nodes with a model; further ones only pass on
GOAL_NODES = 5  # goals are for a mesh of so many
WHOLE_S = 300.0  # until all have found each other and loaded
WINDOW_S = 10.0


class Spent(Struct, frozen=True):
    """What one daemon took. `cpu` share of one core, `packets` per second through its network interface (in, out),
    `growth` bytes per hour, `lines` of its log."""

    cpu: float
    packets: tuple[float, float]
    resident: int
    growth: float
    lines: tuple[str, ...]


async def figures(seconds: float, sizes: Sequence[int] = (5, 16)) -> list[Figure]:
    """A mesh of each of these sizes, watched for `seconds`."""
    found: list[Figure] = []
    for size in sizes:
        found += await asyncio.to_thread(_of_one, size, seconds)
    return found


def _of_one(nodes: int, seconds: float) -> list[Figure]:
    model = build_tiny(default_cache() / "tiny-0", seed=0, cache=default_cache())
    with (
        tempfile.TemporaryDirectory(prefix="lab", dir="/tmp", ignore_cleanup_errors=True) as folder,
        Lab(nodes, name=f"i{nodes}n{time.monotonic_ns() % 100_000}") as lab,
    ):
        macs = [
            Mac(lab, name, Path(folder), model=model if n < MODELS else None).start()
            for n, name in enumerate(lab.nodes)
        ]
        wait_until(lambda: agreed(macs), f"{nodes} nodes are one mesh", WHOLE_S)
        with (Path(folder) / "announced").open("w+") as announced:
            lab.popen(macs[0].name, [sys.executable, "-m", "bench.announcements"], cwd=ROOT, stdout=announced)
            time.sleep(SETTLE_S)
            spent, since = _watch(macs, seconds), time.monotonic() - seconds
            updates = most_updates(announced, since)
    return _rows(nodes, spent, updates)


def _watch(macs: Sequence[Mac], seconds: float) -> list[Spent]:
    processes = [psutil.Process(mac.process.pid) for mac in macs if mac.process is not None]
    before = [(cpu_s(p), _packets(p.pid), _lines(mac)) for p, mac in zip(processes, macs, strict=True)]
    began = time.monotonic()
    sizes: list[list[tuple[float, float]]] = [[] for _ in macs]
    while (passed := time.monotonic() - began) < seconds:
        for process, line in zip(processes, sizes, strict=True):
            line.append((passed, float(process.memory_info().rss)))
        time.sleep(EVERY_S)
    passed = time.monotonic() - began
    found = []
    for process, mac, line, (cpu, (heard, said), lines) in zip(processes, macs, sizes, before, strict=True):
        now_heard, now_said = _packets(process.pid)
        found.append(
            Spent(
                cpu=(cpu_s(process) - cpu) / passed,
                packets=((now_heard - heard) / passed, (now_said - said) / passed),
                resident=int(line[-1][1]),
                growth=slope(line[len(line) // 2 :]) * 3600,
                lines=tuple(_lines(mac)[len(lines) :]),
            )
        )
    return found


def _packets(pid: int) -> tuple[int, int]:
    """In and out, so far, through eth0 of the namespace this process is in."""
    for line in Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "eth0":
            fields = counts.split()
            return int(fields[1]), int(fields[9])
    raise LookupError("no eth0")


def _lines(mac: Mac) -> list[str]:
    return (mac.home / "output.log").read_text(errors="replace").splitlines()


def most_updates(announced: IO[str], since: float) -> int:
    """The most changes of one node's TXT record within WINDOW_S."""
    announced.seek(0)
    told = [(float(at), name) for at, _, name in (line.strip().partition(" ") for line in announced)]
    late = [(at, name) for at, name in told if at >= since]
    windows = (Counter(n for t, n in late if at <= t < at + WINDOW_S) for at, _ in late)
    return max((max(window.values()) for window in windows), default=0)


def _rows(nodes: int, spent: Sequence[Spent], updates: int) -> list[Figure]:
    name, goals = f"idle, {nodes} nodes", nodes == GOAL_NODES
    for number, one in enumerate(spent, 1):
        print("".join(f"{name}: mac{number} logged: {line}\n" for line in one.lines), end="", flush=True)
    cpu, resident = [100 * s.cpu for s in spent], [s.resident / MIB for s in spent]
    heard, said = ([s.packets[way] for s in spent] for way in (0, 1))
    return [
        within(f"{name}: processor time of a daemon", sum(cpu) / nodes, "% of a core", None, None),
        within(f"{name}: processor time of the busiest", max(cpu), "% of a core", None, None),
        within(f"{name}: packets in, per daemon", sum(heard) / nodes, "packets/s", None, None),
        within(f"{name}: packets out, per daemon", sum(said) / nodes, "packets/s", None, None),
        within(f"{name}: memory of a daemon", sum(resident) / nodes, "MiB", None, None),
        within(f"{name}: memory of the largest", max(resident), "MiB", None, None),
        within(f"{name}: growth of the fastest", max(s.growth for s in spent) / MIB, "MiB/h", None, None),
        within(f"{name}: changes of a TXT record in {WINDOW_S:.0f} s", updates, "updates", None, 1 if goals else None),
        within(f"{name}: lines in the logs", sum(len(s.lines) for s in spent), "lines", None, 0 if goals else None),
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="bench.idle_mesh", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[5, 16])
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    if why := unavailable():
        sys.exit(f"bench.idle_mesh: {why}")
    print(publish("idle_mesh", asyncio.run(figures(options.seconds, options.nodes))))


if __name__ == "__main__":
    main()
