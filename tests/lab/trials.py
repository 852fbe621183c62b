"""Trials: one fault of a mesh of five real daemons each, and how long until all that are left agree again.

The mesh stays up from trial to trial; each trial gives back what it took. mac1 and mac2 hold no model, mac3 and mac4
serve one; any of the four may coordinate, since they have one priority: no handover disturbs a trial. mac5 holds no
model, never coordinates, and is where the client asks, all the time.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mesh.answers import MeshStatus, Node
from tests.lab.macs import Asker, Mac, Said, revive
from tests.lab.netlab import Lab
from tests.lab.told import agreement

LIMIT_S = 30.0  # for what should take a second or two: the machine may be slow and busy
WHOLE_S = 90.0  # until a restarted node serves again
FIRST_S = 300.0  # until the chat model on a busy machine has given its first answer
WATCH_S = 4.0  # of a fault that should change nothing: twice the longest suspicion and asking
LATE_S = 0.05  # half a heartbeat: a relay this late has made a fault of its own


class Shape(NamedTuple):
    """Of every node's link, in both directions: so a packet between two nodes meets it twice."""

    jitter_ms: float
    loss: float  # share of the packets


SHAPES: dict[str, Shape | None] = {
    "wired": None,
    "15 ms jitter, 1 % loss": Shape(15, 0.01),
    "100 ms jitter, 5 % loss": Shape(100, 0.05),
}


class TrialError(Exception):
    """Something did not come about within its limit; the text names it."""


async def until(holds: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """Polls until `holds()` is true. TrialError names `what` at the limit."""
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start > limit_s:
            raise TrialError(f"not within {limit_s:.0f} s: {what}")
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Outcome:
    """What a trial measured, in seconds by what was waited for, and in `wrong` what should not have been."""

    seconds: dict[str, float]
    wrong: tuple[str, ...] = ()


@dataclass
class Five:
    """The mesh that trials are made with. `number` counts them, so that each falls on other nodes than the last."""

    lab: Lab
    macs: list[Mac]
    asker: Asker
    number: int = 0
    addresses: int = field(default=100, init=False)  # the last part of the address that was given away last

    @property
    def entry(self) -> Mac:
        return self.macs[-1]

    @property
    def coordinator(self) -> Mac:
        """Whom all follow. Only to be asked of a whole mesh."""
        found = agreement([mac.log for mac in self.macs], [mac.id for mac in self.macs])
        assert found is not None, "the mesh is not whole"
        return next(mac for mac in self.macs if mac.id == found.coordinator)

    @property
    def term(self) -> int:
        return max(mac.log.rulings()[-1].term for mac in self.macs)

    def others(self, *but: Mac) -> list[Mac]:
        """The Macs without these, beginning with another one in each trial; the entry comes last."""
        rest = [mac for mac in self.macs[:-1] if mac not in but]
        turn = self.number % len(rest)
        return [*rest[turn:], *rest[:turn], *([self.entry] if self.entry not in but else [])]

    async def statuses(self, macs: Sequence[Mac]) -> list[MeshStatus | None]:
        return await asyncio.gather(*(asyncio.to_thread(mac.status) for mac in macs))

    async def seen(
        self, macs: Sequence[Mac], good: Callable[[list[MeshStatus]], bool], what: str, limit_s: float
    ) -> float:
        """Polls until `good` of what all these say; returns when (monotonic)."""
        start = time.monotonic()
        while True:
            found = await self.statuses(macs)
            statuses = [status for status in found if status is not None]
            if len(statuses) == len(found) and good(statuses):
                return time.monotonic()
            if time.monotonic() - start > limit_s:
                told = "; ".join(_summary(mac, status) for mac, status in zip(macs, found, strict=True))
                raise TrialError(f"not within {limit_s:.0f} s: {what}: {told}")
            await asyncio.sleep(0.02)

    async def whole(self, limit_s: float = WHOLE_S) -> float:
        """Until all five are well for each other, with every model ready, under one coordinator; returns when."""
        return await self.seen(self.macs, _whole, "the mesh is whole", limit_s)

    async def agreed(self, left: Sequence[Mac], lost: Sequence[Mac] = ()) -> float:
        """Until those who are left agree on one of them, in a term after which nothing changed while the client got
        its next answers; returns since when (monotonic)."""
        logs, ids = [mac.log for mac in left], [mac.id for mac in left if mac not in lost]
        while True:
            await until(lambda: agreement(logs, ids), "those who are left agree")
            found = agreement(logs, ids)
            await self.answered()
            if found is not None and agreement(logs, ids) == found:
                return found.at

    async def answered(self, requests: int = 5, limit_s: float = LIMIT_S) -> None:
        """Until the client has got so many answers to questions it asks from now on."""
        since = time.monotonic()
        await until(lambda: _answers(self.asker.said(), since) >= requests, "the client is answered", limit_s)

    async def mend(self) -> None:
        """Takes every fault back, but not the shape of the network."""
        await asyncio.to_thread(self.lab.rejoin)
        revive(self.macs)

    def new_address(self) -> str:
        self.addresses += 1
        return f"{self.lab.subnet}.0.{self.addresses}"


def _whole(statuses: Sequence[MeshStatus]) -> bool:
    names = {status.self_name for status in statuses}
    ruled = {(status.mesh.coordinator, status.mesh.term) for status in statuses}
    nodes = [node for status in statuses for node in status.nodes if node.state not in ("dead", "incompatible")]
    return (
        len(ruled) == 1
        and all({n.name for n in status.nodes if n.state == "ok"} == names for status in statuses)
        and all(model.state in ("ready", "busy") for node in nodes for model in node.models)
        and all(sum(bool(n.models) for n in status.nodes if n.state == "ok") == 2 for status in statuses)
    )


def _summary(mac: Mac, status: MeshStatus | None) -> str:
    if status is None:
        return f"{mac.name} says nothing"
    nodes = " ".join(f"{n.name}={n.state}" for n in status.nodes)
    return f"{mac.name} follows {status.mesh.coordinator} in {status.mesh.term}, {nodes}"


def _answers(said: list[Said], since: float) -> int:
    count = 0
    for one in reversed(said):
        if one.end < since:
            break
        count += one.start >= since and not one.error
    return count


Trial = Callable[[Five], Awaitable[Outcome]]


# The coordinator is lost


async def coordinator_killed(mesh: Five) -> Outcome:
    return await _succeeded(mesh, lambda lost: lost.kill())


async def coordinator_cut(mesh: Five) -> Outcome:
    return await _succeeded(mesh, lambda lost: cut(mesh, lost))


async def coordinator_frozen(mesh: Five) -> Outcome:
    return await _succeeded(mesh, lambda lost: lost.freeze())


async def coordinator_down(mesh: Five) -> Outcome:
    """`mlx-stack down`, or SIGTERM: it hands over, finishes what it has and leaves."""
    lost = mesh.coordinator
    outcome = await _succeeded(mesh, lambda lost: lost.terminate())
    await until(lambda: not lost.runs, f"{lost.name} has ended")
    return outcome


async def _succeeded(mesh: Five, lose: Callable[[Mac], float]) -> Outcome:
    lost, term = mesh.coordinator, mesh.term
    left = [mac for mac in mesh.macs if mac is not lost]
    at = lose(lost)
    since = await mesh.agreed(left)
    return Outcome({"": since - at}, _terms(mesh, left, term, 1))


def cut(mesh: Five, mac: Mac) -> float:
    """Not a packet from or to it, and no sign of that. Returns when (monotonic)."""
    mesh.lab.cut(mac.name)
    return time.monotonic()


def _terms(mesh: Five, left: Sequence[Mac], before: int, most: int) -> tuple[str, ...]:
    """A word about more new terms than the fault may cost."""
    new = max(mac.log.rulings()[-1].term for mac in left) - before
    return (f"{new} new terms",) if new > most else ()


async def coordinator_drained(mesh: Five) -> Outcome:
    """`mesh drain` of the coordinator, said at the entry: until all show it, and the same after `undrain`."""
    drained, client = mesh.coordinator.name, mesh.entry.client
    seconds = {
        "": await _shown(mesh, drained, "draining", client.drain),
        "undrained": await _shown(mesh, drained, "ok", client.undrain),
    }
    return Outcome(seconds)


async def _shown(mesh: Five, name: str, state: str, ask: Callable[[str], object]) -> float:
    at = time.monotonic()
    await asyncio.to_thread(ask, name)
    seen = await mesh.seen(mesh.macs, lambda found: _agree(found, name, state), f"{name} is {state}", LIMIT_S)
    await mesh.answered()
    return seen - at


def _agree(statuses: Sequence[MeshStatus], name: str, state: str) -> bool:
    """All follow one coordinator and show the node `name` in this state."""
    ruled = {(status.mesh.coordinator, status.mesh.term) for status in statuses}
    return len(ruled) == 1 and all(n.state == state for s in statuses for n in s.nodes if n.name == name)


# Another node is lost


async def node_killed(mesh: Five) -> Outcome:
    """A node that does not coordinate, in every other trial one that serves: until all know, without an election."""
    return await _noticed(mesh, lambda lost: lost.kill())


async def node_cut(mesh: Five) -> Outcome:
    return await _noticed(mesh, lambda lost: cut(mesh, lost))


async def _noticed(mesh: Five, lose: Callable[[Mac], float]) -> Outcome:
    lost, term = mesh.others(mesh.coordinator)[0], mesh.term
    left = [mac for mac in mesh.macs if mac is not lost]
    at = lose(lost)

    def all_know() -> bool:
        return all(_gone_at(mac, lost, at) for mac in left)

    await until(all_know, f"all know that {lost.name} is gone")
    known = max(_gone_at(mac, lost, at) for mac in left)
    await mesh.answered()
    wrong = [f"{mac.name} took {t.message}" for mac in left for t in mac.log.gone(at) if t.node != lost.id]
    return Outcome({"": known - at}, (*wrong, *_terms(mesh, left, term, 0)))


def _gone_at(mac: Mac, lost: Mac, since: float) -> float:
    return next((told.at for told in mac.log.gone(since) if told.node == lost.id), 0.0)


# The network


async def address_changed(mesh: Five) -> Outcome:
    """A new DHCP lease, of the coordinator in every other trial: until all know the address and are well again."""
    moved = mesh.coordinator if mesh.number % 2 == 0 else mesh.others(mesh.coordinator)[0]
    new, term = mesh.new_address(), mesh.term
    await asyncio.to_thread(mesh.lab.readdr, moved.name, new)
    at = time.monotonic()

    def healed(statuses: Sequence[MeshStatus]) -> bool:
        return _whole(statuses) and all(_address(status, moved.name) == new for status in statuses)

    seen = await mesh.seen(mesh.macs, healed, f"{moved.name} is known to be at {new}", LIMIT_S)
    await mesh.answered()
    return Outcome({"": seen - at}, _terms(mesh, mesh.macs, term, 1))


def _address(status: MeshStatus, name: str) -> str:
    node = next((n for n in status.nodes if n.name == name), Node(name=name, id=""))
    return next((address for address in node.addresses if "." in address), "")


async def partition(mesh: Five) -> Outcome:
    """Two nodes on one side, three on the other, each with its coordinator; then one mesh again. The coordinator is on
    the smaller side in every other trial. The entry's side serves."""
    old, term = mesh.coordinator, mesh.term
    serving = next(mac for mac in mesh.others(old) if mac.model)
    rest = [mac for mac in mesh.others(old, serving) if mac is not mesh.entry]
    with_entry = [mesh.entry, serving]
    two, three = (with_entry, [old, *rest]) if mesh.number % 2 else ([old, rest[0]], [*with_entry, *rest[1:]])
    mesh.lab.partition([mac.name for mac in two], [mac.name for mac in three])
    at = time.monotonic()
    split = max([await mesh.agreed(side) for side in (two, three)])
    wrong = _terms(mesh, mesh.macs, term, 1)
    mesh.lab.rejoin()
    at_healing = time.monotonic()
    healed = await mesh.agreed(mesh.macs)
    return Outcome({"": max(split - at, 0.0), "healed": max(healed - at_healing, 0.0)}, wrong)


async def one_way(mesh: Five) -> Outcome:
    """No packet passes from one node to one other. Nothing needs to change, so the last change counts."""
    old, term = mesh.coordinator, mesh.term
    others = mesh.others(old)
    source, sink = ((old, others[0]), (others[0], old), (others[0], others[1]), (old, mesh.entry), (mesh.entry, old))[
        mesh.number % 5
    ]
    mesh.lab.partition([source.name], [sink.name], one_way=True)
    at = time.monotonic()
    while time.monotonic() < at + WATCH_S:
        await mesh.answered(1)
    since = await mesh.agreed(mesh.macs)
    return Outcome({"": max(since - at, 0.0)}, _terms(mesh, mesh.macs, term, 1))


MAJOR: dict[str, Trial] = {
    "coordinator killed": coordinator_killed,
    "coordinator cut": coordinator_cut,
    "coordinator frozen": coordinator_frozen,
}
MINOR: dict[str, Trial] = {
    "coordinator down": coordinator_down,
    "coordinator drained": coordinator_drained,
    "address changed": address_changed,
    "node killed": node_killed,
    "node cut": node_cut,
    "partition 2|3": partition,
    "one-way link": one_way,
}


@asynccontextmanager
async def five(folder: Path, model: Path, shape: str = "wired", **asking: Any) -> AsyncIterator[Five]:
    """A mesh of five, whole, on a network of this shape, and a client that asks its entry all the time (`asking`: what
    macs.Asker takes beside). Everything is gone at the end."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(5, name=f"f{os.getpid()}"))
        models, priorities = {3: model, 4: model}, {5: 0}
        macs = [
            Mac(lab, f"mac{n}", folder, model=models.get(n), mesh_priority=priorities.get(n, 100)) for n in range(1, 6)
        ]
        for mac in macs:
            if link := SHAPES[shape]:
                lab.shape(mac.name, jitter_ms=link.jitter_ms, loss=link.loss)
            mac.start()
        asker = Asker(lab, "mac5", "http://localhost:4000/v1", model.name, **asking)
        mesh = Five(lab, macs, stack.enter_context(asker))
        await mesh.whole()
        asker.go()
        await mesh.answered(1, FIRST_S)
        yield mesh
