"""What a request that ran teaches, and what would teach something wrong."""

from __future__ import annotations

import itertools
import random

import pytest

from node.types import ModelState, ModelStatus, NodeId, NodeStatus, RequestId, Usage
from router.events import Finished, FirstToken, Grant, NodeUp, Request, SchedulerEvent, Submit, Tick
from router.schedule import Scheduler
from router.settings import RouterSettings

GB = 10**9
NODE = NodeId("a")
PRIOR_TPS = 7.6 * 200 / 4


class Talk:
    """One node, and requests that run on it as told."""

    def __init__(self, slots: int = 4, state: ModelState = ModelState.READY) -> None:
        self.scheduler = Scheduler(RouterSettings(), random.Random(0))
        held = ModelStatus(name="m", state=state, slots=slots, size_bytes=4 * GB, cache_seqs=9, cache_tokens=10**6)
        self.scheduler.step(NodeUp(NodeStatus(node=NODE, bandwidth=200.0, headroom_bytes=9 * GB, models=(held,))), 0.0)

    def ask(self, name: str, at: float, tokens: int = 1000, blocks: tuple[int, ...] = ()) -> None:
        request = Request(id=RequestId(name), models=("m",), prompt_tokens=tokens, blocks=blocks, block_tokens=100)
        self.scheduler.step(Submit(request), at)

    def first(self, name: str, at: float, cached: int = 0) -> None:
        self.scheduler.step(FirstToken(RequestId(name), cached), at)

    def end(self, name: str, at: float, *, tokens: int = 1000, cached: int = 0, answer: int = 0) -> None:
        self.scheduler.step(Finished(RequestId(name), "ok", Usage(tokens, cached, answer)), at)

    def prefill(self, now: float) -> tuple[float, int]:
        rates = self.scheduler.rates(NODE, "m", now)
        assert rates is not None
        return rates.prefill_tps, rates.learned

    def decode(self, now: float) -> float:
        rates = self.scheduler.rates(NODE, "m", now)
        assert rates is not None
        return rates.decode_tps


def test_a_prompt_read_alone_tells_the_speed() -> None:
    talk = Talk()
    for n in range(8):
        talk.ask(str(n), 10.0 * n)
        talk.first(str(n), 10.0 * n + 5)
        talk.end(str(n), 10.0 * n + 6)
    rate, samples = talk.prefill(80.0)
    assert rate == pytest.approx(1000 / 5, rel=0.1)
    assert samples == 8


def test_a_load_tells_nothing() -> None:
    cold = Talk(state=ModelState.ABSENT)
    cold.ask("1", 0.0)
    cold.first("1", 9.0)
    assert cold.prefill(9.0)[1] == 0


def busy(tps: float, *, together: bool, until: float) -> Talk:
    """Eight clients, each asking again when it is answered, at a node that reads so many tokens/s: the prompts that it
    was sent one after another, or all of them together. An answer takes a second."""
    talk, now, numbers = Talk(), 0.0, itertools.count()
    unread: dict[RequestId, float] = {}
    ends: list[tuple[float, RequestId]] = []

    def step(event: SchedulerEvent) -> None:
        unread.update({effect.id: 500.0 for effect in talk.scheduler.step(event, now) if isinstance(effect, Grant)})

    def ask() -> None:
        step(Submit(Request(id=RequestId(str(next(numbers))), models=("m",), prompt_tokens=500)))

    for _ in range(8):
        ask()
    while now < until:
        now += 0.01
        shares = len(unread) if together else 1
        for name in list(unread)[:shares]:
            unread[name] -= 0.01 * tps / shares
        for name in [name for name, left in unread.items() if left <= 0]:
            del unread[name]
            step(FirstToken(name))
            ends.append((now + 1.0, name))
        while ends and ends[0][0] <= now:
            step(Finished(ends.pop(0)[1], "ok", Usage(500, 0, 40)))
            ask()
        if (deadline := talk.scheduler.deadline) is not None and deadline <= now:
            step(Tick())
    return talk


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.3, 0.1])
def test_a_node_much_slower_than_its_hardware_is_found_out_while_it_is_busy(factor: float, *, together: bool) -> None:
    """Then each prompt is overdue before it is read, and the next one is sent."""
    rate, samples = busy(factor * PRIOR_TPS, together=together, until=120.0).prefill(120.0)
    assert samples > 4
    assert rate == pytest.approx(factor * PRIOR_TPS, rel=0.2)


def test_the_cached_part_of_a_prompt_is_not_taken_for_speed_even_if_only_the_end_tells() -> None:
    told, untold = Talk(), Talk()
    for n in range(8):
        for talk, cached in ((told, 900), (untold, 0)):
            talk.ask(str(n), 10.0 * n, blocks=tuple(range(9)))
            talk.first(str(n), 10.0 * n + 1, cached)
            talk.end(str(n), 10.0 * n + 2, cached=900)
    assert told.prefill(80.0)[0] == pytest.approx(untold.prefill(80.0)[0], rel=0.3)
    assert told.prefill(80.0)[0] < 200


def test_streams_beside_it_are_taken_out_of_a_prompts_time() -> None:
    alone, beside = Talk(), Talk()
    beside.ask("long", 0.0, tokens=10)
    beside.first("long", 0.1)
    for n in range(8):
        for talk, more in ((alone, 0.0), (beside, 1.15 / 40)):
            talk.ask(str(n), 10.0 * n + 1)
            talk.first(str(n), 10.0 * n + 4 + more)
            talk.end(str(n), 10.0 * n + 5)
    assert beside.prefill(81.0)[0] == pytest.approx(alone.prefill(81.0)[0], rel=0.02)


def test_the_speed_of_writing_is_that_of_one_stream_that_nothing_stops() -> None:
    talk = Talk()
    for n in range(20):
        at = 100.0 * n
        talk.ask(f"a{n}", at, tokens=100)
        talk.first(f"a{n}", at + 1)
        talk.ask(f"b{n}", at + 1, tokens=4000)
        talk.first(f"b{n}", at + 11)  # For ten seconds nobody wrote.
        talk.end(f"b{n}", at + 31, tokens=4000, answer=201)  # 200 steps in 20 s beside another: 11.5 alone
        talk.end(f"a{n}", at + 31, tokens=100, answer=201)
    assert talk.decode(2000.0) == pytest.approx(11.5, rel=0.1)


def test_a_failed_request_teaches_nothing() -> None:
    talk = Talk()
    talk.ask("1", 0.0)
    talk.scheduler.step(Finished(RequestId("1"), "failed", Usage(1000, 0, 50)), 3.0)
    talk.ask("2", 5.0, blocks=(1,))
    talk.scheduler.step(Finished(RequestId("2"), "failed", Usage(1000, 0, 50)), 8.0)
    rate, samples = talk.prefill(9.0)
    assert rate == pytest.approx(PRIOR_TPS)
    assert samples == 0
