"""The machine of the downloads on a virtual clock: who may run, what the disk allows, when a failed one comes again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.download import (
    Advanced,
    Asked,
    Begin,
    Download,
    DownloadEffect,
    DownloadEvent,
    Downloads,
    Dropped,
    Ended,
    Fetched,
    Heard,
    Planned,
    Proceed,
    Progress,
    Refused,
    Said,
    Stop,
    Tick,
    Turned,
)
from node.settings import NodeSettings

GIB = 2**30
S = NodeSettings(downloads_max=2, download_retry_first_s=5.0, download_retry_cap_s=40.0)


def planned(left: int, *, done: int = 0, free: int = 1000 * GIB) -> Planned:
    return Planned(done, done + left, free, "/cache")


class Bench:
    """Downloads, and the processes that a shell would run for it."""

    def __init__(self, settings: NodeSettings = S) -> None:
        self.downloads, self.now = Downloads(settings), 0.0
        self.running: set[str] = set()
        self.told: list[Turned] = []

    def do(self, event: DownloadEvent, at: float | None = None) -> list[DownloadEffect]:
        self.now = self.now if at is None else at
        effects = list(self.downloads.step(event, self.now))
        for effect in effects:
            if isinstance(effect, Begin):
                assert effect.hub not in self.running, "one process per repository"
                self.running.add(effect.hub)
            elif isinstance(effect, Turned):
                self.told.append(effect)
        return effects

    def say(self, hub: str, *said: Said) -> list[DownloadEffect]:
        return [effect for one in said for effect in self.do(Heard(hub, one))]

    def end(self, hub: str, why: str = "exit code 0") -> list[DownloadEffect]:
        self.running.remove(hub)
        return self.do(Ended(hub, why))

    def find(self, hub: str) -> Download:
        found = self.downloads.find(hub)
        assert found is not None
        return found

    def phases(self, hub: str) -> list[str]:
        return [t.phase for t in self.told if t.hub == hub]


def test_a_download_is_planned_proceeds_and_is_done() -> None:
    bench = Bench()
    assert bench.do(Asked("a")) == [Begin("a"), Turned("a", "begun")]
    assert bench.find("a").text() == "downloading, asking the hub for its files"
    assert bench.say("a", planned(4 * GIB)) == [Proceed("a")]
    bench.now = 10.0
    assert bench.say("a", Advanced(GIB)) == [Turned("a", "progress", new_bytes=GIB)]
    assert bench.find("a").text() == "downloading, 25 %, 1.0 of 4.0 GB, 102.4 MB/s"
    assert bench.find("a").wait_s(10.0) == pytest.approx(30.0)
    bench.say("a", Fetched("/cache/a"))
    assert (bench.find("a").path, bench.phases("a")) == ("/cache/a", ["begun", "progress", "done"])
    assert sum(t.new_bytes for t in bench.told) == 4 * GIB
    bench.end("a")
    assert bench.downloads.find("a") is None


def test_so_many_at_once_and_the_others_in_their_order() -> None:
    bench = Bench()
    for hub in "abcd":
        bench.do(Asked(hub))
    assert bench.running == {"a", "b"}
    assert bench.find("c").text() == "downloading, waiting for its turn"
    bench.do(Asked("a"))
    bench.do(Dropped("c"))
    bench.say("b", Refused("gone"))
    bench.end("b")
    assert bench.running == {"a", "d"}


def test_the_disk_must_have_room_for_all_that_is_on_its_way() -> None:
    bench = Bench()
    bench.do(Asked("a"))
    bench.do(Asked("b"))
    assert bench.say("a", planned(10 * GIB, free=12 * GIB)) == [Proceed("a")]
    effects = bench.say("b", planned(5 * GIB, free=17 * GIB))
    assert [type(e) for e in effects] == [Turned, Stop]
    assert bench.find("b").text() == (
        "cannot be downloaded: the disk is full: 5.0 GB to fetch beside 10.0 GB of other downloads need 18.0 GB "
        "(1.2 times that), 17.0 GB free at /cache"
    )
    bench.end("b")
    bench.say("a", Fetched("/cache/a"))
    bench.end("a")
    bench.do(Tick(), at=5.0)
    assert bench.say("b", planned(5 * GIB, free=7 * GIB)) == [Proceed("b")]


def test_what_is_here_already_needs_no_room() -> None:
    bench = Bench()
    bench.do(Asked("a"))
    assert bench.say("a", planned(0, done=GIB, free=0)) == [Proceed("a")]


def test_a_failed_download_comes_again_later_each_time_until_it_gets_on() -> None:
    bench = Bench()
    bench.do(Asked("a"))
    waits = []
    for _ in range(5):
        bench.end("a", "ended by SIGKILL")
        assert bench.find("a").text() == "cannot be downloaded: ended by SIGKILL"
        due = bench.downloads.deadline
        assert due is not None
        waits.append(due - bench.now)
        assert bench.do(Tick(), at=due - 0.1) == []
        bench.do(Tick(), at=due)
        assert bench.running == {"a"}
    assert waits == [5, 10, 20, 40, 40]
    bench.say("a", planned(GIB), Advanced(1), Refused("cut"))
    bench.end("a")
    assert bench.find("a").wait_s(bench.now) == 5


def test_a_failed_download_is_tried_at_once_when_a_person_asks() -> None:
    bench = Bench()
    bench.do(Asked("a"))
    bench.say("a", Refused("it is gated"))
    bench.do(Asked("a"))
    assert bench.find("a").why == "it is gated"
    bench.do(Asked("a", afresh=True))
    assert not bench.find("a").failed
    bench.end("a")  # Only now may another process begin.
    assert bench.running == {"a"}


def test_a_dropped_download_is_ended_and_forgotten() -> None:
    bench = Bench()
    bench.do(Asked("a"))
    bench.say("a", planned(GIB))
    assert bench.do(Dropped("a")) == [Turned("a", "cancelled"), Stop("a")]
    assert bench.do(Dropped("a")) == []
    assert bench.say("a", Advanced(5)) == []
    bench.end("a", "ended by SIGKILL")
    assert bench.downloads.find("a") is None
    assert bench.phases("a") == ["begun", "cancelled"]


def test_one_dropped_and_asked_for_again_begins_anew_without_a_failure() -> None:
    bench = Bench()
    bench.do(Asked("a"))
    bench.do(Dropped("a"))
    bench.do(Asked("a"))
    assert bench.running == {"a"}
    bench.end("a", "ended by SIGKILL")
    assert bench.running == {"a"}
    assert bench.phases("a") == ["begun", "cancelled", "begun"]


def test_what_it_waits_for_is_shown_in_place_of_figures() -> None:
    bench = Bench()
    bench.do(Asked("a"))
    bench.say("a", planned(GIB), Advanced(10, "the connection broke (reset), going on"))
    assert bench.find("a").text() == "downloading, the connection broke (reset), going on"
    assert Progress().text() == "0 %, 0.0 of 0.0 MB, 0.0 MB/s"


HUBS = st.sampled_from("abcde")
EVENTS = st.one_of(
    st.builds(Asked, HUBS, st.booleans()),
    st.builds(Dropped, HUBS),
    st.builds(
        Heard,
        HUBS,
        st.one_of(
            st.builds(planned, st.integers(0, 10 * GIB), free=st.integers(0, 20 * GIB)),
            st.builds(Advanced, st.integers(0, 10 * GIB)),
            st.builds(Fetched, st.just("/cache")),
            st.builds(Refused, st.just("no")),
        ),
    ),
    st.builds(Ended, HUBS, st.just("ended")),
    st.just(Tick()),
)


@given(events=st.lists(st.tuples(EVENTS, st.floats(0, 30)), max_size=60))
def test_never_too_many_processes_and_every_wanted_one_ends(events: Sequence[tuple[object, float]]) -> None:
    bench, wanted, done = Bench(), set[str](), set[str]()
    for event, later in events:
        of = getattr(event, "hub", "")
        if isinstance(event, Heard | Ended) and of not in bench.running:
            continue  # No process, no word.
        if isinstance(event, Ended):
            bench.running.remove(of)
        bench.do(event, at=bench.now + later)
        assert len(bench.running) <= S.downloads_max
        if isinstance(event, Asked):
            wanted.add(of)
        if isinstance(event, Dropped):
            wanted.discard(of)
        done |= {t.hub for t in bench.told if t.phase == "done"}
    for _ in range(4 * 5):  # From here on all goes well.
        for hub in list(bench.running):
            bench.say(hub, Planned(0, 1, 10, "/cache"), Fetched("/cache"))
            bench.end(hub)
        due = bench.downloads.deadline
        bench.do(Tick(), at=max(bench.now, due) if due is not None else bench.now)
    assert not bench.running
    assert wanted <= done | {t.hub for t in bench.told if t.phase == "done"}
    assert all(bench.downloads.find(hub) is None for hub in "abcde")
