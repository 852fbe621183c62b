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
from router.schedule import Finished, FirstToken, Grant, NodeUp, Request, Scheduler, SchedulerEvent, Submit
from router.settings import RouterSettings

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
        within("one request, nobody waiting, all idle, median", statistics.median(alone) * 1e6, "us", None, 3.0),
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


def _scheduler() -> Scheduler:
    scheduler = Scheduler(RouterSettings(), Random(1))
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
        status = NodeStatus(
            node=NodeId(f"{n:016x}"),
            chip=machine.chip,
            bandwidth=machine.bandwidth,
            headroom_bytes=8 * 10**9,
            rtt_s=0.002,
            models=(model,),
        )
        scheduler.step(NodeUp(status), 0.0)
    return scheduler


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
