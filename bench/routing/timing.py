"""How long the scheduler thinks: one event with a full queue, and one request that finds an idle fleet."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from random import Random

from bench.report import Figure, within
from bench.routing.fleets import FLEETS
from bench.routing.traces import agents
from node.types import ModelState, ModelStatus, NodeId, NodeStatus, RequestId, Usage
from router.fleet import Fleet
from router.ledger import Ledger
from router.schedule import Finished, FirstToken, Grant, NodeUp, Request, Scheduler, SchedulerEvent, Started, Submit
from router.settings import RouterSettings
from router.shortcut import quickest

# Of this thread: what else runs on the machine is not its thinking.
NODES, WAITING, EVENTS = 8, 128, 3000
GAP_S = 0.05  # between two events, on the scheduler's clock


def figures(events: int = EVENTS) -> list[Figure]:
    """Show 3."""
    full, alone = sorted(busy(events)), sorted(idle(events))
    waiting = f"one event, {WAITING} waiting, {NODES} nodes"
    return [
        within(f"{waiting}, median", statistics.median(full) * 1e3, "ms", None, 0.5),
        within(f"{waiting}, p99", full[int(0.99 * len(full))] * 1e3, "ms", None, 2.0),
        within(
            f"the choice for one request, {NODES} idle nodes, median",
            statistics.median(choices(events)) * 1e6,
            "us",
            None,
            3.0,
        ),
        within("one request, nobody waiting, all idle, median", statistics.median(alone) * 1e6, "us", None, None),
        within(
            "the whole life of one request, nobody waiting", statistics.median(lives(events)) * 1e6, "us", None, None
        ),
    ]


def busy(events: int) -> list[float]:
    """Seconds of each event while the queue stays full: requests end and begin to answer, others come."""
    scheduler, requests = _scheduler(), _requests()
    running: list[RequestId] = []
    now, took = 0.0, list[float]()

    def step(event: SchedulerEvent) -> None:
        nonlocal now
        now += GAP_S
        began = time.thread_time()
        effects = scheduler.step(event, now)
        took.append(time.thread_time() - began)
        running.extend(effect.id for effect in effects if isinstance(effect, Grant))

    rng = Random(2)
    unread: list[RequestId] = []
    while len(scheduler.waiting()) < WAITING:
        step(Submit(next(requests)))
        unread, running = unread + running, []
    took.clear()
    answering: list[RequestId] = []
    for _ in range(events):
        if unread and (not answering or rng.random() < 0.5):
            answering.append(unread.pop(0))
            step(FirstToken(answering[-1], 0))
        elif answering:
            step(Finished(answering.pop(0), "ok", Usage(2000, 0, 200)))
        else:
            step(Submit(next(requests)))
        unread, running = unread + running, []
        while len(scheduler.waiting()) < WAITING:
            step(Submit(next(requests)))
            unread, running = unread + running, []
    return took


def idle(events: int) -> list[float]:
    """Seconds of a request that is granted at once; each ends before the next comes."""
    scheduler, requests = _scheduler(), _requests()
    now, took = 0.0, []
    for _ in range(events):
        now += 1.0
        request = next(requests)
        event = Submit(request)
        began = time.thread_time()
        effects = scheduler.step(event, now)
        took.append(time.thread_time() - began)
        assert [effect.id for effect in effects if isinstance(effect, Grant)] == [request.id]
        scheduler.step(FirstToken(request.id, 0), now + 0.4)
        scheduler.step(Finished(request.id, "ok", Usage(request.prompt_tokens, 0, 200)), now + 0.9)
    return took


def choices(events: int) -> list[float]:
    """Seconds of the choice alone, when all it needs is fresh."""
    settings, requests, took = RouterSettings(), _requests(), list[float]()
    fleet = Fleet(settings, Ledger(settings))
    for status in _nodes():
        fleet.put(status, 0.0)
    for _ in range(events):
        request = next(requests)
        options = fleet.options(request, 1.0)
        quickest(fleet, options, request, settings, 1.0)
        began = time.perf_counter()
        quickest(fleet, options, request, settings, 1.0)
        took.append(time.perf_counter() - began)
    return took


def lives(events: int) -> list[float]:
    """Seconds of a short request's four events, and of asking for the deadline after each."""
    scheduler = _scheduler()
    now, took = 0.0, list[float]()
    for number in range(events):
        now += 1.0
        name = RequestId(str(number))
        request = Request(id=name, models=("8b",), prompt_tokens=100, max_tokens=200, client="a")
        happens: tuple[SchedulerEvent, ...] = (
            Submit(request),
            Started(name),
            FirstToken(name),
            Finished(name, "ok", Usage(100, 0, 200)),
        )
        began = time.thread_time()
        for after_s, event in zip((0.0, 0.01, 0.4, 0.9), happens, strict=True):
            scheduler.step(event, now + after_s)
            assert scheduler.deadline != 0.0
        took.append(time.thread_time() - began)
    return took


def _scheduler() -> Scheduler:
    scheduler = Scheduler(RouterSettings(), Random(1))
    for status in _nodes():
        scheduler.step(NodeUp(status), 0.0)
    return scheduler


def _nodes() -> Iterator[NodeStatus]:
    for n in range(NODES):
        machine = FLEETS["hetero4"][n % 4]
        model = ModelStatus(
            name=machine.home.name,
            state=ModelState.READY,
            slots=machine.slots,
            size_bytes=machine.home.size_bytes,
            load_s=machine.home.load_s,
            cache_tokens=machine.home.cache_tokens,
        )
        yield NodeStatus(
            node=NodeId(f"{n:016x}"),
            chip=machine.chip,
            bandwidth=machine.bandwidth,
            headroom_bytes=8 * 10**9,
            rtt_s=0.002,
            models=(model,),
        )


def _requests() -> Iterator[Request]:
    """Requests of agents, one after the other, without end."""
    trace = agents()
    for number in itertools.count():
        row = trace.rows[number % len(trace.rows)]
        yield Request(
            id=RequestId(str(number)),
            models=("8b",),
            prompt_tokens=row.i,
            blocks=row.h,
            block_tokens=trace.block,
            client=str(number % 7),
        )
