"""Two Macs of which one is lost: the other serves, has the name and says that it is alone; a deaf one takes nothing.

mac1 and mac2 are the mesh, and both serve. mac3 is their router and a client that follows the name by avahi.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.report import Figure, below, within
from demo.model import build_tiny, default_cache
from tests.lab.macs import Asker, Mac, agreed, coordinator_of, leads_to, revive
from tests.lab.netlab import Lab
from tests.lab.trials import LIMIT_S, WATCH_S, WHOLE_S, Outcome, TrialError, until

AGREED_S = 5.0  # the acceptance line for a new coordinator; the name and an answer come on top


@dataclass
class Pair:
    """The mesh of two. `number` counts its trials: the coordinator is lost in every other one."""

    lab: Lab
    macs: list[Mac]
    model: str
    number: int = 0

    def lost_and_left(self) -> tuple[Mac, Mac]:
        coordinator = coordinator_of(self.macs)
        first, second = sorted(self.macs, key=lambda mac: mac is not coordinator)
        return (first, second) if self.number % 2 == 0 else (second, first)

    async def whole(self) -> None:
        await until(lambda: agreed(self.macs), "both agree", WHOLE_S)

    async def survives(self, left: Mac, at: float) -> float:
        """Until the one that is left rules itself, says so and has the name; and its answer to a question. Returns the
        seconds since `at`, without those that the client needs to start."""

        def alone() -> bool:
            mesh = left.said().mesh
            return mesh.alone and mesh.coordinator == left.name

        await until(alone, f"{left.name} says that it is alone")
        await until(lambda: self.name_leads_to() == left.ip, f"the name leads to {left.name}")
        seconds = time.monotonic() - at
        return seconds + await self.answers(left)

    async def answers(self, mac: Mac) -> float:
        """A question asked on this Mac; returns the seconds its answer took."""
        with Asker(self.lab, mac.name, "http://localhost:4000/v1", self.model, count=1) as client:
            said = await asyncio.to_thread(client.go().wait)
        if failed := [s.error for s in said if s.error]:
            raise TrialError(f"{mac.name} does not answer: {failed[0]}")
        return said[0].end - said[0].start

    def name_leads_to(self) -> str:
        """As a program on mac3 finds it; "" for nowhere."""
        return leads_to(self.lab, "mac3")

    async def mend(self) -> None:
        await asyncio.to_thread(self.lab.rejoin)
        revive(self.macs)


async def killed(pair: Pair) -> Outcome:
    lost, left = pair.lost_and_left()
    return Outcome({"": await pair.survives(left, lost.kill())})


async def down(pair: Pair) -> Outcome:
    lost, left = pair.lost_and_left()
    seconds = await pair.survives(left, lost.terminate())
    await until(lambda: not lost.runs, f"{lost.name} has ended")
    return Outcome({"": seconds})


async def frozen(pair: Pair) -> Outcome:
    lost, left = pair.lost_and_left()
    return Outcome({"": await pair.survives(left, lost.freeze())})


async def cut(pair: Pair) -> Outcome:
    """The one that is cut off serves its own user too."""
    lost, left = pair.lost_and_left()
    pair.lab.cut(lost.name)
    seconds = await pair.survives(left, time.monotonic())
    await pair.answers(lost)
    return Outcome({"": seconds})


async def deaf(pair: Pair) -> Outcome:
    """It is heard, but hears nobody: it serves its own user, in the old term, and the name leads to the other."""
    lost, left = pair.lost_and_left()
    term = max(mac.log.rulings()[-1].term for mac in pair.macs)
    pair.lab.partition([left.name, "mac3"], [lost.name], one_way=True)
    at = time.monotonic()

    await until(lambda: left.coordinator == left.name, f"{left.name} coordinates")
    await until(lambda: pair.name_leads_to() == left.ip, f"the name leads to {left.name}")
    seconds = time.monotonic() - at + await pair.answers(left)
    await pair.answers(lost)
    taken = []
    while time.monotonic() < at + WATCH_S:
        if (where := pair.name_leads_to()) != left.ip:
            taken.append(f"the name leads to {where or 'nowhere'}")
        await asyncio.sleep(0.05)
    taken += [
        f"{lost.name} took term {t.term}" for t in lost.log.rulings() if t.term > term and t.coordinator == lost.id
    ]
    return Outcome({"": seconds}, tuple(taken[:1]))


TRIALS: dict[str, Callable[[Pair], Awaitable[Outcome]]] = {
    "killed": killed,
    "down": down,
    "frozen": frozen,
    "cut": cut,
    "deaf": deaf,
}


@contextmanager
def _two(folder: Path, model: Path) -> Iterator[Pair]:
    with Lab(3, name=f"p{os.getpid()}") as lab:
        lab.avahi("mac3")
        macs = [Mac(lab, f"mac{n}", folder, model=model) for n in (1, 2)]
        for mac in macs:
            lab.run(mac.name, ["ip", "route", "add", "default", "via", lab.ip("mac3")], check=True)
            mac.start()
        yield Pair(lab, macs, model.name)


async def figures(trials: int) -> list[Figure]:
    """Of each kind of loss twice as many as `trials`, so that both the coordinator and the other are lost."""
    found: dict[str, list[float]] = {kind: [] for kind in TRIALS}
    wrong: list[str] = []
    model = build_tiny(default_cache() / "tiny-lab", layers=12, seed=5)
    with tempfile.TemporaryDirectory(prefix="lab", dir="/tmp", ignore_cleanup_errors=True) as folder:
        with _two(Path(folder), model) as pair:
            for kind, trial in TRIALS.items():
                for pair.number in range(2 * trials):
                    try:
                        await pair.whole()
                        outcome = await trial(pair)
                    except (TrialError, AssertionError) as error:
                        outcome = Outcome({"": float("inf")}, (str(error),))
                    await pair.mend()
                    found[kind].append(outcome.seconds[""])
                    wrong += [
                        f"{kind}, {'coordinator' if pair.number % 2 == 0 else 'other'}: {w}" for w in outcome.wrong
                    ]
                    print(f"two nodes, {kind}: {outcome.seconds['']:.3f} s {'; '.join(outcome.wrong)}", flush=True)
    rows = []
    for kind, seconds in found.items():
        name = f"two nodes, the other {kind}: the survivor serves, has the name, is alone"
        most = max(seconds) if seconds and max(seconds) < LIMIT_S else None
        rows += [
            within(f"{name}, median", median(seconds) if most is not None else None, "s", None, None),
            below(f"{name}, max", most, "s", AGREED_S),
        ]
    return [*rows, within("two nodes: trials in which something went wrong", len(wrong), "trials", None, 0)]
