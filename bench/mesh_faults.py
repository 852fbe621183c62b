"""A mesh of five under one fault after the other, on three networks, while a client asks all the time."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.report import OUT, Figure, below, within
from demo.model import build_tiny, default_cache
from tests.lab.trials import LATE_S, MAJOR, MINOR, SHAPES, Five, Outcome, Trial, TrialError, five

WIRED, WIFI, BAD = SHAPES
MEASURED: dict[str, tuple[str, ...]] = {"coordinator drained": ("", "undrained"), "partition 2|3": ("", "healed")}
KILLED_S, SILENT_S, BAD_S, HEALED_S = 0.1, 0.6, 1.5, 3.0  # issue 4: Shows 2, and Shows 5 for a new address
PAUSE_S = 0.05  # between an answer and the client's next question: time for the machine to be Macs, not only clients
VOID_MOST = 1  # for each trial that should count; then it is given up


@dataclass
class Tally:
    """What the trials on one network came to. `seconds` by kind and by what was waited for."""

    seconds: defaultdict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    missed: set[str] = field(default_factory=set)  # kinds of which a trial did not come to its end
    wrong: int = 0
    asked: int = 0
    failed: int = 0
    void: int = 0
    counted: int = 0


async def figures(trials: int, minor_trials: int, networks: Sequence[str]) -> list[Figure]:
    """On each of `networks` so many trials of each kind; rows of the others are without a value."""
    found = []
    wanted = len(MAJOR) * trials + len(MINOR) * minor_trials
    for network in SHAPES:
        tally = await _network(network, trials, minor_trials) if network in networks else None
        found += _rows(network, tally, wanted)
    return found


async def _network(network: str, trials: int, minor_trials: int) -> Tally:
    tally, model = Tally(), build_tiny(default_cache() / "tiny-lab", layers=12, seed=5)
    with tempfile.TemporaryDirectory(prefix="lab", dir="/tmp", ignore_cleanup_errors=True) as folder:
        try:
            async with five(Path(folder), model, network, workers=2, pause_s=PAUSE_S) as mesh:
                for kinds, count in ((MAJOR, trials), (MINOR, minor_trials)):
                    await _kinds(mesh, kinds, count, tally, network)
        except (TrialError, AssertionError) as error:
            print(f"{network}: no further trials: {error}", flush=True)
            tally.wrong += 1
        if tally.wrong or tally.failed:
            _keep_logs(Path(folder), network)
    return tally


async def _kinds(mesh: Five, kinds: Mapping[str, Trial], count: int, tally: Tally, network: str) -> None:
    for kind, trial in kinds.items():
        done = voided = 0
        while done < count and voided <= VOID_MOST * count:
            mesh.number = done
            void = await _one(mesh, kind, trial, tally, network)
            done, voided = done + (not void), voided + void


async def _one(mesh: Five, kind: str, trial: Trial, tally: Tally, network: str) -> bool:
    """One trial, and the mesh whole again; whether it is void. TrialError when the mesh does not become whole."""
    before, at = len(mesh.asker.said()), time.monotonic()
    who = mesh.coordinator.name
    try:
        outcome = await trial(mesh)
    except (TrialError, AssertionError) as error:
        outcome = Outcome({}, (str(error),))
    ended = time.monotonic()
    await mesh.mend()
    await mesh.whole()
    said = mesh.asker.said()[before:]
    failed = [s.error for s in said if s.error]
    late_s = mesh.lab.late_s(at, ended)
    void = late_s > LATE_S
    told = ", ".join(f"{f'{what} ' if what else ''}{1000 * s:.0f} ms" for what, s in outcome.seconds.items())
    print(
        f"{network}; {kind} ({who} coordinated): {told or 'NOT'}; {len(said)} asked, {len(failed)} failed, slowest "
        f"{max((s.end - s.start for s in said), default=0):.2f} s, took {time.monotonic() - at:.1f} s"
        f"{f'; VOID: a relay was {1000 * late_s:.0f} ms late' if void else ''}"
        f"{''.join(f'{chr(10)}    {text}' for text in (*outcome.wrong, *failed[:3]))}",
        flush=True,
    )
    if void:
        tally.void += 1
        return True
    tally.counted += 1
    tally.asked += len(said)
    tally.failed += len(failed)
    tally.wrong += bool(outcome.wrong)
    if not outcome.seconds:
        tally.missed.add(kind)
    for what, seconds in outcome.seconds.items():
        tally.seconds[kind, what].append(seconds)
    return False


def _keep_logs(folder: Path, network: str) -> None:
    """What the daemons said, for whoever looks into it."""
    kept = OUT / "mesh-logs" / network.replace(" ", "-").replace(",", "")
    shutil.rmtree(kept, ignore_errors=True)
    for file in folder.glob("mac*/output.log"):
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, kept / f"{file.parent.name}.log")
    print(f"{network}: the daemons' logs are in {kept}", flush=True)


def _rows(network: str, tally: Tally | None, wanted: int) -> list[Figure]:
    found = []
    for kind in (*MAJOR, *MINOR):
        for what in MEASURED.get(kind, ("",)):
            seconds = tally.seconds[kind, what] if tally and kind not in tally.missed else []
            name = f"{network}; {kind}{f', {what}' if what else ''}: agreed"
            goal = _goal(network, kind)
            for word, value in (("median", median(seconds)), ("max", max(seconds))) if seconds else _NOTHING:
                row = f"{name}, {word}"
                found.append(below(row, value, "s", goal) if goal else within(row, value, "s", None, None))
    counts: tuple[tuple[str, str, str, int | None, int | None], ...] = (
        ("failed", "plain requests failed", "requests", None, 0),
        ("asked", "plain requests asked", "requests", 1, None),
        ("wrong", "trials with a term too many, a false death or no end", "trials", None, 0),
        ("counted", "trials that count", "trials", wanted, None),
        ("void", "trials that are void: a relay of the lab was late", "trials", None, None),
    )
    for field_, words, unit, least, most in counts:
        found.append(within(f"{network}: {words}", getattr(tally, field_, None), unit, least, most))
    return found


_NOTHING: tuple[tuple[str, float | None], ...] = (("median", None), ("max", None))


def _goal(network: str, kind: str) -> float | None:
    if kind == "address changed":
        return HEALED_S
    if kind not in MAJOR:
        return None
    if network != WIRED:
        return BAD_S
    return KILLED_S if kind == "coordinator killed" else SILENT_S
