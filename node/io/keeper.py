"""Keeps each model's worker as its machine decides: events in, effects done, workers started, watched and ended.

`tell` is the only way an event reaches a model's machine, `_perform` the only place where what it decides is done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import assert_never

from msgspec import structs

from node.errors import NodeError, NodeErrorCode
from node.facts import ModelFact, NodeFact, WorkerFact
from node.io.engine import Worker
from node.io.hosted import Hosted
from node.lifecycle import (
    Begun,
    Changed,
    Exited,
    Gone,
    LifecycleEffect,
    LifecycleEvent,
    NoRoom,
    Quiet,
    Start,
    Started,
    StartFailed,
    Stop,
    Tick,
    Wanted,
)
from node.rail import Full, Load, Rail, RailEvent, Release, Reserve, Settled
from node.settings import NodeSettings
from node.types import ModelState


class Keeper:
    """`changed` is called after every change of a model, `ended` when the process of one is gone."""

    def __init__(
        self,
        settings: NodeSettings,
        report: Callable[[NodeFact], None],
        changed: Callable[[], None],
        ended: Callable[[Hosted], None],
    ) -> None:
        self._settings, self._report, self._changed, self._ended = settings, report, changed, ended
        self._inbox: deque[tuple[Hosted, LifecycleEvent]] = deque()
        self._holders: dict[str, Hosted] = {}  # whom the rail means by a name
        self.rail = Rail(settings.memory_budget_bytes)
        self.tasks: asyncio.TaskGroup | None = None  # None: not running (yet, or any more), and nothing happens

    def want(self, model: Hosted, *, afresh: bool = False) -> None:
        """Loads `model` unless it cannot be loaded; one that replaces another waits until that is gone."""
        if model.waits_for is None and not model.problem and model.download is None:
            self.tell(model, Wanted(afresh))

    def tell(self, model: Hosted, event: LifecycleEvent) -> None:
        """Steps the machine and does what it says. Events that arise meanwhile are taken after that, in order."""
        if self.tasks is None:
            return
        self._inbox.append((model, event))
        if len(self._inbox) > 1:
            return
        while self._inbox:
            model, event = self._inbox[0]
            for effect in model.lifecycle.step(event, _clock()):
                self._perform(model, effect)
            self._arm(model)
            self._inbox.popleft()

    def advance(self, model: Hosted) -> None:
        """Gives free slots to those next in line."""
        if model.lifecycle.state is not ModelState.READY or self.tasks is None:
            return
        assert model.worker is not None
        for key in model.queue.start(_clock()):
            model.calls[key].start(model.worker, self.tasks)

    def _arm(self, model: Hosted) -> None:
        model.disarm()
        if (due := model.lifecycle.deadline) is not None:
            model.timer = asyncio.get_running_loop().call_at(due, self.tell, model, Tick())

    def _perform(self, model: Hosted, effect: LifecycleEffect) -> None:
        match effect:
            case Start():
                self._holders[model.name] = model
                self.rail_step(Reserve(model.name, model.size_bytes))
            case Stop():
                self._group.create_task(self._end(model))
            case Changed():
                self._note(model, effect)
            case _:
                assert_never(effect)

    def _note(self, model: Hosted, change: Changed) -> None:
        """The model has a new state: its calls, its error text and all who watch learn of it."""
        before, model.state, text = model.state, change.state, f"{model.name}: {change.why}"
        match change.state:
            case ModelState.READY:
                model.error, model.load_s = None, change.load_s or model.load_s
                model.release_held()
                self.advance(model)
            case ModelState.FAILED:
                model.error = change.why
                failed = NodeError(NodeErrorCode.MODEL_FAILED, text, retry_after_s=change.retry_s)
                # Who only waited has not failed with it, unless what failed is the start it waited for.
                again = NodeError(NodeErrorCode.NODE_BUSY, text, retry_after_s=change.retry_s)
                model.fail_calls(in_flight=failed, waiting=again if before is ModelState.READY else failed)
            case ModelState.DRAINING:
                model.error = None
                model.fail_calls(in_flight=None, waiting=NodeError(NodeErrorCode.NODE_BUSY, text))
                if not model.queue.in_flight:
                    self.tell(model, Quiet())
            case ModelState.ABSENT:
                busy = NodeError(NodeErrorCode.NODE_BUSY, text)
                model.fail_calls(in_flight=busy, waiting=busy)
            case _:
                model.error = None
        self._report(
            ModelFact(
                model=model.name, state=change.state, why=change.why, load_s=change.load_s, retry_s=change.retry_s
            )
        )
        self._changed()

    def rail_step(self, event: RailEvent) -> None:
        """Tells the memory account; who is admitted starts, who is not learns why."""
        for effect in self.rail.step(event):
            model = self._holders[effect.model]
            match effect:
                case Load():
                    self.tell(model, Begun())
                    model.life = self._group.create_task(self._live(model))
                case Full(why=why):
                    model.error = why
                    self.tell(model, NoRoom(why))
                case _:
                    assert_never(effect)

    @property
    def _group(self) -> asyncio.TaskGroup:
        assert self.tasks is not None
        return self.tasks

    # A worker's life

    async def _live(self, model: Hosted) -> None:
        """Starts a worker and watches it until it ends by itself, or `_end` cancels this."""
        began = _clock()
        worker, why = await self._start(model)
        self.rail_step(Settled(model.name))
        if worker is None:
            self.tell(model, StartFailed(why))
            return
        self.tell(model, Started(_clock() - began))
        self.tell(model, Exited(await self._watch(model, worker)))

    async def _start(self, model: Hosted) -> tuple[Worker | None, str]:
        """A worker that has generated a token, or None and why there is none."""

        def progress(text: str) -> None:
            self._report(WorkerFact(model=model.name, text=text))

        assert model.engine is not None
        try:
            spec = structs.replace(model.spec, cache_bytes=model.footprint.cache)
            model.worker = model.engine.worker(spec, progress)
            await model.worker.start()
        except NodeError as error:
            return None, error.message
        except Exception as error:  # noqa: BLE001 - a fault in an engine fails its model, not the daemon
            return None, f"{type(error).__name__}: {error}"
        return model.worker, ""

    async def _watch(self, model: Hosted, worker: Worker) -> str:
        """Returns why the worker has ended, or why it can never answer again."""
        try:
            async with asyncio.TaskGroup() as tasks:
                exited = tasks.create_task(worker.exited())
                while not exited.done():
                    stats = await worker.stats()
                    model.noted(stats)
                    if not stats.alive and not exited.done():
                        exited.cancel()
                        return stats.why or "it stopped answering"
                    await asyncio.wait({exited}, timeout=self._settings.stats_every_s)
            return exited.result()
        except* Exception as faults:  # noqa: BLE001 - a fault in an engine fails its model, not the daemon
            why = "; ".join(f"{type(e).__name__}: {e}" for e in faults.exceptions)
        return why

    async def _end(self, model: Hosted) -> None:
        """Makes sure that the model's process is gone, then gives its memory back."""
        grace_s = self._settings.stop_grace_s if model.lifecycle.state is ModelState.DRAINING else 0.0
        if model.life is not None:
            model.life.cancel()
            await asyncio.wait({model.life})
        if model.worker is not None:
            try:
                await model.worker.stop(grace_s)
            except Exception as error:  # noqa: BLE001 - as above; there is no more to be done about that process
                self._report(WorkerFact(model=model.name, text=f"its worker could not be ended: {error}"))
        model.worker_ended()
        self.rail_step(Release(model.name))
        self.tell(model, Gone())
        self._ended(model)


def _clock() -> float:
    return asyncio.get_running_loop().time()
