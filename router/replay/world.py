"""Replays jobs on machines under one policy: a virtual clock and one heap of events. The same inputs, the same run."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Protocol

from msgspec import Struct

from router.replay.machines import Machine
from router.replay.server import Server
from router.replay.trace import Job

Move = tuple[Job, int]  # send this job to that server (its index)
NEVER = float("inf")
TIME_LIMIT_S = 1e7
TIMER_S = 0.001  # a timer is so late at least: nobody is woken twice in one moment


class Seen(Struct, frozen=True):
    """What a server's last report said: prompts waiting or being read, streams, and the tokens of all these."""

    waiting: int = 0
    running: int = 0
    tokens: int = 0


class Policy(Protocol):
    """Who decides. Every method answers with what is to be sent now; `deadline` None: it need not be woken."""

    report_s: float  # how often it is shown `World.reports`; 0: never

    @property
    def deadline(self) -> float | None: ...
    def attach(self, world: World) -> None: ...
    def arrived(self, job: Job) -> Iterable[Move]: ...
    def delivered(self, job: Job, /) -> Iterable[Move]: ...
    def first(self, job: Job) -> Iterable[Move]: ...
    def done(self, job: Job) -> Iterable[Move]: ...
    def changed(self, server: Server, /) -> Iterable[Move]: ...
    def woken(self) -> Iterable[Move]: ...


class Slow(Struct, frozen=True):
    """At `at` seconds the machine `server` becomes `factor` times as fast."""

    at: float
    server: int
    factor: float


class _Kind(IntEnum):
    ARRIVE = 0
    DELIVER = 1
    SEGMENT = 2
    FIRST = 3
    DONE = 4
    SLOW = 5
    WAKE = 6


class World:
    """`run` it once. `refused` counts answers "not now", after which a job asks again; `idle_s` is the longest time
    that a machine did nothing while a job waited that it serves."""

    def __init__(
        self, machines: Sequence[Machine], jobs: Sequence[Job], policy: Policy, slow: Sequence[Slow] = ()
    ) -> None:
        self.servers = [Server(n, machine) for n, machine in enumerate(machines)]
        self.jobs, self.policy = jobs, policy
        self.now = 0.0
        self.reports = [Seen() for _ in machines]
        self.refused = 0
        self.idle_s = 0.0
        self._heap: list[tuple[float, int, _Kind, Job | Server | Slow | None, int]] = []
        self._pushed = 0
        self._report_at = policy.report_s or NEVER
        self._wake_at = NEVER
        self._waiting: dict[int, Job] = {}
        self._idle_since: list[float | None] = [None] * len(machines)
        self._told: list[object] = [self._state(server) for server in self.servers]
        for job in jobs:
            if job.arrived is not None:
                self._push(job.arrived, _Kind.ARRIVE, job)
        for change in slow:
            self._push(change.at, _Kind.SLOW, change)
        policy.attach(self)

    def again(self, job: Job, after_s: float) -> None:
        """The policy refused it for now: it asks again, and its time goes on counting from when it first did."""
        self.refused += 1
        self._push(self.now + after_s, _Kind.ARRIVE, job)

    def run(self) -> World:
        """Until all jobs are done. Raises RuntimeError when they never would be."""
        left = len(self.jobs)
        while left:
            if not self._heap or self.now > TIME_LIMIT_S:
                raise RuntimeError(f"{left} of {len(self.jobs)} jobs never end under this policy")
            at, _, kind, what, version = heapq.heappop(self._heap)
            if at >= self._report_at:
                self._look(at)
            self._measure(at)
            self.now = at
            if kind is _Kind.SEGMENT:
                assert isinstance(what, Server)
                if what.version == version:
                    self._segment(what)
            elif kind is _Kind.WAKE:
                self._wake_at = NEVER
                if self.policy.deadline is not None and self.policy.deadline <= at:
                    self._send(self.policy.woken())
            elif kind is _Kind.SLOW:
                assert isinstance(what, Slow)
                for speed in self.servers[what.server].speeds.values():
                    speed.times(what.factor)
            else:
                assert isinstance(what, Job)
                left -= kind is _Kind.DONE
                self._job(kind, what)
            self._alarm()
        return self

    def _job(self, kind: _Kind, job: Job) -> None:
        policy = self.policy
        match kind:
            case _Kind.ARRIVE:
                self._waiting[job.id] = job
                self._send(policy.arrived(job))
            case _Kind.DELIVER:
                server = self.servers[job.server]
                server.deliver(job, self.now)
                self._until(server, server.poke(self.now))
                self._send(policy.delivered(job))
                self._notice(server)
            case _Kind.FIRST:
                self._send(policy.first(job))
            case _Kind.DONE:
                self._send(policy.done(job))
                if job.then is not None:
                    job.then.arrived = self.now + job.then.think_s
                    self._push(job.then.arrived, _Kind.ARRIVE, job.then)
        self._idle()

    def _segment(self, server: Server) -> None:
        first, done = server.finish()
        away_s = server.machine.rtt_s / 2
        for job in first:
            assert job.first_at is not None
            self._push(max(self.now, job.first_at + away_s), _Kind.FIRST, job)
        for job in done:
            assert job.done_at is not None
            self._push(max(self.now, job.done_at + away_s), _Kind.DONE, job)
        self._until(server, server.begin(self.now))
        self._notice(server)
        self._idle()

    def _until(self, server: Server, end: float | None) -> None:
        if end is not None:
            self._push(end, _Kind.SEGMENT, server, server.version)

    def _send(self, moves: Iterable[Move]) -> None:
        for job, index in moves:
            job.server, job.sent = index, self.now
            self._waiting.pop(job.id, None)
            self._push(self.now + self.servers[index].machine.rtt_s / 2, _Kind.DELIVER, job)

    def _notice(self, server: Server) -> None:
        """Tells the policy when the models in a machine's memory have changed."""
        if len(server.machine.models) == 1:
            return
        state = self._state(server)
        if state != self._told[server.index]:
            self._told[server.index] = state
            self._send(self.policy.changed(server))

    @staticmethod
    def _state(server: Server) -> object:
        return tuple(server.state(m.name) for m in server.machine.models)

    def _look(self, at: float) -> None:
        """Reports are as of the last whole `report_s`; nothing has changed since the event before it."""
        every = self.policy.report_s
        self._report_at = (at // every + 1) * every
        self.reports = [
            Seen(
                len(s.unread),
                sum(len(batch.writing) for batch in s.batches),
                sum(j.prompt + j.written for j in s.running),
            )
            for s in self.servers
        ]

    def _measure(self, at: float) -> None:
        """Until `at` nothing has changed: who was idle is so for longer."""
        for since in self._idle_since:
            if since is not None and at - since > self.idle_s:
                self.idle_s = at - since

    def _idle(self) -> None:
        """Who is idle from now on, while somebody waits?"""
        for server in self.servers:
            if not self._waiting or not server.idle or not self._could(server):
                self._idle_since[server.index] = None
            elif self._idle_since[server.index] is None:
                self._idle_since[server.index] = self.now

    def _could(self, server: Server) -> bool:
        names = {m.name for m in server.machine.models}
        return any(job.model in names for job in self._waiting.values())

    def _alarm(self) -> None:
        due = self.policy.deadline
        if due is not None and due < self._wake_at:
            self._wake_at = max(due, self.now + TIMER_S)
            self._push(self._wake_at, _Kind.WAKE, None)

    def _push(self, at: float, kind: _Kind, what: Job | Server | Slow | None, version: int = 0) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (at, self._pushed, kind, what, version))
