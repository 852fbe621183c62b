"""Whole runs: chaos, one fault, quiet hours. Each is a pure function of its arguments and raises ViolationError."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from election.machine import Election
from election.settings import ElectionSettings
from tests.sim import faults
from tests.sim.checkers import ViolationError, all_checkers
from tests.sim.net import BAD_WIFI, DEAF_RADIOS, WIFI, WIRED, Net
from tests.sim.node import Node
from tests.sim.world import World

NETS: dict[str, Net] = {"wired": WIRED, "wifi": WIFI, "bad": BAD_WIFI, "deaf": DEAF_RADIOS}
NET_WORDS = {
    "wired": "wired",
    "wifi": "15 ms jitter, 1 % loss",
    "bad": "100 ms jitter, 5 % loss",
    "deaf": "deaf radios",
}
FAULT_WORDS = {
    "bye": "bye",
    "kill": "kill",
    "cut": "cut",
    "stall": "2 s stall",
    "sleep": "sleep",
    "mute": "one-way",
    "partition": "partition",
    "heal": "heal",
}
FAULTS = tuple(FAULT_WORDS)
AGREE_S, FAR_AGREE_S = 2.0, 10.0  # after the last fault; with a second site its own, slower timers
CHAOS_S, AFTER_S = 60.0, 45.0  # after it handovers are due, whose hold-down was not doubled
SLEEP_S = 30.0
LEARN_S = 670.0  # the first minutes teach nodes how silent this network can be


@dataclass(frozen=True)
class Result:
    agreed_s: float  # from the (last) fault to agreement
    takeovers: int  # caused by the fault
    simulated_s: float
    steps: int
    digest: int


@dataclass
class Setup:
    """What a run is made with, when not as in production: for replays, and for rules broken on purpose."""

    election: type[Election] = Election
    settings: ElectionSettings = field(default_factory=ElectionSettings)
    narrate: bool = False
    worlds: list[World] = field(default_factory=list)  # those made

    def world(self, seed: int, priorities: list[int], net: Net, sites: list[int] | None = None) -> World:
        world = World(
            seed,
            priorities,
            net=net,
            settings=self.settings,
            election=self.election,
            checkers=all_checkers(),
            sites=sites or [],
            narrate=self.narrate,
        )
        self.worlds.append(world)
        return world


def chaos(seed: int, nodes: int | None = None, *, setup: Setup | None = None) -> Result:
    """A minute of random faults, then none: agreed in time, and after that nothing but handovers upwards; each tenth
    seed with two sites."""
    rng = Random(seed)
    count = nodes or 2 + seed % 5
    priorities = [rng.choice((0, 100, 100, 200)) for _ in range(count)]
    deaf_every_s = rng.choice((0.0, 0.0, 20.0))
    net = Net(
        rng.choice((0.0003, 0.002)),
        rng.choice((0.001, 0.03)),
        loss=0.02,
        dup=0.02,
        reorder=rng.choice((0, 0.02)),
        deaf_every_s=deaf_every_s,
    )
    sites = sorted(rng.randint(0, 1) for _ in range(count)) if seed % 10 == 9 else []
    far = len(set(sites)) > 1
    world = (setup or Setup()).world(seed, priorities, net, sites)
    faults.unleash(world, CHAOS_S)
    faults.mend(world)
    begin, limit_s = world.now, FAR_AGREE_S if far else AGREE_S
    electable = any(n.priority > 0 for n in world.nodes.values())
    agreed_s = world.run_until(lambda: world.agreed() is not None, limit_s) if electable else 0.0
    world.run(begin + limit_s)
    _demand(world, electable, f"{limit_s:.0f} s after the last fault")
    settled = len(world.takeovers)
    world.run(begin + AFTER_S)
    see_through(world, limit_s)
    _demand(world, electable, f"{AFTER_S:.0f} s after the last fault")
    _demand_whole(world)
    _only_handovers(world, settled)
    return Result(agreed_s or 0.0, settled, world.now, world.steps, world.digest)


def one_fault(seed: int, net: str, fault: str, *, setup: Setup | None = None) -> Result:
    """Five settled nodes, one fault of the coordinator: the survivors agree, with one takeover at most, also when what
    was away has come back; later handovers to a better priority are nobody's fault."""
    rng = Random(seed)
    world = (setup or Setup()).world(seed, [100 * rng.randint(1, 3) for _ in range(5)], NETS[net])
    world.run(90 + 3 * rng.random())
    old = world.agreed()
    if old is None:
        raise ViolationError("five undisturbed nodes have not agreed in 90 s", "agreement")
    before, node = len(world.takeovers), world.nodes[old]
    rest = [n for n in world.up() if n is not node]
    parts = [rest] if fault != "mute" else [world.up()]
    if fault in ("partition", "heal"):
        parts = [[node, rest[0]], rest[1:]]
        faults.split(world, {n.name for n in parts[0]})
    else:
        FAULT_ACTS[fault](world, node)
    begin = world.now
    agreed_s = _agree(world, parts, fault, but=old if fault == "mute" else None)
    if fault == "heal":
        world.run(begin + 8.0)
        faults.heal(world)
        begin, parts = world.now, [world.up()]
        agreed_s = _agree(world, parts, fault)
    world.run(begin + (SLEEP_S if fault == "sleep" else 0.0) + 8.0)
    takeovers = [t for t in world.takeovers[before:] if t.at < begin + 10.0 or "handed over" not in t.why]
    if fault == "mute":  # what it does unheard, it does to itself (docs/election.md)
        parts, takeovers = [rest], [t for t in takeovers if t.node != old]
    terms = {t.term for t in takeovers}
    if len(terms) > 1 or any(world.agreed(part) is None for part in parts):
        raise ViolationError(f"{fault} cost the terms {sorted(terms)}: {takeovers}", "one takeover")
    return Result(agreed_s, len(terms), world.now, world.steps, world.digest)


FAULT_ACTS: dict[str, Callable[[World, Node], None]] = {
    "bye": faults.bye,
    "kill": faults.kill,
    "cut": faults.cut,
    "stall": faults.stall,
    "sleep": lambda world, node: faults.sleep(world, node, SLEEP_S),
    "mute": faults.mute,
}


def quiet(seed: int, net: str, nodes: int, hours: float, *, setup: Setup | None = None) -> Result:
    """Nothing happens, nobody takes over, and nobody is given up."""
    world = (setup or Setup()).world(seed, [100] * nodes, NETS[net])
    world.run(LEARN_S)
    before = len(world.takeovers)
    downs = sum(n.downs for n in world.up())
    world.run(LEARN_S + 3600 * hours)
    if len(world.takeovers) > before or world.agreed() is None:
        raise ViolationError(f"takeovers in quiet hours: {world.takeovers[before:]}", "quiet hours")
    if lost := sum(n.downs for n in world.up()) - downs:
        raise ViolationError(f"{lost} times a peer was given up in quiet hours", "quiet hours")
    return Result(0.0, 0, 3600 * hours, world.steps, world.digest)  # the first minutes do not count


def _agree(world: World, parts: list[list[Node]], fault: str, but: str | None = None) -> float:
    """Seconds until each part follows one coordinator of its own, another one than `but`."""
    agreed_s = world.run_until(lambda: all(world.agreed(part) not in (None, but) for part in parts), 6.0)
    if agreed_s is None:
        raise ViolationError(f"no agreement 6 s after {fault}", "agreement")
    return agreed_s


def see_through(world: World, limit_s: float) -> None:
    """To the end of a handover that falls on the end of the run: until then the loser answers for the name too."""
    for _ in world.nodes:  # none of them takes over twice
        if world.takeovers:
            world.run(max(world.now, world.takeovers[-1].at + limit_s))


def _demand(world: World, electable: bool, when: str) -> None:
    """One coordinator for all; or none at all, where every node has priority 0."""
    follow = {n.name: (n.election.coordinator, str(n.election.role)) for n in world.nodes.values()}
    if electable and world.agreed() is None:
        raise ViolationError(f"not agreed {when}: {follow}", "agreement")
    if not electable and any(coordinator is not None for coordinator, _ in follow.values()):
        raise ViolationError(f"a node of priority 0 is followed {when}: {follow}", "agreement")


def _demand_whole(world: World) -> None:
    """Everybody can give work to everybody, and the coordinator, if there can be one, and nobody else, answers for the
    mesh's name."""
    if not world.whole():
        members = {n.name: sorted(n.members) for n in world.up()}
        raise ViolationError(f"not whole at the end: {members}", "membership")
    coordinator = world.agreed()
    holders = sorted(n.id for n in world.up() if n.title.answers)
    if coordinator is not None and holders != [coordinator]:
        raise ViolationError(f"{coordinator} coordinates, {holders} answer for the name", "the name")


def _only_handovers(world: World, settled: int) -> None:
    """Every takeover since then went to a node that ranks better by more than its uptime, and each took once."""
    takeovers = world.takeovers[settled:]
    if len({t.node for t in takeovers}) < len(takeovers) or any("handed over" not in t.why for t in takeovers):
        raise ViolationError(f"takeovers without a fault: {takeovers}", "one takeover")
