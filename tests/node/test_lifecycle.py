"""One model's life, step by step on a clock of the test's own."""

from __future__ import annotations

import pytest
from msgspec import structs

from node.lifecycle import (
    Begun,
    Changed,
    Exited,
    Gone,
    Lifecycle,
    LifecycleEvent,
    NoRoom,
    Quiet,
    Start,
    Started,
    StartFailed,
    Stop,
    Tick,
    Unwanted,
    Wanted,
    backoff_s,
)
from node.settings import NodeSettings
from node.types import ModelState

S = NodeSettings(
    backoff_first_s=1.0,
    backoff_cap_s=3.0,
    health_s=100.0,
    flapping_failures=5,
    flapping_window_s=600.0,
    start_limit_s=50.0,
)
ABSENT, LOADING, READY = ModelState.ABSENT, ModelState.LOADING, ModelState.READY
DRAINING, FAILED = ModelState.DRAINING, ModelState.FAILED


def model(*events: LifecycleEvent, at: float = 0.0) -> Lifecycle:
    made = Lifecycle(S)
    for event in events:
        made.step(event, at)
    return made


def ready(at: float = 0.0) -> Lifecycle:
    return model(Wanted(), Begun(), Started(2.0), at=at)


def test_from_absent_to_ready_and_back() -> None:
    it = Lifecycle(S)
    assert it.step(Wanted(), 0.0) == [Changed(LOADING), Start()]
    assert it.step(Begun(), 1.0) == []
    assert it.deadline == 51.0
    assert it.step(Started(2.0), 3.0) == [Changed(READY, load_s=2.0)]
    assert it.step(Unwanted("idle"), 4.0) == [Changed(DRAINING, "idle")]
    assert it.step(Quiet(), 5.0) == [Stop()]
    assert it.step(Quiet(), 5.0) == []
    assert it.has_worker
    assert it.step(Gone(), 6.0) == [Changed(ABSENT, "idle")]
    assert not it.has_worker


def test_wanting_what_is_wanted_changes_nothing() -> None:
    for it in (model(Wanted()), ready()):
        assert it.step(Wanted(), 1.0) == []
        assert it.step(Wanted(afresh=True), 1.0) == []


def test_a_model_without_room_is_absent_until_wanted_again() -> None:
    it = model(Wanted())
    assert it.step(NoRoom("needs 9 GB"), 0.0) == [Changed(ABSENT, "needs 9 GB")]
    assert it.deadline is None
    assert it.step(Wanted(), 1.0) == [Changed(LOADING), Start()]


def test_a_crash_is_restarted_after_the_back_off_and_only_when_the_pid_is_gone() -> None:
    it = ready()
    assert it.step(Exited("signal 9"), 10.0) == [Changed(FAILED, "signal 9", retry_s=1.0), Stop()]
    assert it.retry_at == it.deadline == 11.0
    assert it.step(Tick(), 10.5) == []
    assert it.step(Tick(), 11.0) == [Changed(LOADING)]
    assert it.step(Gone(), 12.0) == [Start()]


def test_the_back_off_grows_to_its_cap() -> None:
    it = model(Wanted(), Begun())
    waits = []
    now = 0.0
    for _ in range(4):
        it.step(StartFailed("no"), now)
        it.step(Gone(), now)
        assert it.retry_at is not None
        waits.append(it.retry_at - now)
        now = it.retry_at
        assert it.step(Tick(), now) == [Changed(LOADING), Start()]
        it.step(Begun(), now)
    assert waits == [1.0, 2.0, 3.0, 3.0]
    assert [backoff_s(structs.replace(S, backoff_cap_s=60.0), n) for n in (1, 2, 3, 7, 10_000)] == [1, 2, 4, 60, 60]


def fail_times(it: Lifecycle, times: int, now: float) -> float:
    """Fails that often, each time as soon as it may start again."""
    for _ in range(times):
        it.step(StartFailed("no"), now)
        it.step(Gone(), now)
        now = it.deadline or now
        it.step(Tick(), now)
    return now


def test_health_forgets_failures() -> None:
    it = model(Wanted())
    now = fail_times(it, 4, 0.0)
    it.step(Started(1.0), now)
    assert it.step(Tick(), now + 99.0) == []
    assert it.step(Tick(), now + 100.0) == []
    assert it.deadline is None
    it.step(Exited("again"), now + 101.0)
    assert it.retry_at == now + 102.0


def test_a_crash_before_it_proved_healthy_counts_on() -> None:
    it = model(Wanted())
    now = fail_times(it, 2, 0.0)
    it.step(Started(1.0), now)
    it.step(Exited("again"), now + 99.0)
    assert it.retry_at == now + 99.0 + 3.0


def test_flapping_stops_until_load() -> None:
    it = model(Wanted())
    now = fail_times(it, 5, 0.0)
    assert (it.state, it.deadline, it.retry_at) == (FAILED, None, None)
    assert "5 failures within 600 s" in it.why
    assert it.step(Wanted(), now) == []
    assert it.step(Wanted(afresh=True), now) == [Changed(LOADING), Start()]
    it.step(StartFailed("still"), now)
    assert it.retry_at == now + 1.0


def test_a_server_that_is_not_ours_is_asked_again_for_ever() -> None:
    it = Lifecycle(S, gives_up=False)
    it.step(Wanted(), 0.0)
    now = fail_times(it, 20, 0.0)
    it.step(StartFailed("no"), now)
    assert it.retry_at == now + S.backoff_cap_s


def test_failures_outside_the_window_do_not_flap_but_the_back_off_stays() -> None:
    it = model(Wanted())
    now = 0.0
    for _ in range(8):
        it.step(StartFailed("no"), now)
        it.step(Gone(), now)
        assert it.retry_at is not None
        now += 400.0
        it.step(Tick(), now)
    assert it.state is LOADING
    it.step(StartFailed("no"), now)
    assert it.retry_at == now + 3.0


def test_a_start_that_takes_too_long_has_failed() -> None:
    it = model(Wanted(), Begun())
    assert it.step(Tick(), 49.9) == []
    failed, stop = it.step(Tick(), 50.0)
    assert isinstance(failed, Changed)
    assert (failed.state, failed.why, stop) == (FAILED, "not ready within 50 s", Stop())
    assert it.step(Started(50.0), 50.1) == []  # Too late: it is being ended.
    assert it.step(StartFailed("cancelled"), 50.1) == []


def test_waiting_for_its_turn_to_load_is_not_a_slow_start() -> None:
    it = model(Wanted())
    assert it.deadline is None
    it.step(Begun(), 1000.0)
    assert it.deadline == 1050.0


def test_unwanted_while_loading_ends_the_start() -> None:
    it = model(Wanted(), Begun())
    assert it.step(Unwanted("removed"), 1.0) == [Changed(DRAINING, "removed"), Stop()]
    assert it.step(Started(1.0), 1.1) == []
    assert it.step(Gone(), 2.0) == [Changed(ABSENT, "removed")]


def test_unwanted_while_failed_is_just_absent() -> None:
    it = ready()
    it.step(Exited("x"), 1.0)
    assert it.step(Unwanted("unloaded"), 2.0) == [Changed(ABSENT, "unloaded")]
    assert it.deadline is None
    assert it.step(Gone(), 3.0) == []
    assert not it.has_worker


def test_wanted_while_the_last_worker_ends() -> None:
    it = ready()
    it.step(Exited("x"), 1.0)
    it.step(Unwanted("unloaded"), 1.0)
    assert it.step(Wanted(), 2.0) == [Changed(LOADING)]
    assert it.step(Gone(), 3.0) == [Start()]


def test_wanted_again_while_it_drains() -> None:
    it = ready()
    it.step(Unwanted("unloaded"), 1.0)
    assert it.step(Wanted(), 2.0) == [Changed(READY, "wanted again")]
    assert it.step(Quiet(), 3.0) == []
    it.step(Unwanted("unloaded"), 4.0)
    it.step(Quiet(), 5.0)
    assert it.step(Wanted(), 6.0) == []
    assert it.step(Gone(), 7.0) == [Changed(LOADING), Start()]


def test_a_worker_that_dies_while_it_drains_is_only_gone() -> None:
    it = ready()
    it.step(Unwanted("unloaded"), 1.0)
    assert it.step(Exited("crash"), 2.0) == [Stop()]
    assert it.step(Gone(), 3.0) == [Changed(ABSENT, "unloaded")]


@pytest.mark.parametrize(
    "event", [NoRoom("x"), Started(1.0), StartFailed("x"), Exited("x"), Quiet(), Gone(), Tick(), Begun()]
)
def test_an_absent_model_is_not_impressed(event: LifecycleEvent) -> None:
    assert Lifecycle(S).step(event, 0.0) == []
