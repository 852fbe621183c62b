"""mesh/clones.py: two processes with one id are named and told apart; a restart is not taken for one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.clones import Ask, Clones, Effect, Event, Met, Say, Spoke, Suspected, TakeNewId, Tick, keeps_id
from mesh.settings import CloneSettings
from mesh.wire import PROTOCOL, Hello
from node.types import NodeId

ME, X = NodeId("1" * 16), NodeId("a" * 16)
S = CloneSettings()


def hello(boot: str, uptime_s: float, id_: NodeId = ME, name: str = "studio") -> Hello:
    return Hello(id=id_, boot=boot, name=name, mesh="default", mesh_id="", version="0.1", protocol=PROTOCOL,
                 peer_port=4001, port=4000, uptime_s=uptime_s)  # fmt: skip


class World:
    """The machine and a clock."""

    def __init__(self) -> None:
        self.clones, self.now = Clones(ME), 1000.0
        self.said: list[Effect] = []

    def tell(self, event: Event) -> list[Effect]:
        effects = self.clones.step(event, self.now)
        self.said += effects
        return effects

    def wait(self, seconds: float) -> list[tuple[float, Effect]]:
        """Lets time pass, with a tick at each deadline; what came of it, and when."""
        end, came = self.now + seconds, []
        while (due := self.clones.deadline) is not None and due <= end:
            self.now = max(self.now, due)
            came += [(self.now, effect) for effect in self.tell(Tick())]
            after = self.clones.deadline
            assert after is None or after > self.now, "it must not spin"
        self.now = end
        return came

    def hear(self, seconds: float, *boots: str, every_s: float = 0.1) -> None:
        for _ in range(round(seconds / every_s)):
            for boot in boots:
                self.tell(Spoke(X, boot))
            self.wait(every_s)


@pytest.fixture
def w() -> World:
    return World()


def test_two_that_speak_at_once_are_named_once_and_for_as_long_as_they_do(w: World) -> None:
    w.tell(Spoke(X, "b1", "ann at 10.0.0.1"))
    w.tell(Spoke(X, "b2", "ben at 10.0.0.2"))
    w.hear(S.overlap_s - 0.5, "b1", "b2")
    assert w.clones.notes() == []
    w.hear(20.0, "b1", "b2")
    assert len(w.said) == 1
    assert isinstance(w.said[0], Say)
    note = w.clones.notes()
    assert note == [w.said[0].text]
    for word in (X, "ann at 10.0.0.1 and ben at 10.0.0.2", "by itself", "node/id"):
        assert word in note[0]
    w.hear(S.fresh_s - 1, "b1")
    assert w.clones.notes() == note
    w.hear(2.0, "b1")
    assert w.clones.notes() == [], "the other has a new id now"


def test_a_note_ends_by_time_alone_too(w: World) -> None:
    w.hear(5.0, "b1", "b2")
    assert w.clones.notes()
    w.wait(S.fresh_s + 1)
    assert w.clones.notes() == []
    assert w.clones.deadline is None


@given(lingers_s=st.floats(0.0, 2.5), down_s=st.floats(0.0, 20.0))
def test_a_restart_is_no_clone_whatever_lingers_of_the_former_process(lingers_s: float, down_s: float) -> None:
    w = World()
    w.hear(10.0, "b1")
    w.wait(down_s)
    w.tell(Spoke(X, "b2"))
    w.hear(lingers_s, "b2", "b1")
    w.hear(30.0, "b2")
    w.hear(5.0, "b3")
    assert w.said == []


def test_a_node_that_is_restarted_again_and_again_is_no_clone(w: World) -> None:
    for n in range(20):
        w.hear(2.0, f"b{n}", f"b{max(0, n - 1)}")
    assert w.said == []


def test_where_it_may_be_is_asked_at_once_then_ever_less_often(w: World) -> None:
    place = ("10.0.0.2", 4001)
    assert w.tell(Suspected((place,))) == [Ask(*place)]
    assert w.tell(Suspected((place,))) == [], "it is being asked already"
    start = w.now
    came = w.wait(500.0)
    assert [round(at - start, 3) for at, _ in came] == [2, 6, 14, 30, 62]
    assert w.tell(Suspected((place,))) == [], "an old address, most likely"
    w.wait(S.forget_s)
    assert w.tell(Suspected((place,))) == [Ask(*place)]


def test_places_are_bounded(w: World) -> None:
    effects = w.tell(Suspected(tuple((f"10.0.{n // 256}.{n % 256}", 4001) for n in range(10_000))))
    assert len(effects) == S.places_max


def test_nodes_and_boots_are_bounded(w: World) -> None:
    for n in range(2000):
        w.tell(Spoke(NodeId(f"{n:016x}"), f"b{n}"))
        w.tell(Spoke(X, f"b{n}"))
    assert len(w.clones._boots) == S.nodes_max
    assert len(w.clones._boots[X].lives) == S.boots_max


def test_the_younger_gives_way_once(w: World) -> None:
    met = Met(hello("b2", 5.0), hello("b1", 900.0, name="ann"), "10.0.0.1")
    assert w.tell(met) == [TakeNewId(met.theirs, "10.0.0.1")]
    assert w.tell(met) == [], "it is doing so"


def test_the_older_stays_and_says_so_once(w: World) -> None:
    met = Met(hello("b1", 900.0), hello("b2", 5.0, name="ann"), "10.0.0.2")
    assert [type(e) for e in w.tell(met)] == [Say]
    assert w.tell(met) == []
    assert len(w.clones.notes()) == 1
    assert "ann at 10.0.0.2" in w.clones.notes()[0]
    w.wait(S.fresh_s + 1)
    assert w.clones.notes() == []


@pytest.mark.parametrize(
    "met",
    [
        Met(hello("b1", 1.0), hello("b1", 9.0), "10.0.0.1"),  # itself, by another way
        Met(hello("b1", 1.0), hello("b2", 9.0, id_=X), "10.0.0.1"),
        Met(hello("b1", 1.0, id_=X), hello("b2", 9.0), "10.0.0.1"),  # said before it took its present id
    ],
)
def test_what_is_no_clone_of_this_process_changes_nothing(w: World, met: Met) -> None:
    assert w.tell(met) == []
    assert w.clones.notes() == []


@given(st.floats(0.0, 1e6), st.floats(0.0, 1e6), st.text(max_size=8), st.text(max_size=8))
def test_exactly_one_of_two_keeps_the_id(one_s: float, two_s: float, one: str, two: str) -> None:
    a, b = hello("a" + one, one_s), hello("b" + two, two_s)
    keep: dict[str, Any] = {"a": keeps_id(a, b), "b": keeps_id(b, a)}
    assert sorted(keep.values()) == [False, True]
    if one_s != two_s:
        assert keep["a"] is (one_s > two_s)


def test_own_words_do_not_count(w: World) -> None:
    for _ in range(100):
        w.tell(Spoke(ME, "b1"))
        w.tell(Spoke(ME, "b2"))
        w.wait(0.1)
    assert w.said == []
    assert w.clones.deadline is None
