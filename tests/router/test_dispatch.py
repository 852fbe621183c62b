"""Dispatch on a real loop: one node alone, two nodes with a link between them, and the account of all that is open."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial

import pytest
import uvloop

from node.types import NodeId, NodeStatus, RequestId, RunningReport, Usage
from router.errors import ErrorCode
from router.events import Request
from router.frames import CoordinatorFrame, EdgeFrame, Granted, Queued, Refused
from router.io.dispatch import Dispatch
from router.settings import RouterSettings
from tests.mesh.waiting import until
from tests.router.fleets import serving

A, B = NodeId("a"), NodeId("b")


def request(name: str, deadline: float = 30.0, model: str = "qwen") -> Request:
    return Request(id=RequestId(name), models=(model,), prompt_tokens=100, max_tokens=50, deadline=deadline)


class World:
    """Dispatches joined by links that deliver one turn of the loop later."""

    def __init__(self, *nodes: NodeId, settings: RouterSettings | None = None) -> None:
        self.cut = False
        self.frames: list[tuple[NodeId, NodeId, EdgeFrame | CoordinatorFrame]] = []
        bounds = settings or RouterSettings()
        self.at = {n: Dispatch(self_id=n, settings=bounds, rng=random.Random(1), send=self._sender(n)) for n in nodes}
        self.answers: dict[str, list[CoordinatorFrame]] = {}

    def _sender(self, sender: NodeId) -> Callable[[NodeId, EdgeFrame | CoordinatorFrame], bool]:
        def send(to: NodeId, frame: EdgeFrame | CoordinatorFrame) -> bool:
            if self.cut:
                return False
            self.frames.append((sender, to, frame))
            asyncio.get_running_loop().call_soon(self.at[to].received, sender, frame)
            return True

        return send

    def ask(self, node: NodeId, asked: Request, attempt: int = 1) -> list[CoordinatorFrame]:
        heard = self.answers.setdefault(asked.id, [])
        self.at[node].ask(asked, attempt, 0.0, None, heard.append)
        return heard

    def all_up(self, *statuses: NodeStatus) -> None:
        for dispatch in self.at.values():
            for each in statuses:
                dispatch.node_up(each)

    def all_follow(self, coordinator: NodeId, term: int) -> None:
        for node, dispatch in self.at.items():
            dispatch.follow(coordinator, term, node == coordinator)


def granted(heard: list[CoordinatorFrame]) -> bool:
    return bool(heard) and isinstance(heard[-1], Granted)


async def test_a_node_alone_grants_itself_at_once() -> None:
    w = World(A)
    w.all_up(serving(A, 4))
    w.at[A].follow(A, 1, ruling=True)
    heard = w.ask(A, request("1"))
    assert granted(heard)
    assert w.frames == []
    assert w.at[A].account().nodes[A].reserved == 1
    w.at[A].taken(RequestId("1"), 1)
    assert w.at[A].account().nodes[A].in_flight == 1
    w.at[A].done(RequestId("1"), 1, "ok", Usage(100, 0, 50))
    assert w.at[A].account().total == 0


@pytest.mark.parametrize("edge", [A, B])
async def test_twenty_open_requests_add_up_to_twenty_at_every_step(edge: NodeId) -> None:
    w = World(A, B)
    w.all_up(serving(A, 4), serving(B, 4))
    w.all_follow(A, 1)
    for i in range(20):
        w.ask(edge, request(str(i)))
    d = w.at[A]

    def adds_up(count: int) -> bool:
        return d.account().total == count

    await until(partial(adds_up, 20))
    running: set[str] = set()
    ended = 0
    while ended < 20:
        await asyncio.sleep(0)  # one turn of the loop is the step
        account = d.account()
        assert account.total == 20 - ended
        assert all(n.reserved + n.in_flight <= 4 for n in account.nodes.values())
        for name, heard in w.answers.items():
            if granted(heard) and name not in running:
                running.add(name)
                w.at[edge].taken(RequestId(name), 1)
                place = heard[-1]
                assert isinstance(place, Granted)
                d.node_running(place.node, [RunningReport(RequestId(name), 1, "qwen", started=True, age_s=0.0)])
                assert d.account().total == 20 - ended
                w.at[edge].first(RequestId(name), 1, 0)
        if len(running) - ended >= min(8, 20 - ended):
            w.at[edge].done(RequestId(sorted(running, key=int)[ended]), 1, "ok", Usage(100, 0, 50))
            ended += 1
            await until(partial(adds_up, 20 - ended))
    assert d.account().total == 0


async def test_what_a_node_reports_beside_our_grants_counts_once() -> None:
    w = World(A)
    w.all_up(serving(A, 4))
    w.at[A].follow(A, 1, ruling=True)
    heard = w.ask(A, request("1"))
    await until(lambda: granted(heard))
    w.at[A].taken(RequestId("1"), 1)
    await until(lambda: w.at[A].account().nodes[A].in_flight == 1)
    ours = RunningReport(RequestId("1"), 1, "qwen", started=False, age_s=0.1)
    theirs = RunningReport(RequestId("x"), 1, "qwen", started=True, age_s=0.1)
    w.at[A].node_running(A, [ours, theirs])
    account = w.at[A].account()
    assert (account.nodes[A].reserved, account.nodes[A].in_flight) == (1, 1)  # ours waits inside the node


async def test_an_edge_asks_the_coordinator_and_carries_what_it_is_told() -> None:
    w = World(A, B)
    w.all_up(serving(A, 1))
    w.all_follow(A, 3)
    first, second = w.ask(B, request("1")), w.ask(B, request("2"))
    await until(lambda: granted(first) and bool(second))
    assert isinstance(second[0], Queued)
    assert second[0].position == 1
    w.at[B].taken(RequestId("1"), 1)
    w.at[B].first(RequestId("1"), 1, 0)
    w.at[B].done(RequestId("1"), 1, "ok", Usage(100, 0, 9))
    await until(lambda: granted(second))
    w.at[B].cancel(RequestId("2"), 1)
    await until(lambda: w.at[A].account().total == 0)


async def test_a_refusal_reaches_the_edge_once() -> None:
    w = World(A, B)
    w.all_up(serving(A, 4))
    w.all_follow(A, 1)
    heard = w.ask(B, request("1", model="nothing"))
    await until(lambda: bool(heard))
    [refused] = heard
    assert isinstance(refused, Refused)
    assert refused.error.code is ErrorCode.MODEL_NOT_FOUND
    assert w.at[A].account().total == w.at[B].account().total == 0


async def test_an_edge_whose_coordinator_cannot_be_reached_decides_alone_and_returns() -> None:
    w = World(A, B, settings=RouterSettings(answer_s=0.02, hold_s=0.1))
    w.all_up(serving(A, 4), serving(B, 4))
    w.all_follow(A, 1)
    w.cut = True
    alone = w.ask(B, request("1"))
    await until(lambda: granted(alone))
    w.at[B].taken(RequestId("1"), 1)
    assert w.at[A].account().total == 0
    w.cut = False
    await until(lambda: w.at[A].account().total == 1)  # told to the coordinator once the link is back
    w.at[B].done(RequestId("1"), 1, "ok", Usage())
    await until(lambda: w.at[A].account().total == w.at[B].account().total == 0)


async def test_a_new_coordinator_learns_of_everything_that_is_open() -> None:
    w = World(A, B)
    w.all_up(serving(A, 1))
    w.all_follow(A, 1)
    first, second = w.ask(B, request("1")), w.ask(B, request("2"))
    await until(lambda: granted(first) and bool(second))
    w.at[B].taken(RequestId("1"), 1)
    w.all_follow(B, 2)
    await until(lambda: w.at[B].account().total == 2)
    account = w.at[B].account()
    assert (account.queue_depth, account.nodes[A].in_flight) == (1, 1)
    w.at[B].done(RequestId("1"), 1, "ok", Usage())
    await until(lambda: granted(second))


async def test_deadlines_end_a_wait_by_themselves() -> None:
    w = World(A, B)
    w.all_up(serving(A, 1))
    w.all_follow(A, 1)
    w.ask(B, request("1"))
    heard = w.ask(B, request("2", deadline=0.2))
    await until(lambda: bool(heard) and isinstance(heard[-1], Refused))
    refused = heard[-1]
    assert isinstance(refused, Refused)
    assert refused.error.code is ErrorCode.DEADLINE_EXCEEDED


async def test_run_leaves_no_timer_behind() -> None:
    w = World(A)
    w.all_up(serving(A, 4))
    w.at[A].follow(A, 1, ruling=True)
    task = asyncio.ensure_future(w.at[A].run())
    await asyncio.sleep(0)  # it has begun
    heard = w.ask(A, request("1"))
    assert granted(heard)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(timer.cancelled() for _, timer in w.at[A]._timers.values())


def test_a_deadline_that_has_passed_is_kept_on_uvloop_too() -> None:
    """There, a timer set for the past is a handle that cannot tell its time."""

    async def main() -> None:
        w = World(A)
        due = asyncio.get_running_loop().time() - 1.0
        fired: list[object] = []
        w.at[A]._wake("desk", due, fired.append)
        w.at[A]._wake("desk", due, fired.append)
        await until(lambda: len(fired) == 1)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_timer_that_comes_early_is_set_again() -> None:
    """uvloop counts whole milliseconds: a machine that is woken half of one too early is not due yet."""

    async def main() -> None:
        w, loop = World(A), asyncio.get_running_loop()
        for part in range(40):
            due, reached = loop.time() + 0.002 + part / 40_000, asyncio.Event()

            def step(_: object, due: float = due, reached: asyncio.Event = reached) -> None:
                if loop.time() >= due:
                    reached.set()
                w.at[A]._wake("desk", None if reached.is_set() else due, step)

            w.at[A]._wake("desk", due, step)
            async with asyncio.timeout(5):
                await reached.wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_a_node_alone_takes_another_id_and_loses_nothing_that_is_open() -> None:
    w = World(A)
    w.all_up(serving(A, 1))
    d = w.at[A]
    d.follow(A, 7, ruling=True)
    runs = w.ask(A, request("runs"))
    await until(lambda: granted(runs))
    d.taken(RequestId("runs"), 1)
    waits = w.ask(A, request("waits"))
    await until(lambda: isinstance(waits[-1] if waits else None, Queued))
    late = w.ask(A, request("late"))  # its question is still on the way
    d.rename(B, serving(B, 1), [RunningReport(RequestId("runs"), 1, "qwen", started=True, age_s=0.1, edge=A)])
    account = d.account()
    assert set(account.nodes) == {B}
    assert (account.total, account.nodes[B].in_flight) == (3, 1)
    assert len(runs) == 1, "it is not granted twice"
    await until(lambda: isinstance(late[-1] if late else None, Queued))
    d.done(RequestId("runs"), 1, "ok", Usage(100, 0, 50))
    for name, heard in (("waits", waits), ("late", late)):
        await until(partial(granted, heard))
        assert isinstance(heard[-1], Granted)
        assert heard[-1].node == B
        d.taken(RequestId(name), 1)
        d.node_running(B, [])
        d.done(RequestId(name), 1, "ok", Usage(100, 0, 50))
    await until(lambda: d.account().total == 0)
