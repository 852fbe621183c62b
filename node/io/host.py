"""This Mac's models and what each one runs: the face of the node for edge, peers and admin API.

Every call is in exactly one model's queue from `_admit` to `_leave`, whatever happens between; nothing else counts.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NoReturn

from msgspec import structs

from node import headroom
from node.errors import NodeError, NodeErrorCode
from node.facts import DrainFact, NodeFact, PressureFact
from node.io.calls import STREAMED, AdmittedCall, Call, Outcome, cannot_resume
from node.io.engine import Engine, ModelSpec, WorkerStats
from node.io.flow import Awaited, Flow, Sink
from node.io.hosted import Hosted
from node.io.keeper import Keeper
from node.io.measured import Measured
from node.io.probe import Probe
from node.io.roster import Roster
from node.lifecycle import Quiet, Unwanted
from node.openai import runs_alone
from node.rail_events import Budget, Ended, Gap
from node.settings import NodeSettings
from node.types import Hardware, Memory, ModelReport, ModelState, Pressure, Resume, RunningReport

__all__ = ["Call", "Host"]


class Host:
    """All models of this node. `report` gets facts, `changed` is called whenever a new NodeReport would differ."""

    def __init__(
        self,
        *,
        settings: NodeSettings,
        engines: Mapping[str, Engine],
        report: Callable[[NodeFact], None],
        changed: Callable[[], None],
        probe: Probe,
        measured: Measured | None = None,
    ) -> None:
        self._settings, self._report, self._probe = settings, report, probe
        self._on_change = changed
        self._keeper = Keeper(settings, report, self._changed, self._ended, probe)
        self._roster = Roster(
            settings=settings,
            engines=engines,
            measured=measured or Measured(),
            keeper=self._keeper,
            report=report,
            changed=self._changed,
        )
        self._hardware, self._pressure = Hardware(), Pressure.NORMAL
        self._working_set = 0
        self._up = asyncio.Event()
        self._news = asyncio.Event()  # replaced on every change
        self.draining, self.drain_reason = False, ""

    # What it says of itself

    def models(self) -> tuple[ModelReport, ...]:
        now = _clock()
        return tuple(self._shown(m, now) for m in self._roster.models.values())

    def _shown(self, model: Hosted, now: float) -> ModelReport:
        rail = self._keeper.rail
        at, waits = rail.unloads_at(model.name), model.lifecycle.state in (ModelState.ABSENT, ModelState.LOADING)
        return structs.replace(
            model.report(now),
            load_s=model.load_s + (rail.wait_s(model.name, model.size_bytes, now) if waits else 0.0),
            reserved_bytes=rail.reserved_bytes(model.name),
            unloads_in_s=None if at is None else round(max(0.0, at - now), 1),
        )

    def memory(self) -> Memory:
        rail = self._keeper.rail
        return Memory(
            budget_bytes=rail.budget_bytes,
            used_bytes=rail.used_bytes,
            headroom_bytes=rail.headroom_bytes,
            evictable_bytes=rail.evictable_bytes,
            pressure=self._pressure,
        )

    def hardware(self) -> Hardware:
        """Unknown until `run` has looked; `changed` is called then."""
        return self._hardware

    def running(self) -> tuple[RunningReport, ...]:
        """Every call that is admitted here and not over."""
        now = _clock()
        return tuple(
            RunningReport(c.call.id, c.call.attempt, m.name, c.started_at is not None, now - c.admitted_at, c.call.edge)
            for m in self._roster.everyone()
            for c in m.calls.values()
        )

    def worker_stats(self) -> dict[str, WorkerStats]:
        """Counters of each model's workers since the daemon started."""
        return {m.name: m.stats() for m in self._roster.models.values()}

    # Its life

    async def run(self) -> None:
        """Drives everything until cancelled; every worker is gone when it returns."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._keeper.clock = asyncio.get_running_loop().time  # asking which loop runs is a system call
                self._keeper.tasks = tasks
                self._roster.fetching.begin(tasks)
                try:
                    await self._look()
                finally:
                    self._keeper.tasks = None
                    self._roster.fetching.end()
        finally:
            for model in self._roster.everyone():
                model.disarm()
                model.fail_calls(in_flight=_stopped(), waiting=_stopped())
            workers = [m.worker for m in self._roster.everyone() if m.worker is not None]
            await asyncio.gather(*(w.stop(0.0) for w in workers), return_exceptions=True)

    async def _look(self) -> NoReturn:
        """Looks what the machine is, then again and again how it is."""
        self._hardware = await asyncio.to_thread(self._probe.hardware)
        self._working_set = await asyncio.to_thread(self._probe.working_set_bytes)
        self._set_bounds()
        self._up.set()
        self._changed()
        while True:
            pressure = await asyncio.to_thread(self._probe.pressure)
            if pressure is not self._pressure:
                self._pressure = pressure
                self._report(PressureFact(pressure=pressure, budget_bytes=self._keeper.rail.budget_bytes))
                self._changed()
            await asyncio.sleep(self._settings.probe_every_s)

    def retune(self, settings: NodeSettings) -> None:
        """`memory-budget`, `request-gap` and `idle-timeout` are as in `settings` from now on."""
        self._settings = settings
        if self._up.is_set():
            self._set_bounds()
            self._changed()

    def _set_bounds(self) -> None:
        """Tells the rail what the settings say, or what fits this machine where they say nothing."""
        settings, memory_bytes = self._settings, self._hardware.memory_bytes
        idle_s = settings.idle_timeout_s
        self._keeper.idle_s = headroom.default_idle_s(memory_bytes) if idle_s is None else idle_s
        for model in self._roster.models.values():
            self._keeper.set_terms(model)
        self._keeper.rail_step(Gap(settings.request_gap_s))
        budget = settings.memory_budget_bytes or headroom.default_budget(memory_bytes, self._working_set)
        self._keeper.rail_step(Budget(budget))

    def drain(self, reason: str) -> None:
        """Takes no new call; finishes what it has."""
        self.draining, self.drain_reason = True, reason
        self._report(DrainFact(phase="begun", why=reason))
        self._note_drained()
        self._changed()

    def _note_drained(self) -> None:
        if self.draining and not any(m.calls for m in self._roster.everyone()):
            self._report(DrainFact(phase="drained"))

    def break_off(self, why: str) -> None:
        """Ends every call that is here: an edge lets each go on elsewhere. Not a failure of any model."""
        for model in self._roster.everyone():
            over = NodeError(NodeErrorCode.DRAINING, why)
            model.fail_calls(in_flight=over, waiting=over)

    def undrain(self) -> None:
        if self.draining:
            self._report(DrainFact(phase="ended"))
        self.draining, self.drain_reason = False, ""
        self._changed()

    async def stop(self, grace_s: float) -> None:
        """Drains for at most `grace_s`, ends what still runs, then every worker; returns when their pids are gone."""
        self.drain("stopping")
        await self._until(lambda: not self.running(), grace_s)
        for model in self._roster.everyone():
            model.fail_calls(in_flight=_stopped(), waiting=_stopped())
            self._keeper.tell(model, Unwanted("stopping", "stopping"))
            self._keeper.tell(model, Quiet())  # Whoever still reads gets the error; the worker need not wait for that.
        limit_s = self._settings.stop_grace_s + self._settings.close_limit_s
        await self._until(lambda: not any(m.lifecycle.has_worker for m in self._roster.everyone()), limit_s)

    # Which models there are

    async def apply(self, specs: Sequence[ModelSpec]) -> None:
        """The stack file says `specs`: adds, removes, restarts what differs. New ones are loaded while they fit."""
        await self._up.wait()
        await self._roster.apply(specs)

    async def load(self, name: str) -> None:
        """Returns when the model is ready. Raises NodeError: unknown, no room, or its start failed."""
        model = self._roster.find(name)
        await model.examine(self._keeper.rail.budget_bytes)
        if model.download is not None:
            self._roster.fetching.again(model)
            await self._until(lambda: not _coming(model) or not self._roster.has(model))
        model.loads += 1
        try:
            if self._roster.has(model):  # The stack file may have changed while its files were read.
                self._keeper.want(model, afresh=True)
            await self._until(lambda: model.name not in self._keeper.rail.line, self._keeper.hold_s(model))
            if model.name in self._keeper.rail.line:
                raise NodeError(NodeErrorCode.NODE_BUSY, f"{model.name} waits for room: it {model.held}")
            states = (ModelState.LOADING, ModelState.DRAINING)
            await self._until(
                lambda: model.problem != "" or (not model.waits_for and model.lifecycle.state not in states)
            )
        finally:
            model.loads -= 1
            self._keeper.give_up(model)
        if failure := model.failure(_clock()):
            raise failure
        if model.lifecycle.state is not ModelState.READY:
            raise NodeError(NodeErrorCode.NODE_BUSY, f"{model.name}: {model.error or 'was unloaded meanwhile'}")

    async def unload(self, name: str) -> None:
        """Returns when its process is gone; what it is answering finishes first. Raises NodeError when unknown."""
        model = self._roster.find(name)
        await self._until(lambda: model.waits_for is None)
        self._keeper.tell(model, Unwanted("it is being unloaded", "asked"))
        leaving = (ModelState.DRAINING, ModelState.ABSENT)  # Else somebody wants it again.
        await self._until(lambda: not model.lifecycle.has_worker or model.lifecycle.state not in leaving)

    def kill(self, name: str) -> int:
        """Kills the process that serves this model, as a crash would end it, and as after a crash it is begun again.
        Its pid. Raises NodeError: unknown, or no process of ours answers for it now."""
        model = self._roster.find(name)
        pid = model.worker.pid if model.worker is not None else None
        if pid is None or model.lifecycle.state is not ModelState.READY:
            raise NodeError(NodeErrorCode.NODE_BUSY, f"{model.name}: no process of this node serves it now")
        os.kill(pid, signal.SIGKILL)
        return pid

    # Calls

    def pour(self, call: Call, sink: Sink) -> Flow:
        """Runs it: the answer goes into `sink` as SSE blocks, `: alive` each silent second, `data: {...}`, then one
        `: usage {...}`, and `done`. Closing the flow cancels the worker. Raises NodeError: it is not admitted.
        """
        assert call.path in STREAMED
        return self._admit(call, sink)

    async def post(self, call: Call) -> tuple[int, str, bytes]:
        """Another endpoint (embeddings, ...): the engine's status, content type and body. Raises NodeError."""
        assert call.path not in STREAMED
        sink = Awaited()
        admitted = self._admit(call, sink)
        try:
            await sink.end
        finally:
            admitted.close()
        assert admitted.answer is not None
        return admitted.answer

    def _admit(self, call: Call, sink: Sink) -> AdmittedCall:
        """Puts the call in its model's line, starting a cold model that fits. Raises NodeError."""
        if self.draining:
            raise NodeError(NodeErrorCode.DRAINING, f"this node is draining: {self.drain_reason}")
        model, now = self._roster.find(call.model), self._keeper.clock()
        if failure := model.failure(now):
            raise failure
        if call.resumes and model.resume is not Resume.CONTINUE:
            raise cannot_resume(model.name)
        lifecycle = model.lifecycle
        absent = lifecycle.state is ModelState.ABSENT or lifecycle.emptied
        if model.waits_for or not self._up.is_set() or (lifecycle.state is ModelState.DRAINING and not absent):
            why = "it is being reloaded" if model.waits_for else lifecycle.why or "this node is starting"
            raise NodeError(NodeErrorCode.NODE_BUSY, f"{model.name}: {why}", retry_after_s=model.queue.retry_after_s())
        alone = model.spec.engine == "mlx-lm" and call.path in STREAMED and runs_alone(call.body)
        model.queue.admit((call.id, call.attempt), now, alone=alone)
        leave = partial(self._leave, model)
        admitted = AdmittedCall(call, model.name, self._settings, sink=sink, too_late=model.too_late, left=leave)
        model.calls[admitted.key] = admitted
        admitted.cold = lifecycle.state is not ModelState.READY
        if absent:
            self._keeper.want(model)
        if lifecycle.state is not ModelState.READY or self._keeper.rail.yields(model.name):
            admitted.hold_until = self._keeper.hold_until(model, admitted)
        self._keeper.advance(model)
        admitted.watch()
        self._changed()
        return admitted

    def _leave(self, model: Hosted, admitted: AdmittedCall, outcome: Outcome, error: NodeError | None) -> None:
        now = self._keeper.clock()
        model.queue.leave(admitted.key, now)
        del model.calls[admitted.key]
        tells = outcome == "ok" and not admitted.call.resumes  # whose usage is that of the whole answer
        if tells and admitted.started_at and admitted.first_at and admitted.last_at:
            decode_s = admitted.last_at - admitted.first_at
            model.speed.learn(admitted.usage, admitted.first_at - admitted.started_at, decode_s)
        if error is not None and error.code is NodeErrorCode.MODEL_FAILED:
            model.doubt()
        self._report(admitted.fact(outcome, error, now))
        self._note_drained()
        self._keeper.advance(model)
        if not model.queue.in_flight:
            self._keeper.tell(model, Quiet())
        if admitted.started_at is not None:
            self._keeper.rail_step(Ended(model.name, model.queue.in_flight))
        self._keeper.give_up(model)
        self._changed()

    # Small things

    def _ended(self, model: Hosted) -> None:
        self._roster.ended(model)

    async def _until(self, holds: Callable[[], bool], limit_s: float | None = None) -> None:
        """Waits for `holds`, looking after every change; gives up quietly after `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                while not holds():
                    await self._news.wait()
        except TimeoutError:
            pass

    def _changed(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
        self._on_change()


def _coming(model: Hosted) -> bool:
    """Its weights are on their way."""
    return model.download is not None and not model.download.failed


def _stopped() -> NodeError:
    return NodeError(NodeErrorCode.DRAINING, "this node stopped")


def _clock() -> float:
    return asyncio.get_running_loop().time()
