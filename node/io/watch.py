"""Watches one ready worker: that it lives, gets on, answers when idle, and takes no more memory than it should."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node.errors import NodeError, NodeErrorCode
from node.headroom import gigabytes
from node.io.calls import STREAMED
from node.io.engine import Worker, WorkerStats
from node.io.hosted import Hosted
from node.io.probe import Probe
from node.settings import NodeSettings
from node.vitals import ProbeClock, Progress, patience_s

_IDLE_FACTOR = 5  # an idle worker is asked that much less often: all that can happen is that it ends, which is told


class Watch:
    """`measured` is called after each measurement of the worker's memory, `recycle` once, when it should be replaced
    for having grown too far and nothing is in flight."""

    def __init__(
        self,
        model: Hosted,
        worker: Worker,
        *,
        settings: NodeSettings,
        probe: Probe,
        measured: Callable[[Hosted], None],
        recycle: Callable[[Hosted, str], None],
    ) -> None:
        self._model, self._worker, self._settings, self._probe = model, worker, settings, probe
        self._measured, self._recycle = measured, recycle
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        now = self._clock()
        self._progress, self._probes = Progress(now), ProbeClock(settings, now)
        self._frozen_since: float | None = None
        self._measure_at = now + settings.measure_every_s
        self._probing: asyncio.Task[str] | None = None
        self._recycled = False
        self._doubts = model.doubts = self._loop.create_future()

    async def run(self) -> str:
        """Returns why the worker has ended, or why it has to be ended."""
        async with asyncio.TaskGroup() as tasks:
            exited = tasks.create_task(self._worker.exited())
            while not exited.done():
                why = await self._look(tasks)
                if why and not exited.done():
                    exited.cancel()
                    if self._probing is not None:
                        self._probing.cancel()
                    return why
                every_s = self._settings.stats_every_s * (_IDLE_FACTOR if self._idle and not self._frozen_since else 1)
                waiting = {f for f in (exited, self._probing, self._doubts) if f is not None and not f.done()}
                if waiting:  # else it has ended during the look
                    await asyncio.wait(waiting, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
            if self._probing is not None:
                self._probing.cancel()
        return exited.result()

    @property
    def _idle(self) -> bool:
        return not self._model.queue.in_flight and not self._model.queue.queue_depth

    async def _look(self, tasks: asyncio.TaskGroup) -> str:
        """Why it has to be ended; "" when it is well."""
        stats = await self._worker.stats()
        self._model.noted(stats)
        if not stats.alive:
            return stats.why or "it stopped answering"
        now, pid = self._clock(), self._worker.pid
        why = self._probed()
        if pid is not None:  # A server that is not ours is judged by its answers alone.
            why = why or self._frozen(pid, now) or self._hangs(stats, now)
        if why:
            return why
        if self._probing is None and self._wants_probe(now, ours=pid is not None):
            self._probing = tasks.create_task(self._ask())
        if pid is not None and now >= self._measure_at:
            await self._measure(pid, now)
        return ""

    def _wants_probe(self, now: float, *, ours: bool) -> bool:
        """A call has just failed, or it is time again; a server that is not ours is not asked without a reason."""
        due = ours and self._probes.due(idle=self._idle, now=now)
        if not self._doubts.done():
            return due
        self._doubts = self._model.doubts = self._loop.create_future()
        return True

    def _frozen(self, pid: int, now: float) -> str:
        if not self._probe.frozen(pid):
            self._frozen_since = None
            return ""
        since = self._frozen_since = self._frozen_since or now
        over = now - since >= self._settings.frozen_limit_s
        return "it hangs: its process was stopped by a signal and not continued" if over else ""

    def _hangs(self, stats: WorkerStats, now: float) -> str:
        model, settings = self._model, self._settings
        running = [c for c in model.calls.values() if c.started_at is not None and c.call.path in STREAMED]
        counters = (stats.generated_tokens, stats.prompt_tokens, stats.signs)
        silent_s = self._progress.silent_s(counters, busy=bool(running), now=now)
        unread = sum(len(c.call.body) // 2 for c in running if c.first_at is None)  # tokens have about four bytes
        step = min(unread, settings.prefill_step_tokens) if stats.reads else unread
        if silent_s <= patience_s(settings, step, model.speed.prefill_tps, tells=stats.reads):
            return ""
        return f"it hangs: no token for {silent_s:.0f} s with {len(running)} in flight"

    def _probed(self) -> str:
        if self._probing is None or not self._probing.done():
            return ""
        probing, self._probing = self._probing, None
        return probing.result()

    async def _ask(self) -> str:
        """Has it generate one token; why that is impossible, or ""."""
        try:
            async with asyncio.timeout(self._settings.idle_probe_limit_s):
                await self._worker.probe()
        except TimeoutError:
            limit_s = self._settings.idle_probe_limit_s
            return f"it hangs: no answer to a probe within {limit_s:.0f} s" if self._idle else ""
        except NodeError as error:
            if error.code is not NodeErrorCode.MODEL_FAILED:
                return ""
            return error.message if self._worker.pid is None else f"a probe failed: {error.message}"
        return ""

    async def _measure(self, pid: int, now: float) -> None:
        self._measure_at = now + self._settings.measure_every_s * (_IDLE_FACTOR if self._idle else 1)
        taken, footprint = await weigh(self._model, pid, self._probe), self._model.footprint
        if taken:
            self._measured(self._model)
        if footprint.grown(taken) and self._idle and not self._recycled:
            self._recycled = True
            self._recycle(self._model, f"it takes {gigabytes(taken)}, {gigabytes(footprint.reserved)} were reserved")


async def weigh(model: Hosted, pid: int, probe: Probe) -> int:
    """Measures what the worker `pid` takes and remembers it; bytes, 0 when that cannot be had."""
    footprint = model.footprint
    taken = await asyncio.to_thread(probe.worker_bytes, pid, children=model.spec.engine == "command")
    if taken and footprint.see(taken, grown=footprint.grown(taken)):
        await asyncio.to_thread(footprint.remember)
    return taken
