"""ollama-herd 0.11, restated: its ScoringEngine with bandwidth, a queue for each (node, model), its rebalancer."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

from router.replay.machines import GB
from router.replay.peers import Router
from router.replay.server import Server
from router.replay.trace import Job
from router.replay.world import Move

REBALANCE_S = 5.0
BANDWIDTH_CAP = 819.0
LONG_QUEUE = 4


class Herd(Router):
    """The highest score takes it, up to 1 to 8 workers run there, the rest of the queue may be moved every 5 s."""

    def start(self) -> None:
        self._queues: dict[tuple[int, str], deque[Job]] = {}
        self._latencies: dict[tuple[int, str], deque[float]] = {}
        self._workers: dict[tuple[int, str], int] = {}
        for server in self.world.servers:
            for model in server.machine.models:
                spare_gb = self._spare_gb(server) - model.size_bytes / GB
                self._workers[server.index, model.name] = max(1, min(8, int(spare_gb / 2.0)))
        self._next_s = REBALANCE_S

    @staticmethod
    def _spare_gb(server: Server) -> float:
        return (server.machine.memory_bytes * 0.75 - server.machine.home.size_bytes) / GB

    def _depth(self, i: int, model: str) -> int:
        waiting = len(self._queues.get((i, model), ()))
        return waiting + sum(1 for job in self.running[i].values() if job.model == model)

    def _score(self, i: int, name: str) -> float:
        server = self.world.servers[i]
        model = server.machine.serves(name)
        assert model is not None
        gigabytes, bandwidth = model.size_bytes / GB, min(server.machine.bandwidth, BANDWIDTH_CAP)
        if server.model == name:
            score = 70.0
        else:
            room = self._spare_gb(server) / gigabytes
            score = 10.0 + next(
                (s for bound, s in ((2, 20), (1.5, 15), (1.2, 8)) if room > bound), 3 if room >= 1 else 0
            )
        depth = self._depth(i, name)
        if depth:
            median = statistics.median(min(s.machine.bandwidth, BANDWIDTH_CAP) for s in self.world.servers)
            score -= min(30.0, 6.0 * depth / max(0.25, min(4.0, bandwidth / median)))
            seen = sorted(self._latencies.get((i, name), ()))
            if seen:
                usual_s = seen[min(int(len(seen) * 0.75), len(seen) - 1)]
            else:
                usual_s = 100.0 / max(10.0, bandwidth * 1.2 / max(1.0, gigabytes / 10))
            score -= min(25.0, depth * usual_s / 10.0)
        bonus = min(25.0, 5 + bandwidth / 40)
        if gigabytes > 20:
            return score + bonus
        return score + (max(3.0, 18 - 0.6 * bonus) if gigabytes < 8 else 0.6 * bonus)

    def _drain(self) -> list[Move]:
        moves: list[Move] = []
        for (i, model), queue in self._queues.items():
            running = sum(1 for job in self.running[i].values() if job.model == model)
            while queue and running < self._workers[i, model]:
                moves.append(self.assign(queue.popleft(), i))
                running += 1
        return moves

    def _rebalance(self) -> None:
        while self.world.now >= self._next_s:
            self._next_s += REBALANCE_S
            for (i, model), queue in list(self._queues.items()):
                if len(queue) < LONG_QUEUE:
                    continue
                for other in sorted((o for o in self.able[model] if o != i), key=lambda o: -self._score(o, model)):
                    if self._depth(other, model) >= LONG_QUEUE or self.world.servers[other].model != model:
                        continue
                    for _ in range(min(len(queue) // 2, 3)):
                        self._queues.setdefault((other, model), deque()).append(queue.pop())
                    break

    def arrived(self, job: Job) -> Iterable[Move]:
        self._rebalance()
        best = min(self.able[job.model], key=lambda i: -self._score(i, job.model))
        self._queues.setdefault((best, job.model), deque()).append(job)
        return self._drain()

    def first(self, job: Job) -> Iterable[Move]:
        super().first(job)
        self._rebalance()
        return self._drain()

    def done(self, job: Job) -> Iterable[Move]:
        assert job.done_at is not None
        assert job.sent is not None
        super().done(job)
        self._latencies.setdefault((job.server, job.model), deque(maxlen=500)).append(job.done_at - job.sent)
        self._rebalance()
        return self._drain()
