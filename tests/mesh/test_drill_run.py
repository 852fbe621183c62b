"""The course of a drill, against a mesh that does what a test says, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from mesh import drill
from mesh.answers import DrillAnswer, DrillAnswers, MeshStatus, Model, Route, Routes, Seen
from mesh.client import MeshClientError
from mesh.drill import Asked, Report
from mesh.drill_run import Run, RunSettings
from mesh.errors import MeshError
from tests.mesh.test_drill import THREE, node

SETTINGS = RunSettings(away_s=10.0, hold_s=5.0, begin_s=30.0, ran_s=5.0, whole_s=60.0, routes_s=5.0)


class World:
    """Three nodes; `a` runs the drill. Something that is stopped is away for `away_s`; each second one request ends."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.said: list[tuple[float, str, str]] = []  # (when, what was asked, of whom)
        self.away: dict[str, float] = {}  # until when, by node
        self.lost_from = float("inf")
        self.stays_away = False
        self.refuses: dict[str, str] = {}  # by what is asked
        self.silent: tuple[str, ...] = ()
        self.began = self.ended = False
        self.seen: list[Seen] = []
        self.notes: list[str] = []
        self.dead = False
        self.open_since, self.open_until = 0.0, 0.0  # one slow request

    def pause(self, seconds: float) -> None:
        self.now += seconds

    # Mesh

    def mesh_status(self) -> MeshStatus:
        self._alive()
        busy = Model(name="smol", state="busy", engine="mlx-lm", in_flight=1)
        nodes = [
            node(n.name, *(() if self._gone(n.name) else (busy,)), state="dead" if self._gone(n.name) else "ok")
            for n in THREE.nodes
        ]
        who = "a" if self._gone("b") else "b"
        nodes = [replace(n, coordinator=n.name == who) for n in nodes]
        return replace(THREE, nodes=tuple(nodes), mesh=replace(THREE.mesh, coordinator=who))

    def _gone(self, name: str) -> bool:
        return self.now < self.away.get(name, 0.0)

    def _alive(self) -> None:
        if self.dead:
            raise MeshClientError("not_running", "mlx-stack is not running here")

    def drill(self, ask: str, drill: str, *, node: str = "", model: str = "", for_s: float = 10.0) -> DrillAnswers:
        self._alive()
        name = node[:1]
        self.said.append((self.now, ask, name))
        if ask in ("hold", "release"):
            there = [n.name for n in THREE.nodes if not self._gone(n.name) and n.name not in self.silent]
            gone = [n.name for n in THREE.nodes if n.name not in there]
            why = self.refuses.get(ask, "")
            return DrillAnswers(
                answers=tuple(DrillAnswer(node=n, why=why if n == "c" else "") for n in there),
                silent=tuple(DrillAnswer(node=n, id=f"{n}-id-0123") for n in gone),
            )
        why = self.refuses.get(ask, "")
        if not why:
            self.away[name] = self.now + (float("inf") if self.stays_away else 3.0 if ask == "worker" else for_s)
            kind = "lost" if ask == "worker" else "gone"
            self.seen.append(Seen(at=self.now + 0.2, kind=kind, node=name, model=model if ask == "worker" else ""))
        return DrillAnswers(answers=(DrillAnswer(node=name, why=why, at=self.now),))

    def drill_seen(self) -> tuple[Seen, ...]:
        self._alive()
        return tuple(s for s in self.seen if s.at <= self.now)

    def routes(self, last: int) -> Routes:
        return Routes(routes=tuple(Route(id=f"r{a.id}", client_request_id=a.id, outcome="ok") for a in self.asked))

    # Clients

    @property
    def asked(self) -> list[Asked]:
        count = int(self.now - 1000.0) if self.began else 0
        ends = [1001.0 + i for i in range(count)]
        return [
            Asked(id=f"q{i}", began=e - 1, ended=e, stream=True, lost="gone" if e >= self.lost_from else "")
            for i, e in enumerate(ends)
        ]

    @property
    def open(self) -> list[float]:
        return [self.open_since] if self.now < self.open_until else []

    def begin(self) -> None:
        self.began = True

    def end(self) -> None:
        self.ended = True

    def abandon(self) -> None:
        self.ended = True


def run(world: World, *named: str, **of: Any) -> Report:
    plan = drill.plan(THREE, named or ("b", "c"), **of)
    return Run(
        world, world, plan, name="d", clients=2, seconds=15.0, say=world.notes.append, settings=SETTINGS,
        clock=lambda: world.now, pause=world.pause,
    ).run()  # fmt: skip


def faults(world: World) -> list[tuple[str, str]]:
    return [(ask, of) for _, ask, of in world.said if ask in ("worker", "node")]


def test_one_after_another_is_stopped_and_each_waits_for_the_one_before() -> None:
    world = World()
    found = run(world)
    assert faults(world) == [("worker", "c"), ("node", "c"), ("node", "b")]
    times = [at for at, ask, _ in world.said if ask in ("worker", "node")]
    assert times[1] - times[0] >= 15.0
    assert times[2] - times[1] >= 15.0
    assert [(s.what, s.detected_s, s.ran) for s in found.steps] == [
        ("worker", 0.2, True),
        ("node", 0.2, True),
        ("coordinator", 0.2, True),
    ]
    backs = [s.back_s for s in found.steps]
    assert backs[0] is not None
    assert 3.0 <= backs[0] < 3.5
    assert all(b is not None and 10.0 <= b < 10.5 for b in backs[1:])
    assert found.good
    assert sum(s.requests for s in found.steps) < found.requests, "some ended before the first"
    assert world.ended
    assert world.said[-1][1] == "release"


def test_the_next_stop_waits_for_what_was_open_at_the_one_before() -> None:
    world = World()
    world.open_since, world.open_until = 1000.5, 1050.0
    run(world)
    times = [at for at, ask, _ in world.said if ask in ("worker", "node")]
    assert times[1] >= 1050.0
    assert times[2] - times[1] < 20.0


def test_it_says_again_and_again_that_it_runs() -> None:
    world = World()
    run(world)
    held = [at for at, ask, _ in world.said if ask == "hold"]
    assert max(b - a for a, b in pairwise(held)) < SETTINGS.hold_s + 1.0


def test_what_is_lost_is_told_and_makes_it_bad() -> None:
    world = World()
    world.lost_from = 1010.0
    found = run(world)
    assert found.lost > 0
    assert not found.good
    assert {why for s in found.steps for why in s.why_lost} == {"gone"}


def test_what_does_not_come_back_ends_the_wait_and_is_named() -> None:
    world = World()
    world.stays_away = True
    found = run(world, only="node")
    assert found.missing == ("c is dead",)
    assert found.steps[0].back_s is None
    assert not found.good
    assert world.now < 1000.0 + 5 + 15 + 60 + 10


def test_a_step_that_a_node_refuses_or_that_has_become_impossible_is_left_out() -> None:
    world = World()
    world.refuses["worker"] = "3 model servers killed within 10 minutes are enough"
    found = run(world)
    assert "c says: 3 model servers" in found.steps[0].left_out
    assert found.steps[0].requests == 0
    assert faults(world)[1:] == [("node", "c"), ("node", "b")]
    world = World()
    world.stays_away = True
    found = run(world)
    assert found.steps[1].left_out == "c is dead"


def test_the_reason_for_what_was_never_planned_is_in_the_report() -> None:
    found = run(World(), "c")
    assert found.steps[2].left_out == "b coordinates, and was not named"


@pytest.mark.parametrize(
    ("arrange", "said"),
    [
        (lambda w: w.refuses.update(hold="another drill runs"), "c says: another drill runs.*wait until"),
        (lambda w: setattr(w, "silent", ("c",)), "c does not answer: it is too old.*update it"),
        (lambda w: setattr(w, "lost_from", 0.0), "fail before anything is stopped: gone"),
    ],
)
def test_nothing_is_stopped_when_it_must_not_begin(arrange: Callable[[World], None], said: str) -> None:
    world = World()
    arrange(world)
    with pytest.raises(MeshError, match=said):
        run(world)
    assert faults(world) == []
    assert world.ended
    assert world.said[-1][1] == "release"


def test_a_silent_node_that_is_not_to_be_stopped_does_no_harm() -> None:
    world = World()
    world.silent = ("b",)
    assert run(world, "c").good


def test_its_clients_end_when_this_nodes_daemon_does() -> None:
    world = World()
    world.notes = Dying(world)
    with pytest.raises(MeshClientError):
        run(world)
    assert world.ended


class Dying(list[str]):
    """The daemon ends with the first fault."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def append(self, note: str) -> None:
        self._world.dead = note.startswith("kill")
