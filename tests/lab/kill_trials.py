"""The coordinator killed again and again while thirty clients ask: nothing runs twice, nothing is lost, no slot leaks.

mac1 and mac2 hold no model and coordinate in turn: the one that is killed is started again while the other decides.
mac3 and mac4 serve, mac5 is where the clients ask; none of these ever coordinates (`mesh-priority` 0). The clients' and
the engines' own notes are what is counted (tests/lab/counted.py), not what the mesh says of itself.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import yaml

from bench.report import Figure, within
from tests.lab.counted import MODEL, Answered, Run, notes
from tests.lab.macs import ROOT, Mac, agreed, wait_until
from tests.lab.netlab import Lab

KILLS, CLIENTS, SLOTS = 20, 30, 4
GAP_S = (0.2, 2.0)  # between a whole mesh and the next kill
END_S = 180.0  # until what is open has ended, however slow the machine
QUIET_S = 30.0  # until every slot is free after that
LOOK_S = 0.2  # between two looks at all nodes


@dataclass
class Result:
    """`twice`: requests whose runs overlapped; `again`: that were begun more than once; `unanswered`: what clients got
    instead of an answer; `held`: what still counted as open at the end, by whom."""

    asked: int = 0
    runs: int = 0
    twice: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    most_open: int = 0  # answers that one engine worked on at a time
    waits_s: list[float] = field(default_factory=list)  # what clients waited for whole answers
    agreed_s: list[float] = field(default_factory=list)  # from a kill until all who are left follow another


@contextmanager
def meshed(folder: Path) -> Iterator[tuple[Lab, list[Mac]]]:
    """The mesh of five, whole. Everything is gone at the end."""
    with Lab(5, name=f"k{os.getpid()}") as lab:
        macs = [
            Mac(lab, f"mac{n}", folder, model=Path(MODEL) if n in (3, 4) else None, mesh_priority=100 if n < 3 else 0)
            for n in range(1, 6)
        ]
        for mac in macs:
            if mac.model:
                serve = [sys.executable, "-m", "tests.lab.counted", "serve", "{port}", str(noted(mac))]
                tier = {"name": MODEL, "model": MODEL, "engine": "command", "command": serve, "slots": SLOTS}
                stack = {"schema_version": 1, "name": "lab", "tiers": [tier]}
                (mac.home / "stacks" / "default.yaml").write_text(yaml.safe_dump(stack))
            mac.start()
        try:
            wait_until(lambda: agreed(macs), "the mesh is whole", END_S)
            yield lab, macs
        except BaseException as error:
            for mac in macs:
                error.add_note(f"{mac.name} said\n{mac.tail()}")
            raise


def noted(mac: Mac) -> Path:
    return mac.home / "runs"


async def killed(kills: int, seed: int = 1) -> Result:
    """Kills the coordinator so many times under load, and counts."""
    rng, result = random.Random(seed), Result()
    with tempfile.TemporaryDirectory(prefix="lab", dir="/tmp", ignore_cleanup_errors=True) as folder:
        with meshed(Path(folder)) as (lab, macs):
            answers = Path(folder) / "answers"
            with asking(lab, answers) as clients:
                await _until(lambda: len(notes(answers, Answered)) >= CLIENTS, "every client has an answer")
                for number in range(kills):
                    await asyncio.sleep(rng.uniform(*GAP_S))
                    result.agreed_s.append(await asyncio.to_thread(_kill, macs))
                    await _until(lambda: agreed(macs), "the mesh is whole again")
                    print(f"kill {number + 1}: {result.agreed_s[-1]:.2f} s, {len(notes(answers, Answered))} answers")
                assert clients.stdin is not None
                clients.stdin.close()
                await _until(lambda: clients.poll() is not None, "what is open has ended")
            with suppress(AssertionError):  # then what is held says so
                await _until(lambda: not _held(macs), "every slot is free", QUIET_S)
            result.held = _held(macs)
            count(result, notes(answers, Answered), [notes(noted(mac), Run) for mac in macs if mac.model])
    return result


async def _until(holds: Callable[[], bool], what: str, limit_s: float = END_S) -> None:
    """Polls, not so often that the looks are a load of their own. An AssertionError names `what` at the limit."""
    end = time.monotonic() + limit_s
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < end, f"not within {limit_s:.0f} s: {what}"
        await asyncio.sleep(LOOK_S)


@contextmanager
def asking(lab: Lab, answers: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The clients, on mac5. The end of their input ends them."""
    argv = [sys.executable, "-m", "tests.lab.counted", "ask", "http://localhost:4000/v1", str(answers), str(CLIENTS)]
    process = lab.popen("mac5", argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _kill(macs: list[Mac]) -> float:
    """Until all who are left follow the other one; the killed one has been started again."""
    name = macs[-1].said().mesh.coordinator
    lost, other = sorted(macs[:2], key=lambda mac: mac.name != name)
    at = lost.kill()
    left = [mac for mac in macs if mac is not lost]
    wait_until(lambda: all(mac.coordinator == other.name for mac in left), f"{other.name} coordinates", END_S)
    took_s = time.monotonic() - at
    lost.start()
    return took_s


def _held(macs: list[Mac]) -> list[str]:
    """What the nodes still count as open."""
    held = []
    for mac in macs:
        status = mac.said()
        if status.mesh.in_flight or status.mesh.queue_depth:
            held.append(f"{mac.name}: {status.mesh.in_flight} in flight, {status.mesh.queue_depth} waiting in the mesh")
        own = next(n for n in status.nodes if n.name == mac.name)
        held += [f"{mac.name}: {m.in_flight} hold slots of {m.name}" for m in own.models if m.in_flight]
    return held


def count(result: Result, answers: list[Answered], engines: list[list[Run]]) -> None:
    """What the notes of both ends say."""
    runs = [run for engine in engines for run in engine]
    begun = Counter(run.mark for run in runs if run.what == "begin")
    result.asked, result.runs = len(answers), sum(begun.values())
    result.again = [f"{mark}: {count} times" for mark, count in begun.items() if count > 1]
    open_: dict[str, int] = defaultdict(int)
    for run in sorted(runs, key=lambda r: (r.at, r.what == "begin")):
        open_[run.mark] += 1 if run.what == "begin" else -1
        if open_[run.mark] > 1:
            result.twice.append(run.mark)
    result.held += [f"an engine still works on {mark}" for mark, count in open_.items() if count]
    result.unanswered = [f"{a.mark}: {a.wrong}" for a in answers if a.wrong]
    known = {a.mark for a in answers}
    result.unanswered += [f"{mark}: its client never heard of it" for mark in begun if mark not in known]
    result.most_open = max((run.open for run in runs), default=0)
    result.waits_s = sorted(a.end - a.start for a in answers if not a.wrong)


async def figures(trials: int) -> list[Figure]:
    """Twenty kills for each of `trials`."""
    found = await killed(KILLS * trials)
    for what in (*found.twice, *found.again, *found.unanswered, *found.held):
        print(f"coordinator killed: {what}", flush=True)
    name, waits = f"coordinator killed under {CLIENTS} clients", found.waits_s
    return [
        within(f"{name}: times", len(found.agreed_s), "kills", KILLS * trials, None),
        within(f"{name}: requests", found.asked, "requests", 1, None),
        within(f"{name}: run twice at a time", len(found.twice), "requests", None, 0),
        within(f"{name}: begun more than once", len(found.again), "requests", None, 0),
        within(f"{name}: lost or failed", len(found.unanswered), "requests", None, 0),
        within(f"{name}: still held at the end", len(found.held), "slots", None, 0),
        within(f"{name}: answers at a time on one engine", found.most_open, "answers", None, 2 * SLOTS),
        within(f"{name}: until all follow another, median", median(found.agreed_s), "s", None, None),
        within(f"{name}: until all follow another, max", max(found.agreed_s), "s", None, None),
        within(f"{name}: whole answer, median", median(waits) if waits else None, "s", None, None),
        within(f"{name}: whole answer, max", waits[-1] if waits else None, "s", None, None),
    ]
