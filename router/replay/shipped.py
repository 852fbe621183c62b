"""The shipped Scheduler as a policy of a replay: only through its face (router/events.py), as an edge and nodes would.

A machine that holds one model at a time gives it all its memory: headroom 0, and all of it evictable. Its own model is
`own`; the others are `absent` with their load times, and each becomes `loading`, `ready` and, once the next in line
wants another, `draining`, as its node would report. Of resident ones all are `ready`.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from msgspec import Struct

from node.types import ModelState, ModelStatus, NodeId, NodeStatus, RequestId, Usage
from router import schedule
from router.replay.server import Server
from router.replay.trace import Job
from router.replay.world import Move, World
from router.schedule import Grant, Refuse, Request, Scheduler, SchedulerEffect, SchedulerEvent
from router.settings import RouterSettings

BUDGET_PART = 0.75  # of a machine's memory is for models
AGAIN_S = 1.0  # a refused job without a better word asks again after this


class Knows(Struct, frozen=True, kw_only=True):
    """How well the scheduler is told. `bandwidth_error`: the chip's figure is off by up to this part; `cache_factor`:
    prompt caches are reported so many times their size; `report_age_s`: changes of a node reach it so late; not
    `evictable`: a machine of one model at a time reports what its memory leaves beside it, and nothing to evict."""

    bandwidth_error: float = 0.25
    cache_factor: float = 1.0
    report_age_s: float = 0.0
    evictable: bool = True


class Shipped:
    """Policy around the Scheduler. `rng` draws the errors of what it is told."""

    report_s: float = 0.0

    def __init__(self, settings: RouterSettings, rng: Random, knows: Knows | None = None) -> None:
        self.scheduler = Scheduler(settings, rng)
        self._knows, self._rng = knows or Knows(), rng
        self._world: World
        self._jobs: dict[RequestId, Job] = {}
        self._bandwidth: list[float] = []
        self._loading: dict[int, tuple[str, float]] = {}  # server -> what it loads, since when
        self._late: list[tuple[float, SchedulerEvent]] = []  # news on its way, by the time it arrives

    @property
    def deadline(self) -> float | None:
        due = self.scheduler.deadline
        if not self._late:
            return due
        return self._late[0][0] if due is None else min(due, self._late[0][0])

    def attach(self, world: World) -> None:
        self._world = world
        error = self._knows.bandwidth_error
        for server in world.servers:
            self._bandwidth.append(server.machine.bandwidth * self._rng.uniform(1 - error, 1 + error))
            self.scheduler.step(schedule.NodeUp(self.status(server)), world.now)

    def status(self, server: Server) -> NodeStatus:
        """What the node would report now."""
        machine = server.machine
        headroom, evictable = self._memory(server)
        return NodeStatus(
            node=_node(server.index),
            name=machine.name,
            chip=machine.chip,
            bandwidth=self._bandwidth[server.index],
            headroom_bytes=headroom,
            evictable_bytes=evictable,
            rtt_s=machine.rtt_s,
            models=tuple(
                ModelStatus(
                    name=m.name,
                    fingerprint=m.name,
                    state=server.state(m.name),
                    own=m.own,
                    slots=machine.slots,
                    size_bytes=m.size_bytes,
                    load_s=m.load_s,
                    cache_tokens=int(m.cache_tokens * self._knows.cache_factor),
                    cache_seqs=machine.cache_seqs,
                )
                for m in machine.models
            ),
        )

    def _memory(self, server: Server) -> tuple[int, int | None]:
        """(headroom, evictable) bytes."""
        machine, budget = server.machine, server.machine.memory_bytes * BUDGET_PART
        if not machine.resident and self._knows.evictable:
            return 0, max(m.size_bytes for m in machine.models)
        held = sum(m.size_bytes for m in machine.models if machine.resident or m.name == server.model)
        return max(0, int(budget) - held), None

    # What happens

    def arrived(self, job: Job) -> Iterable[Move]:
        assert job.arrived is not None
        request = Request(
            id=RequestId(str(job.id)),
            models=(job.model,),
            prompt_tokens=job.prompt,
            blocks=job.blocks,
            block_tokens=job.block_tokens if job.blocks else 0,
        )
        self._jobs[request.id] = job
        return self._step(schedule.Submit(request, self._world.now - job.arrived))

    def delivered(self, job: Job) -> Iterable[Move]:
        return self._step(schedule.Started(_id(job)))

    def first(self, job: Job) -> Iterable[Move]:
        return self._step(schedule.FirstToken(_id(job), job.cached))

    def done(self, job: Job) -> Iterable[Move]:
        del self._jobs[_id(job)]
        usage = Usage(prompt=job.prompt, cached=job.cached, completion=job.output)
        return self._step(schedule.Finished(_id(job), "ok", usage))

    def changed(self, server: Server) -> Iterable[Move]:
        """A node's models have changed: it reports so, and how long a load took."""
        events: list[SchedulerEvent] = []
        before = self._loading.pop(server.index, None)
        if server.state(server.model) is ModelState.LOADING:
            begun = before[1] if before is not None and before[0] == server.model else self._world.now
            self._loading[server.index] = server.model, begun
        elif before is not None:
            events.append(schedule.Loaded(_node(server.index), before[0], self._world.now - before[1]))
        events.append(schedule.NodeChanged(self.status(server)))
        if self._knows.report_age_s <= 0:
            return [move for event in events for move in self._step(event)]
        self._late += [(self._world.now + self._knows.report_age_s, event) for event in events]
        return ()

    def woken(self) -> Iterable[Move]:
        moves: list[Move] = []
        while self._late and self._late[0][0] <= self._world.now:
            moves += self._step(self._late.pop(0)[1])
        due = self.scheduler.deadline
        if due is not None and due <= self._world.now:
            moves += self._step(schedule.Tick())
        return moves

    def _step(self, event: SchedulerEvent) -> list[Move]:
        return self._moves(self.scheduler.step(event, self._world.now))

    def _moves(self, effects: Iterable[SchedulerEffect]) -> list[Move]:
        moves: list[Move] = []
        for effect in effects:
            job = self._jobs[effect.id]
            match effect:
                case Grant():
                    job.model = effect.model
                    moves.append((job, int(effect.node, 16)))
                case Refuse(_, error):
                    self._world.again(job, AGAIN_S if error.retry_after_s is None else error.retry_after_s)
        return moves


def _id(job: Job) -> RequestId:
    return RequestId(str(job.id))


def _node(index: int) -> NodeId:
    return NodeId(f"{index:016x}")
