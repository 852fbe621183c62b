"""Routers of others, restated from their public sources. Each sees only what the real one sees (docs/bench.md)."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable
from random import Random

from bench.routing.herd import Herd
from router.replay.cache import TokenCache
from router.replay.peers import AtOnce, LeastInFlight, RoundRobin, Router
from router.replay.trace import Job
from router.replay.world import Move, World

NO_BOUND = 10**12


class Prefixes(AtOnce):
    """Remembers which prompts it sent where, without forgetting."""

    def start(self) -> None:
        self.known: dict[tuple[int, str], TokenCache] = {}

    def match(self, index: int, job: Job) -> int:
        """Tokens of the prompt that it believes are cached there."""
        known = self.known.get((index, job.model))
        return min(known.match(job.blocks) * job.block_tokens, job.prompt - 1) if known and job.blocks else 0

    def assign(self, job: Job, index: int) -> Move:
        if job.blocks:
            self.known.setdefault((index, job.model), TokenCache(NO_BOUND)).insert(job.blocks, job.block_tokens)
        return super().assign(job, index)

    def new(self, index: int, job: Job) -> int:
        return job.prompt - self.match(index, job)


class ByLot(AtOnce):
    """LiteLLM's simple-shuffle, SGLang's random."""

    def pick(self, job: Job) -> int:
        return self.rng.choice(self.pool(job))


class TwoChoices(AtOnce):
    """SGLang power_of_two."""

    def pick(self, job: Job) -> int:
        pool = self.pool(job)
        if len(pool) < 2:
            return pool[0]
        a, b = self.rng.sample(pool, 2)
        return a if len(self.running[a]) <= len(self.running[b]) else b


class Sticky(AtOnce):
    """olla's sticky least connections, vLLM production-stack by session: pins a session, or a prompt's first block."""

    def start(self) -> None:
        self._pins: dict[tuple[str, int], int] = {}

    def pick(self, job: Job) -> int:
        mark = job.session if job.session >= 0 else (job.blocks[0] if job.blocks else None)
        if mark is not None and (job.model, mark) in self._pins:
            return self._pins[job.model, mark]
        index = self.least(self.pool(job), lambda i: len(self.running[i]))
        if mark is not None:
            self._pins[job.model, mark] = index
        return index


class LiteLlmLatency(AtOnce):
    """lowest_latency.py, streaming: mean of ten TTFT / completion tokens; past ten only the last is replaced."""

    def start(self) -> None:
        self._samples: dict[tuple[int, str], list[float]] = {}

    def pick(self, job: Job) -> int:
        return self.least(self.pool(job), lambda i: statistics.fmean(self._samples.get((i, job.model)) or [0.0]))

    def done(self, job: Job) -> Iterable[Move]:
        assert job.first_at is not None
        assert job.arrived is not None
        samples = self._samples.setdefault((job.server, job.model), [])
        samples[9:] = []
        samples.append((job.first_at - job.arrived) / job.output)
        return super().done(job)


class SglangCacheAware(Prefixes):
    """cache_aware.rs with its defaults: the longest prefix if over 0.3 matches, else the least load; the least load
    when loads differ by more than 64 and half."""

    apart, ratio, threshold = 64, 1.5, 0.3

    def pick(self, job: Job) -> int:
        pool = self.pool(job)
        load = {i: len(self.running[i]) for i in pool}
        most, fewest = max(load.values()), min(load.values())
        if not (most - fewest > self.apart and most > fewest * self.ratio) and job.blocks:
            matches = {i: self.match(i, job) for i in pool}
            if max(matches.values()) / job.prompt > self.threshold:
                return self.least(pool, lambda i: -matches[i])
        return self.least(pool, lambda i: load[i])


class SglangTuned(SglangCacheAware):
    """The same, balancing from a difference of two requests on."""

    apart = 2


class VllmPrefix(Prefixes):
    """production-stack's PrefixAwareRouter: the longest match, by lot among equals; load does not count."""

    def pick(self, job: Job) -> int:
        return self.least(self.pool(job), lambda i: -self.match(i, job))


class LlmD(Prefixes):
    """llm-d, the default profile of GAIE: 2 x queue + 2 x free KV + 3 x match, from metrics scraped every 50 ms."""

    report_s = 0.05

    def pick(self, job: Job) -> int:
        pool, seen = self.pool(job), self.world.reports
        waiting = {i: seen[i].waiting for i in pool}
        most, fewest = max(waiting.values()), min(waiting.values())

        def score(i: int) -> float:
            used = min(1.0, seen[i].tokens / max(1, self.world.servers[i].machine.home.cache_tokens))
            queue = 1.0 if most == fewest else (most - waiting[i]) / (most - fewest)
            return 2 * queue + 2 * (1 - used) + 3 * self.match(i, job) / job.prompt

        return self.least(pool, lambda i: -score(i))


class Dynamo(Prefixes):
    """NVIDIA Dynamo's KV router: blocks still to be read + blocks in use, temperature 0, its own account."""

    block = 16.0

    def start(self) -> None:
        super().start()
        self._new: dict[int, int] = {}

    def pick(self, job: Job) -> int:
        def cost(i: int) -> float:
            unread = sum(self._new.get(j.id, 0) for j in self.unread[i].values()) + self.new(i, job)
            used = sum(j.prompt + j.written for j in self.running[i].values()) + job.prompt
            return unread / self.block + used / self.block

        index = self.least(self.pool(job), cost)
        self._new[job.id] = self.new(index, job)
        return index


class LMetric(Prefixes):
    """LMetric (arXiv 2603.15202; SGLang's lmetric.rs): new tokens to read x (load + 1)."""

    def pick(self, job: Job) -> int:
        def cost(i: int) -> float:
            load = len(self.running[i])
            return self.new(i, job) * (load + 1) + 1e-6 * load

        return self.least(self.pool(job), cost)


class Preble(Prefixes):
    """E2 (ICLR 25): where most is cached if that exceeds the rest, else the least recent load (3 minutes) + own."""

    window_s, mean_output, decode_weight = 180.0, 200, 5

    def start(self) -> None:
        super().start()
        self._sent: list[deque[tuple[float, int]]] = [deque() for _ in self.world.servers]

    def _load(self, i: int) -> int:
        sent = self._sent[i]
        while sent and sent[0][0] < self.world.now - self.window_s:
            sent.popleft()
        return sum(tokens for _, tokens in sent)

    def pick(self, job: Job) -> int:
        pool = self.pool(job)
        matches = {i: self.match(i, job) for i in pool}
        best, picked = max(matches.values()), -1
        if best > job.prompt - best:
            picked = min((i for i in pool if matches[i] == best), key=self._load)
            if self._load(picked) > 2 * min(self._load(i) for i in pool) + job.prompt:
                picked = -1
        if picked < 0:
            picked = self.least(pool, lambda i: self._load(i) + job.prompt - matches[i])
        work = job.prompt - matches[picked] + self.decode_weight * self.mean_output
        self._sent[picked].append((self.world.now, work))
        return picked


class Mooncake(Prefixes):
    """Conductor: the least still to be read there, its own part included; one speed for all nodes."""

    def start(self) -> None:
        super().start()
        self._new: dict[int, int] = {}

    def pick(self, job: Job) -> int:
        def cost(i: int) -> float:
            return sum(self._new.get(j.id, 0) for j in self.unread[i].values()) + self.new(i, job)

        index = self.least(self.pool(job), cost)
        self._new[job.id] = self.new(index, job)
        return index


class CentralQueue(Router):
    """One queue, one prompt at a time for each machine, the emptiest free one: theory's ideal for equal machines."""

    def attach(self, world: World) -> None:
        super().attach(world)
        self._queue: deque[Job] = deque()

    def _drain(self) -> list[Move]:
        moves: list[Move] = []
        for job in list(self._queue):
            free = [
                i
                for i in self.pool(job)
                if not self.unread[i] and len(self.running[i]) < self.world.servers[i].machine.slots
            ]
            if free:
                self._queue.remove(job)
                moves.append(self.assign(job, self.least(free, lambda i: len(self.running[i]))))
        return moves

    def arrived(self, job: Job) -> Iterable[Move]:
        self._queue.append(job)
        return self._drain()

    def first(self, job: Job) -> Iterable[Move]:
        super().first(job)
        return self._drain()

    def done(self, job: Job) -> Iterable[Move]:
        super().done(job)
        return self._drain()


class ShortestDelay(AtOnce):
    """(In flight + 1) / speed, the speeds given: theory."""

    def pick(self, job: Job) -> int:
        def delay(i: int) -> float:
            return (len(self.running[i]) + 1) / self.world.servers[i].speeds[job.model].prefill_tps

        return self.least(self.pool(job), delay)


def _seeded(kind: type[Router]) -> Callable[[], Router]:
    return lambda: kind(Random(1))


PEERS: dict[str, Callable[[], Router]] = {
    "random": _seeded(ByLot),
    "round robin": _seeded(RoundRobin),
    "least in flight": _seeded(LeastInFlight),
    "two choices": _seeded(TwoChoices),
    "sticky": _seeded(Sticky),
    "LiteLLM latency": _seeded(LiteLlmLatency),
    "herd": _seeded(Herd),
    "SGLang": _seeded(SglangCacheAware),
    "SGLang tuned": _seeded(SglangTuned),
    "vLLM prefix": _seeded(VllmPrefix),
    "llm-d": _seeded(LlmD),
    "Dynamo": _seeded(Dynamo),
    "LMetric": _seeded(LMetric),
    "Preble": _seeded(Preble),
    "Mooncake": _seeded(Mooncake),
}
THEORY: dict[str, Callable[[], Router]] = {  # not what anyone runs: shown, not counted among the peers
    "central FCFS": _seeded(CentralQueue),
    "shortest delay": _seeded(ShortestDelay),
}
