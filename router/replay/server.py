"""One machine's model server, as mlx_lm.server runs its BatchGenerator (version 0.32, read off its source).

Every round is one decode step of all running streams and then one chunk of each prompt that is being read, first come
first served. One model at a time: another one only after all that runs has ended. The prompt cache is looked up when a
request reaches the server, and filled when its prompt has been read.
"""

from __future__ import annotations

from collections import deque
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


class Server:
    """`deliver` a job, `poke` when that is done; each returned end of a segment asks for one `finish` then `begin`.

    `version` changes with every segment: an end announced under an older one is void.
    """

    def __init__(self, index: int, machine: Machine) -> None:
        self.index, self.machine = index, machine
        self.model = machine.own.name
        self.speeds = {m.name: Speed(m.prefill_tps, m.step_s, m.context_s) for m in machine.models}
        self.caches: dict[str, PromptCache] = {
            m.name: SequenceCache(machine.cache_seqs) if machine.cache_seqs else TokenCache(m.cache_tokens)
            for m in machine.models
        }
        self.pending: deque[Job] = deque()
        self.reading: list[Job] = []
        self.writing: list[Job] = []
        self.segment: Segment | None = None
        self.version = 0
        # What it has done
        self.busy_s = 0.0
        self.loads = self.finished = 0
        self.prompt_tokens = self.cached_tokens = 0

    # What it is

    @property
    def idle(self) -> bool:
        return self.segment is None and not self.pending

    def state(self, name: str) -> ModelState:
        """As its node would report it: draining when the next in line is for another model."""
        if name != self.model:
            return ModelState.READY if self.machine.resident else ModelState.ABSENT
        if self.segment is not None and self.segment.doing is Doing.LOAD:
            return ModelState.READY if self.machine.resident else ModelState.LOADING
        if self.pending and self.pending[0].model != name and not self.machine.resident:
            return ModelState.DRAINING
        return ModelState.READY

    def step_s(self) -> float:
        """Of one decode step of all that run now."""
        speed = self.speeds[self.model]
        context = 0
        for job in self.writing:
            context += job.prompt + job.written
        return speed.step_s * (1 + STREAM_SLOWDOWN * (len(self.writing) - 1)) + speed.context_s * context

    def chunk_s(self) -> float:
        """Of the next chunk of all prompts that are being read."""
        machine, rate = self.machine, self.speeds[self.model].prefill_tps
        longest = max(min(machine.chunk_tokens, job.left) for job in self.reading)
        total = machine.begin_s
        for job in self.reading:
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
        self.pending.append(job)

    def begin(self, now: float) -> float | None:
        """Starts the next segment; returns its end, or None when there is nothing to do."""
        machine = self.machine
        while (
            self.pending
            and len(self.reading) < machine.prompts
            and len(self.reading) + len(self.writing) < machine.slots
            and self.pending[0].model == self.model
        ):
            self.reading.append(self.pending.popleft())
        if self.reading:
            step = self.step_s() if self.writing else 0.0
            end = now + step + self.chunk_s()
            self.segment = Segment(Doing.MIX, now, end, 1 if self.writing else 0, step)
        elif self.writing:
            step = self.step_s()
            steps = min(STEPS_AT_ONCE, *(1 if job.written == 0 else job.output - job.written for job in self.writing))
            self.segment = Segment(Doing.DECODE, now, now + steps * step, steps, step)
        elif self.pending:
            self.model = self.pending[0].model
            self.loads += 1
            held = machine.serves(self.model)
            assert held is not None, f"{machine.name} does not serve {self.model}"
            self.segment = Segment(Doing.LOAD, now, now + machine.loads_s(held), 0, 0.0)
        else:
            self.segment = None
            return None
        self.version += 1
        return self.segment.end

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
        segment = self.segment
        assert segment is not None
        self.busy_s += segment.end - segment.start
        first: list[Job] = []
        done: list[Job] = []
        if segment.steps:
            stepped = segment.start + segment.step_s
            for job in self.writing:
                if job.written == 0:
                    job.first_at = stepped
                    first.append(job)
                job.written += segment.steps
                if job.written >= job.output:
                    job.done_at = stepped if segment.doing is Doing.MIX else segment.end
                    done.append(job)
            if done:
                self.writing = [job for job in self.writing if job.written < job.output]
                self.finished += len(done)
        if segment.doing is Doing.MIX:
            self._read()
        return first, done

    def _read(self) -> None:
        """One chunk of each prompt has been read."""
        rest: list[Job] = []
        for job in self.reading:
            tokens = min(self.machine.chunk_tokens, job.left)
            job.left -= tokens
            job.position += tokens
            if job.left > 0:
                rest.append(job)
                continue
            if job.blocks:
                self.caches[job.model].insert(job.blocks, job.block_tokens)
            self.writing.append(job)
        self.reading = rest
