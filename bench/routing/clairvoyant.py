"""References that know what nobody can: true lengths, speeds and caches. The best of them, taken for each figure, is
what a policy is measured against. None is a proven optimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from random import Random

from router.replay.cache import shared
from router.replay.peers import AtOnce, Router
from router.replay.server import STREAM_SLOWDOWN
from router.replay.trace import Job
from router.replay.world import Move

LOOK_AHEAD = 64
GUARD = 4.0  # weight of the delay to a machine's own model while it serves another
RATE_FORGET = 0.1


class LateBinding(Router):
    """List scheduling of the one queue over free times computed from the truth; sends only what can start now.

    Cost = wait + load + own reading + `decode_weight` x own writing + `hurt_weight` x delay of others + guard.
    """

    def __init__(self, rng: Random, decode_weight: float, hurt_weight: float) -> None:
        super().__init__(rng)
        self._decode_weight, self._hurt_weight = decode_weight, hurt_weight

    def start(self) -> None:
        self._queue: list[Job] = []
        self._new: dict[int, int] = {}  # job -> tokens it has to read where it was sent
        self._busy = [0.0] * len(self.world.servers)  # until when prompts are read
        self._hot = [server.machine.home.name for server in self.world.servers]  # model of the last one sent
        self._gap: dict[str, float] = {}  # mean seconds between calls of a model
        self._seen: dict[str, float] = {}

    # The truth

    def _read_s(self, i: int, job: Job, new: int) -> float:
        """Seconds to read `new` tokens there, with a decode step of the others in each chunk."""
        server = self.world.servers[i]
        rate, scale = server.speeds[job.model].prefill_tps, server.machine.context_scale
        total = new / rate * (1 + (job.prompt - new / 2) / scale) + server.machine.begin_s
        streams = len(self.running[i]) - len(self.unread[i])
        if streams:
            total += math.ceil(new / server.machine.chunk_tokens) * self._step_s(i, job.model, streams)
        return total

    def _step_s(self, i: int, model: str, streams: int) -> float:
        return self.world.servers[i].speeds[model].step_s * (1 + STREAM_SLOWDOWN * max(0, streams - 1))

    def _left_s(self, i: int, job: Job) -> float:
        return max(1.0, job.output - job.written) * self._step_s(i, job.model, len(self.running[i]))

    def _cached(self, i: int, job: Job, ahead: Sequence[Job]) -> int:
        """Tokens that will be in the cache when those `ahead` have been read."""
        if not job.blocks:
            return 0
        blocks = self.world.servers[i].caches[job.model].match(job.blocks)
        for other in ahead:
            if other.model == job.model and other.blocks and other.blocks[0] == job.blocks[0]:
                blocks = max(blocks, shared(other.blocks, job.blocks))
        return min(blocks * job.block_tokens, job.prompt - 1)

    def _slot_s(self, i: int, extra: int) -> float:
        """Seconds until a slot is free when `extra` more are reserved."""
        over = len(self.running[i]) + extra - self.world.servers[i].machine.slots + 1
        if over <= 0 or not self.running[i]:
            return 0.0
        left = sorted(self._left_s(i, job) for job in self.running[i].values())
        return left[min(over, len(left)) - 1]

    def _load_s(self, i: int, job: Job) -> tuple[float, float]:
        """Seconds until the model is in memory, and to bring the machine's own back afterwards."""
        if self._hot[i] == job.model:
            return 0.0, 0.0
        machine = self.world.servers[i].machine
        model = machine.serves(job.model)
        assert model is not None
        drain = max((self._left_s(i, other) for other in self.running[i].values()), default=0.0)
        return drain + model.load_s, machine.home.load_s if model is not machine.home else 0.0

    def _guard(self, i: int, job: Job, seconds: float) -> float:
        """Expected delay of coming calls of the machine's own model while it serves another for `seconds`."""
        machine = self.world.servers[i].machine
        own = machine.home.name
        if job.model == own or own not in self._gap:
            return 0.0
        back = machine.home.load_s
        held = (seconds + back) ** 2 / 2 if self._hot[i] == own else seconds * (seconds / 2 + back)
        return GUARD / self._gap[own] / len(self.homes[own]) * held

    def _cost(self, i: int, job: Job, wait: float, ahead: Sequence[Job]) -> tuple[float, int, float, float]:
        """(cost, tokens to read, seconds to read them, seconds to load)."""
        new = job.prompt - self._cached(i, job, ahead)
        own = self._read_s(i, job, new)
        streams = len(self.running[i]) - len(self.unread[i])
        write = job.output * self._step_s(i, job.model, streams + 1)
        load, back = self._load_s(i, job)
        speed = self.world.servers[i].speeds[job.model]
        hurt = own * streams + speed.step_s * STREAM_SLOWDOWN * job.output * streams + back
        cost = wait + load + own + self.world.servers[i].machine.rtt_s
        cost += self._decode_weight * write + self._hurt_weight * hurt + self._guard(i, job, load + own + write)
        return cost, new, own, load

    # The plan

    def _plan(self) -> list[Move]:
        now, moves = self.world.now, []
        count = len(self.world.servers)
        free = [max(now, self._busy[i]) if self.unread[i] else now for i in range(count)]
        extra, full = [0] * count, set()
        ahead = [list(self.unread[i].values()) for i in range(count)]
        for job in self._queue[:LOOK_AHEAD]:
            options = []
            for i in self.able[job.model]:
                start = max(free[i], now + self._slot_s(i, extra[i]))
                options.append((*self._cost(i, job, start - now, ahead[i]), start, i))
            _, new, own, load, start, i = min(options, key=lambda option: option[0])
            if start <= now + 1e-9 and i not in full:
                moves.append(self._book(job, i, new, own + load))
                free[i] = max(free[i], now) + own + load
            else:
                full.add(i)
                free[i] = start + own + load
                extra[i] += 1
            ahead[i].append(job)
            if len(full) == count:
                break
        if moves:
            sent = {job.id for job, _ in moves}
            self._queue = [job for job in self._queue if job.id not in sent]
        return moves

    def _book(self, job: Job, i: int, new: int, seconds: float) -> Move:
        now = self.world.now
        self._new[job.id] = new
        self._busy[i] = (max(self._busy[i], now) if self.unread[i] else now) + seconds
        self._hot[i] = job.model
        return self.assign(job, i)

    def arrived(self, job: Job) -> Iterable[Move]:
        now, last = self.world.now, self._seen.get(job.model)
        if last is not None:
            gap = max(now - last, 1e-3)
            mean = self._gap.get(job.model, gap)
            self._gap[job.model] = mean + RATE_FORGET * (gap - mean)
        self._seen[job.model] = now
        self._queue.append(job)
        return self._plan()

    def first(self, job: Job) -> Iterable[Move]:
        super().first(job)
        i = job.server
        self._busy[i] = self.world.now + sum(self._read_s(i, j, self._new[j.id]) for j in self.unread[i].values())
        return self._plan()

    def done(self, job: Job) -> Iterable[Move]:
        super().done(job)
        return self._plan()


class LeastWork(AtOnce):
    """Least seconds of work left, lengths and speeds true; sends at once, to machines whose own model it is."""

    batch = 4

    def _work_s(self, job: Job, i: int) -> float:
        speed = self.world.servers[i].speeds[job.model]
        unread = job.prompt if job.first_at is None else 0
        step = speed.step_s * (1 + STREAM_SLOWDOWN * (self.batch - 1)) / self.batch
        return unread / speed.prefill_tps + max(job.output - job.written, 1) * step

    def pick(self, job: Job) -> int:
        def left(i: int) -> float:
            return sum(self._work_s(j, i) for j in self.running[i].values()) + self._work_s(job, i)

        return self.least(self.pool(job), left)


class Replay(AtOnce):
    """Greedy: replays every machine to its end with and without the job, and takes the least added time (to all first
    tokens and to all ends)."""

    def pool(self, job: Job) -> Sequence[int]:
        return self.able[job.model]

    def pick(self, job: Job) -> int:
        now = self.world.now

        def added(i: int) -> float:
            server = self.world.servers[i]
            sent = [other for other in self.running[i].values() if other.delivered is None]  # on the wire
            return server.future([*sent, job], now) - server.future(sent, now)

        return self.least(self.pool(job), added)


REFERENCES: dict[str, Callable[[], Router]] = {
    "replay, greedy": lambda: Replay(Random(1)),
    "late binding": lambda: LateBinding(Random(1), 0.25, 0.25),
    "late binding, for first tokens": lambda: LateBinding(Random(1), 0.0, 0.25),
    "late binding, for ends": lambda: LateBinding(Random(1), 0.5, 0.5),
    "least work": lambda: LeastWork(Random(1)),
}
