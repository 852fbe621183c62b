"""What others do when they route: the simple rules that `mesh simulate` compares with. Sources: docs/bench.md."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from random import Random

from router.replay.server import Server
from router.replay.trace import Job
from router.replay.world import Move, Policy, World

EQUAL = 1e-12


class Router(Policy):
    """What it does with a job that has `arrived` is each one's own. All keep their own count: `running` jobs of each
    server, and those of them that are still `unread` (no first token). `pool`: only machines whose own model it is."""

    report_s: float = 0.0

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.world: World
        self.running: list[dict[int, Job]] = []
        self.unread: list[dict[int, Job]] = []
        self.homes: dict[str, list[int]] = {}
        self.able: dict[str, list[int]] = {}

    @property
    def deadline(self) -> float | None:
        return None

    def attach(self, world: World) -> None:
        self.world = world
        self.running = [{} for _ in world.servers]
        self.unread = [{} for _ in world.servers]
        for server in world.servers:
            for model in server.machine.models:
                if model.own:
                    self.homes.setdefault(model.name, []).append(server.index)
                self.able.setdefault(model.name, []).append(server.index)
        self.start()

    def start(self) -> None:
        """Once, when the machines are known."""

    def pool(self, job: Job) -> Sequence[int]:
        return self.homes.get(job.model) or self.able[job.model]

    def assign(self, job: Job, index: int) -> Move:
        self.running[index][job.id] = job
        self.unread[index][job.id] = job
        return job, index

    def delivered(self, _job: Job, /) -> Iterable[Move]:
        return ()

    def first(self, job: Job) -> Iterable[Move]:
        self.unread[job.server].pop(job.id, None)
        return ()

    def done(self, job: Job) -> Iterable[Move]:
        self.running[job.server].pop(job.id, None)
        self.unread[job.server].pop(job.id, None)
        return ()

    def changed(self, _server: Server, /) -> Iterable[Move]:
        return ()

    def woken(self) -> Iterable[Move]:
        return ()

    def least(self, indices: Iterable[int], price: Callable[[int], float]) -> int:
        """The cheapest; ties by lot."""
        best = float("inf")
        found: list[int] = []
        for index in indices:
            value = price(index)
            if not found or value < best - EQUAL:
                best, found = value, [index]
            elif value <= best + EQUAL:
                found.append(index)
        return found[0] if len(found) == 1 else self.rng.choice(found)


class AtOnce(Router):
    """Sends each job when it comes, to the server that `pick` names."""

    @abstractmethod
    def pick(self, job: Job) -> int: ...

    def arrived(self, job: Job) -> Iterable[Move]:
        return [self.assign(job, self.pick(job))]


class RoundRobin(AtOnce):
    """One after the other."""

    def start(self) -> None:
        self._turn: dict[str, int] = {}

    def pick(self, job: Job) -> int:
        pool = self.pool(job)
        self._turn[job.model] = self._turn.get(job.model, 0) + 1
        return pool[self._turn[job.model] % len(pool)]


class LeastInFlight(AtOnce):
    """Least connections (olla), least busy (LiteLLM), shortest queue (vLLM, SGLang): all count requests."""

    def pick(self, job: Job) -> int:
        return self.least(self.pool(job), lambda index: len(self.running[index]))
