"""What a node costs that nobody asks anything: processor time, growth of memory, lines in its logs.

`python -m bench.idle --seconds 600` measures it alone and in a mesh of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import psutil
from msgspec import Struct

from bench.daemon import Daemon, children, running
from bench.report import Figure, publish, within
from demo.model import build_tiny, default_cache

MODELS = 4
SETTLE_S = 20.0  # what a start still does: first measurements, caches that fill once
EVERY_S = 1.0
MIB = 2**20


class Idle(Struct, frozen=True):
    """Shares of one core (0.01 = 1 %); `growth` bytes of the daemon per hour, fitted over the second half; `lines`
    in the daemon's log, `workers_lines` in those of its workers."""

    daemon_cpu: float
    workers_cpu: float
    growth: float
    resident: int
    lines: tuple[str, ...]
    workers_lines: int


def measure(daemon: Daemon, seconds: float) -> Idle:
    """Watches it for `seconds`. What is in memory must have been loaded before."""
    time.sleep(SETTLE_S)
    process = psutil.Process(daemon.pid)
    workers = children(daemon.pid)
    before, workers_before, lines = cpu_s(process), sum(map(cpu_s, workers)), _lines(daemon)
    began = time.monotonic()
    sizes: list[tuple[float, float]] = []
    while (passed := time.monotonic() - began) < seconds:
        sizes.append((passed, float(process.memory_info().rss)))
        time.sleep(EVERY_S)
    passed = time.monotonic() - began
    new = {file: found[len(lines.get(file, ())) :] for file, found in _lines(daemon).items()}
    return Idle(
        daemon_cpu=(cpu_s(process) - before) / passed,
        workers_cpu=(sum(map(cpu_s, workers)) - workers_before) / passed,
        growth=slope(sizes[len(sizes) // 2 :]) * 3600,
        resident=int(sizes[-1][1]),
        lines=tuple(new.pop("daemon.log", [])),
        workers_lines=sum(map(len, new.values())),
    )


def cpu_s(process: psutil.Process) -> float:
    """Processor seconds so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _lines(daemon: Daemon) -> dict[str, list[str]]:
    """By file."""
    return {f.name: f.read_text(errors="replace").splitlines() for f in (daemon.home / "logs").glob("*.log")}


def slope(points: list[tuple[float, float]]) -> float:
    """Of the least-squares line."""
    middle = sum(x for x, _ in points) / len(points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * y for x, y in points) / spread if spread else 0.0


def figures(cache: Path, seconds: float) -> list[Figure]:
    """Alone and in a mesh, `seconds` each."""
    models = [build_tiny(cache / f"tiny-{seed}", seed=seed, cache=cache) for seed in range(MODELS)]
    tiers = [{"name": model.name, "model": str(model), "keep-alive": -1} for model in models]
    found: list[Figure] = []
    for kind, mesh in (("alone", False), ("in a mesh", True)):
        with (
            tempfile.TemporaryDirectory(prefix="mlx-b-") as folder,
            running(
                Path(folder), tiers, memory_budget="8GB", mesh_enabled=mesh, mesh_name=f"bench-{time.monotonic_ns()}"
            ) as daemon,
        ):
            daemon.wait_ready()
            idle = measure(daemon, seconds)
        print(f"{kind}, {seconds:.0f} s, {MODELS} models loaded: it takes {idle.resident / MIB:.0f} MiB, and logged")
        print("".join(f"  {line}\n" for line in idle.lines) or "  nothing\n", end="", flush=True)
        found += [
            within(f"idle, {kind}: processor time of the daemon", 100 * idle.daemon_cpu, "% of a core", None, 1.0),
            within(f"idle, {kind}: processor time of its workers", 100 * idle.workers_cpu, "% of a core", None, None),
            within(f"idle, {kind}: growth of the daemon", idle.growth / MIB, "MiB/h", None, 6.0),
            within(f"idle, {kind}: lines in the daemon's log", len(idle.lines), "lines", None, 0),
            within(f"idle, {kind}: lines in its workers' logs", idle.workers_lines, "lines", None, 0),
        ]
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="bench.idle", description=__doc__)
    parser.add_argument("--cache", type=Path, default=None, help="where demo models are kept")
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    print(publish("idle", figures(options.cache or default_cache(), options.seconds)))


if __name__ == "__main__":
    main()
