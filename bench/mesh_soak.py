"""Quiet hours under load: five nodes on Wi-Fi, both cores busy with real model work, and nobody may notice anything."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import psutil

from bench.report import Figure, within
from demo.model import build_chat, default_cache
from tests.lab.trials import LATE_S, Five, TrialError, five

WORKERS = 4  # two for each of the two nodes that serve
MAX_TOKENS = 60
LOOK_S = 1.0  # between two looks at the clock, and at whether it is time to say how far it is
SAY_S = 60.0
LATE_BEFORE_S = 3.0  # an election this soon after a late relay is the lab's: suspicion and asking take 1.65 s at most


async def figures(seconds: float, network: str) -> list[Figure]:
    """Watches for so long; 0: rows without values."""
    found: list[float | None] = [None] * 6
    if seconds:
        try:
            with tempfile.TemporaryDirectory(prefix="lab", dir="/tmp", ignore_cleanup_errors=True) as folder:
                chat = build_chat(default_cache())
                asking = {"workers": WORKERS, "max_tokens": MAX_TOKENS, "stream": True}
                async with five(Path(folder), chat, network, **asking) as mesh:
                    found = await _watch(mesh, seconds)
        except (TrialError, AssertionError) as error:
            print(f"soak: {error}", flush=True)
    elections, deaths, void, failed, asked, busy = found
    name = f"soak, {network}"
    return [
        within(f"{name}: minutes", seconds / 60 if elections is not None else None, "min", None, None),
        within(f"{name}: elections", elections, "elections", None, 0),
        within(f"{name}: false deaths", deaths, "deaths", None, 0),
        within(f"{name}: elections and deaths that a late relay of the lab explains", void, "", None, None),
        within(f"{name}: processor busy", busy, "% of all cores", 90, None),
        within(f"{name}: streams answered", asked, "streams", 1, None),
        within(f"{name}: streams failed", failed, "streams", None, 0),
    ]


async def _watch(mesh: Five, seconds: float) -> list[float | None]:
    began, before = time.monotonic(), len(mesh.asker.said())
    psutil.cpu_percent()
    say_at = began + SAY_S
    while (now := time.monotonic()) < began + seconds:
        await asyncio.sleep(LOOK_S)
        if now > say_at:
            say_at += SAY_S
            print(f"soak: {(now - began) / 60:.1f} min, {len(mesh.asker.said()) - before} streams", flush=True)
    busy = psutil.cpu_percent()
    said = mesh.asker.said()[before:]
    told = [
        t
        for mac in mesh.macs
        for t in mac.log.told()
        if t.at >= began and (t.event == "coordinator" or t.level == "warning")
    ]
    for one in told:
        print(f"soak: after {(one.at - began) / 60:.1f} min: {one.message}", flush=True)
    ours = [one for one in told if mesh.lab.late_s(one.at - LATE_BEFORE_S, one.at) <= LATE_S]
    return [
        len({one.term for one in ours if one.event == "coordinator"}),
        sum(one.event == "node" for one in ours),
        len(told) - len(ours),
        sum(bool(s.error) for s in said),
        len(said),
        busy,
    ]
