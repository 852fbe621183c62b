"""What open streams take: each subject anew, idle, then with 200 and 1,000 streams that say something each second."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from bench.path.measures import Loaded, held, measured
from bench.path.subjects import Subject, subject
from bench.path.usage import pss_bytes, tree
from bench.report import Figure, within

STREAMS = (200, 1000)
SETTLE_S = 5.0
WINDOW_S = 2.0
PACE_US = 1_000_000
SPARE_S = 8.0  # for who takes longer to begin them
GAP_US = 4000.0  # 250 streams begin in a second
KIB, MIB = 2**10, 2**20
IDLE_GOAL_MIB, IDLE_FLOOR_MIB = 40, 60
STREAM_GOAL_KIB, STREAM_FLOOR_KIB = 10, 16


def figures(names: Sequence[str], engine: Subject, folder: Path, realtime: bool) -> list[Figure]:
    """About half a minute each."""
    found: list[Figure] = []
    for name in names:
        with subject(name, engine.port, folder / f"memory-{name}") as one:
            found += _of(one, engine, folder, realtime)
    return found


def _of(one: Subject, engine: Subject, folder: Path, realtime: bool) -> list[Figure]:
    time.sleep(SETTLE_S)
    name, pids, ours = one.name, tree(one.pids), one.name == "ours"
    idle = pss_bytes(pids)
    found = [_judged(f"memory idle: {name}", idle / MIB, "MiB", IDLE_GOAL_MIB, IDLE_FLOOR_MIB, ours)]
    for streams in STREAMS:
        load, size = _open(streams, one, engine, folder, realtime)
        found.append(within(f"memory with {streams} streams: {name}", size / MIB, "MiB", None, None))
        found.append(within(f"of {streams} streams, open at once: {name}", load.peak, "", streams, None))
        found.append(within(f"of {streams} streams, ended well: {name}", load.good, "", streams, None))
        per = (size - idle) / max(1, load.peak) / KIB
    name = f"memory per stream at {STREAMS[-1]}: {name}"
    return [*found, _judged(name, per, "KiB", STREAM_GOAL_KIB, STREAM_FLOOR_KIB, ours)]


def _open(streams: int, one: Subject, engine: Subject, folder: Path, realtime: bool) -> tuple[Loaded, int]:
    """How so many streams went, and what its processes held while they were open, in bytes."""
    sizes: list[int] = []
    kind = held(f"memory{streams}", streams, WINDOW_S, pace_us=PACE_US, gap_us=GAP_US, spare_s=SPARE_S)
    run = measured(kind, one, engine, folder, WINDOW_S, 0, realtime, lambda: sizes.append(pss_bytes(tree(one.pids))))
    return run.load, sizes[0]


def _judged(name: str, value: float, unit: str, goal: float, floor: float, ours: bool) -> Figure:
    """References have no goal."""
    if not ours:
        return within(name, value, unit, None, None)
    figure = within(name, value, unit, None, goal)
    return Figure(
        name, figure.value, unit, f"{figure.goal}, floor {floor:g}{' (missed)' if value > floor else ''}", figure.holds
    )
