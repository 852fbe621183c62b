"""What processes take, read from /proc: processor time to the nanosecond, memory as proportional set size."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from bench.daemon import children


def tree(pids: Iterable[int]) -> list[int]:
    """These and all below them."""
    roots = list(pids)
    return roots + [p.pid for root in roots for p in children(root)]


def cpu_s(pids: Iterable[int]) -> float:
    """The scheduler's time of every thread that lives."""
    total = 0
    for pid in pids:
        with suppress(OSError):  # it has ended
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(OSError):
                    total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return total / 1e9


def machine_s() -> float:
    """Processor seconds that all cores were busy, those that a hypervisor took away included."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def pss_bytes(pids: Iterable[int]) -> int:
    """Of all of them."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def set_realtime(pids: Iterable[int], on: bool) -> None:
    """Every thread before all that others run (nice does not reach past a session: autogroups), or among it again.
    Raises PermissionError: this is for root."""
    policy, level = (os.SCHED_RR, 1) if on else (os.SCHED_OTHER, 0)
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                if os.sched_getscheduler(int(task.name)) != policy:
                    os.sched_setscheduler(int(task.name), policy, os.sched_param(level))
