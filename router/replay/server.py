"""One machine's model server, as mlx_lm.server runs its BatchGenerator (version 0.32, read off its source).

Every round is one decode step of all running streams and then one chunk of each prompt that is being read, first come
first served. One process has one model at a time: another one only after all that runs has ended. The prompt cache is
looked up when a request reaches the server, and filled when its prompt has been read.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable
from enum import Enum

from msgspec import Struct

from node.types import ModelState
from router.replay.cache import PromptCache, SequenceCache, TokenCache
from router.replay.machines import Machine
from router.replay.trace import Job

STREAM_SLOWDOWN = 0.15  # a decode step of b streams takes 1 + 0.15 (b - 1) times that of one: 2.8x at 4, 5.7x at 32
STEPS_AT_ONCE = 64  # decode steps that are counted as one segment while nothing else happens


class Doing(Enum):
    LOAD = "load"
    MIX = "mix"  # one decode step, then one chunk of each prompt
    DECODE = "decode"  # `steps` decode steps, no prompt


class Segment(Struct, frozen=True):
    """What the GPU does now, from `start` to `end`. `steps` decode steps of `step_s` each are in it."""

    doing: Doing
    start: float
    end: float
    steps: int
    step_s: float


class Speed:
    """Of one model on one machine now; `times` changes it (throttling, someone else's job)."""

    __slots__ = ("context_s", "prefill_tps", "step_s")

    def __init__(self, prefill_tps: float, step_s: float, context_s: float) -> None:
        self.prefill_tps, self.step_s, self.context_s = prefill_tps, step_s, context_s

    def times(self, factor: float) -> None:
        self.prefill_tps *= factor
        self.step_s /= factor
        self.context_s /= factor


class Batch:
    """What one process of mlx_lm.server runs: jobs that wait for it, that are being read, that are being written.
    `model` is the one it has in memory."""

    __slots__ = ("model", "pending", "reading", "writing")

    def __init__(self, model: str) -> None:
        self.model = model
        self.pending: deque[Job] = deque()
        self.reading: list[Job] = []
        self.writing: list[Job] = []

    @property
    def works(self) -> bool:
        return bool(self.reading or self.writing or self.pending)

    def twin(self) -> Batch:
        """A copy whose jobs leave no trace in real caches."""
        twin = Batch(self.model)
        twin.pending = deque(_traceless(job) for job in self.pending)
        twin.reading = [_traceless(job) for job in self.reading]
        twin.writing = [copy.copy(job) for job in self.writing]
        return twin


class Server:
    """`deliver` a job, `poke` when that is done; each returned end of a segment asks for one `finish` then `begin`.

    One process serves all models of a machine that holds one at a time. Resident models have one each, and their
    rounds take turns on the GPU. `version` changes with every segment: an end announced under an older one is void.
    """

    def __init__(self, index: int, machine: Machine) -> None:
        self.index, self.machine = index, machine
        self.speeds = {m.name: Speed(m.prefill_tps, m.step_s, m.context_s) for m in machine.models}
        self.caches: dict[str, PromptCache] = {
            m.name: SequenceCache(machine.cache_seqs) if machine.cache_seqs else TokenCache(m.cache_tokens)
            for m in machine.models
        }
        self.batches = [Batch(m.name) for m in (machine.models if machine.resident else machine.models[:1])]
        self.batch = self.batches[0]  # whose turn it is
        self.segment: Segment | None = None
        self.version = 0
        # What it has done
        self.busy_s = 0.0
        self.loads = self.finished = 0
        self.prompt_tokens = self.cached_tokens = 0

    # What it is

    @property
    def idle(self) -> bool:
        return self.segment is None and not any(batch.pending for batch in self.batches)

    @property
    def model(self) -> str:
        """The one in memory; of resident ones, the one whose turn it is."""
        return self.batch.model

    @property
    def unread(self) -> list[Job]:
        """Waiting or being read."""
        return [job for batch in self.batches for job in (*batch.pending, *batch.reading)]

    @property
    def running(self) -> list[Job]:
        """Being read or written."""
        return [job for batch in self.batches for job in (*batch.reading, *batch.writing)]

    def state(self, name: str) -> ModelState:
        """As its node would report it: draining when the next in line is for another model."""
        if self.machine.resident:
            return ModelState.READY
        if name != self.model:
            return ModelState.ABSENT
        if self.segment is not None and self.segment.doing is Doing.LOAD:
            return ModelState.LOADING
        pending = self.batch.pending
        return ModelState.DRAINING if pending and pending[0].model != name else ModelState.READY

    def step_s(self) -> float:
        """Of one decode step of the batch whose turn it is."""
        speed, writing = self.speeds[self.batch.model], self.batch.writing
        context = 0
        for job in writing:
            context += job.prompt + job.written
        return speed.step_s * (1 + STREAM_SLOWDOWN * (len(writing) - 1)) + speed.context_s * context

    def chunk_s(self) -> float:
        """Of the next chunk of all its prompts that are being read."""
        machine, rate, reading = self.machine, self.speeds[self.batch.model].prefill_tps, self.batch.reading
        longest = max(min(machine.chunk_tokens, job.left) for job in reading)
        total = machine.begin_s
        for job in reading:
            tokens = longest if machine.padded else min(machine.chunk_tokens, job.left)
            total += tokens / rate * (1 + job.position / machine.context_scale)
        return total

    # What happens

    def deliver(self, job: Job, now: float) -> None:
        """It reaches the server, and its cached start is known."""
        found = self.caches[job.model].match(job.blocks) * job.block_tokens if job.blocks else 0
        job.cached = min(found, job.prompt - 1)
        self.cached_tokens += job.cached
        self.prompt_tokens += job.prompt
        job.left, job.position, job.delivered = job.prompt - job.cached, job.cached, now
        batch = self.batches[0]
        if self.machine.resident:
            batch = next(b for b in self.batches if b.model == job.model)
        batch.pending.append(job)

    def begin(self, now: float) -> float | None:
        """Starts the next segment; returns its end, or None when there is nothing to do."""
        alone = len(self.batches) == 1
        if not alone:
            alone = self._turn()
        self._admit()
        batch = self.batch
        if batch.reading:
            step = self.step_s() if batch.writing else 0.0
            end = now + step + self.chunk_s()
            self.segment = Segment(Doing.MIX, now, end, 1 if batch.writing else 0, step)
        elif batch.writing:
            step = self.step_s()
            steps = min(STEPS_AT_ONCE, *(1 if job.written == 0 else job.output - job.written for job in batch.writing))
            steps = steps if alone else 1
            self.segment = Segment(Doing.DECODE, now, now + steps * step, steps, step)
        elif batch.pending:
            batch.model = batch.pending[0].model
            self.loads += 1
            held = self.machine.serves(batch.model)
            assert held is not None, f"{self.machine.name} does not serve {batch.model}"
            self.segment = Segment(Doing.LOAD, now, now + held.load_s, 0, 0.0)
        else:
            self.segment = None
            return None
        self.version += 1
        return self.segment.end

    def _turn(self) -> bool:
        """The next batch with work takes the GPU. Is it the only one?"""
        turn = self.batches.index(self.batch) + 1
        self.batch = next((b for b in (*self.batches[turn:], *self.batches[:turn]) if b.works), self.batch)
        return sum(b.works for b in self.batches) == 1

    def _admit(self) -> None:
        """Prompts are read side by side, up to a number, as slots are free; the next in line may want another model."""
        batch, machine = self.batch, self.machine
        while (
            batch.pending
            and len(batch.reading) < machine.prompts
            and len(batch.reading) + len(batch.writing) < machine.slots
            and batch.pending[0].model == batch.model
        ):
            batch.reading.append(batch.pending.popleft())

    def poke(self, now: float) -> float | None:
        """Work has arrived: begins, or cuts a long run of decode steps at the next one. Returns an end that is new."""
        old = self.segment
        if old is None:
            return self.begin(now)
        if old.doing is Doing.DECODE and old.steps > 1:
            steps = min(old.steps, int((now - old.start) / old.step_s) + 1)
            if steps < old.steps:
                self.segment = Segment(Doing.DECODE, old.start, old.start + steps * old.step_s, steps, old.step_s)
                self.version += 1
                return self.segment.end
        return None

    def finish(self) -> tuple[list[Job], list[Job]]:
        """Closes the segment at its end: (jobs with their first token, jobs that are done)."""
        segment, batch = self.segment, self.batch
        assert segment is not None
        self.busy_s += segment.end - segment.start
        first: list[Job] = []
        done: list[Job] = []
        if segment.steps:
            stepped = segment.start + segment.step_s
            for job in batch.writing:
                if job.written == 0:
                    job.first_at = stepped
                    first.append(job)
                job.written += segment.steps
                if job.written >= job.output:
                    job.done_at = stepped if segment.doing is Doing.MIX else segment.end
                    done.append(job)
            if done:
                batch.writing = [job for job in batch.writing if job.written < job.output]
                self.finished += len(done)
        if segment.doing is Doing.MIX:
            self._read()
        return first, done

    def _read(self) -> None:
        """One chunk of each prompt has been read."""
        rest: list[Job] = []
        for job in self.batch.reading:
            tokens = min(self.machine.chunk_tokens, job.left)
            job.left -= tokens
            job.position += tokens
            if job.left > 0:
                rest.append(job)
                continue
            if job.blocks:
                self.caches[job.model].insert(job.blocks, job.block_tokens)
            self.batch.writing.append(job)
        self.batch.reading = rest

    # What will be

    def future(self, jobs: Iterable[Job], now: float) -> float:
        """Seconds from `now` to first tokens and to ends, added up, of all that it runs and of `jobs`, which reach it
        now. Changes nothing."""
        twin = copy.copy(self)
        twin.batches = [batch.twin() for batch in self.batches]
        twin.batch = twin.batches[self.batches.index(self.batch)]
        for job in jobs:
            arrived = copy.copy(job)
            twin.deliver(arrived, now)
            arrived.blocks = ()
        twin.poke(now)
        total = 0.0
        while twin.segment is not None:
            end = twin.segment.end
            first, done = twin.finish()
            total += sum((j.first_at or end) - now for j in first) + sum((j.done_at or end) - now for j in done)
            twin.begin(end)
        return total


def _traceless(job: Job) -> Job:
    twin = copy.copy(job)
    twin.blocks = ()
    return twin
