"""Keeps each model's worker as its machine decides: events in, effects done, workers started, watched and ended.

`tell` is the only way an event reaches a model's machine, `_perform` the only place where what it decides is done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import assert_never

from msgspec import structs

from node import rail_events
from node.errors import NodeError, NodeErrorCode
from node.facts import ModelFact, NodeFact, WorkerFact
from node.io.calls import AdmittedCall
from node.io.diagnosis import cause_of
from node.io.engine import Worker
from node.io.hosted import Hosted
from node.io.probe import Probe
from node.io.watch import Watch, weigh
from node.lifecycle import (
    Begun,
    Changed,
    Evicted,
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
    Unwanted,
    Wanted,
)
from node.rail import Rail
from node.rail_events import (
    FOREVER,
    Began,
    Evict,
    Full,
    Held,
    Load,
    RailEffect,
    RailEvent,
    Release,
    Reserve,
    Settled,
    Terms,
)
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
        probe: Probe,
    ) -> None:
        self._probe = probe
        self._settings, self._report, self._changed, self._ended = settings, report, changed, ended
        self._inbox: deque[tuple[Hosted, LifecycleEvent]] = deque()
        self._holders: dict[str, Hosted] = {}  # whom the rail means by a name
        self.rail = Rail(settings)
        self.idle_s = FOREVER  # `idle-timeout`: how long models without one of their own are kept
        self._rail_says: deque[RailEffect] = deque()
        self._obeying = False
        self._rail_timer: asyncio.TimerHandle | None = None
        self._rail_due = 0.0  # when it rings
        self.clock: Callable[[], float] = _clock  # that of its loop, once that runs
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
            for effect in model.lifecycle.step(event, self.clock()):
                self._perform(model, effect)
            self._arm(model)
            self._inbox.popleft()

    def advance(self, model: Hosted) -> None:
        """Gives free slots to those next in line, unless somebody waits for the room of this model."""
        if model.lifecycle.state is not ModelState.READY or self.tasks is None or self.rail.yields(model.name):
            return
        assert model.worker is not None
        for key in model.queue.start(self.clock()):
            call = model.calls[key]
            call.start(model.worker, self.tasks)
            self.rail_step(Began(model.name, model.queue.in_flight, call.call.keep_alive))

    def hold_until(self, model: Hosted, call: AdmittedCall) -> float:
        """How long `call` may wait for its model to load: as the grant says; on a node alone until the client's own
        deadline, since nobody else can answer it."""
        latest = call.deadline - min(self._settings.hold_margin_s, 0.05 * call.call.deadline_s)
        return latest if call.call.alone else min(latest, self.clock() + self.hold_s(model))

    def hold_s(self, model: Hosted) -> float:
        """How long it is worth waiting for `model` to load."""
        expected_s = model.load_s + self.rail.wait_s(model.name, model.size_bytes, self.clock())
        return self._settings.hold_floor_s + self._settings.hold_factor * expected_s

    def forget(self, model: Hosted) -> None:
        """It is no model of this node any more."""
        if self._holders.get(model.name) is model:
            del self._holders[model.name]
            self.rail_step(rail_events.Forget(model.name))

    def give_up(self, model: Hosted) -> None:
        """Takes it out of the line for room when nobody waits for it any more."""
        if model.name in self.rail.line and not model.worth_waiting:
            self.tell(model, Unwanted("nobody waits for it any more", "no_room"))

    def set_terms(self, model: Hosted) -> None:
        """Tells the rail what holds for `model` from now on."""
        keep_s = self.idle_s if model.spec.keep_alive is None else model.spec.keep_alive
        if keep_s < 0 or model.spec.engine == "external":  # A server that is not ours is not ours to unload.
            keep_s = FOREVER
        self.rail_step(Terms(model.name, model.spec.pinned, keep_s, model.load_s))

    def _arm(self, model: Hosted) -> None:
        model.disarm()
        if (due := model.lifecycle.deadline) is not None:
            model.timer = asyncio.get_running_loop().call_at(due, self.tell, model, Tick())

    def _perform(self, model: Hosted, effect: LifecycleEffect) -> None:
        match effect:
            case Start():
                self._holders[model.name] = model
                self.set_terms(model)
                self.rail_step(Reserve(model.name, model.size_bytes, patient=model.worth_waiting))
            case Stop():
                self._group.create_task(self._end(model))
            case Changed():
                self._note(model, effect)
            case _:
                assert_never(effect)

    def _note(self, model: Hosted, change: Changed) -> None:
        """The model has a new state: its calls, its error text and all who watch learn of it."""
        before, model.state, text = model.state, change.state, f"{model.name}: {change.why}"
        model.held = ""
        match change.state:
            case ModelState.READY:
                model.error, model.load_s = None, change.load_s or model.load_s
                model.release_held()
                self.set_terms(model)
                self.advance(model)
            case ModelState.FAILED:
                model.error = model.last_error = change.why
                failed = NodeError(NodeErrorCode.MODEL_FAILED, text, retry_after_s=change.retry_s)
                # Who only waited has not failed with it, unless what failed is the start it waited for.
                again = NodeError(NodeErrorCode.NODE_BUSY, text, retry_after_s=change.retry_s)
                model.fail_calls(in_flight=failed, waiting=again if before is ModelState.READY else failed)
            case ModelState.DRAINING:
                model.error = None
                if model.lifecycle.comes_back:
                    model.hold(self.hold_until)
                else:
                    model.fail_calls(in_flight=None, waiting=NodeError(NodeErrorCode.NODE_BUSY, text))
                if not model.queue.in_flight:
                    self.tell(model, Quiet())
            case ModelState.ABSENT:
                busy = NodeError(NodeErrorCode.NODE_BUSY, text)
                model.fail_calls(in_flight=busy, waiting=busy)
            case _:
                model.error = None
        if model.news(change):
            self._report(_fact(model.name, change))
        self._changed()

    def rail_step(self, event: RailEvent) -> None:
        """Tells the rail, and does what it says, in order: what it says because of that comes after it."""
        self._rail_says.extend(self.rail.step(event, self.clock()))
        self._arm_rail()
        if self._obeying or (self.rail.calm and not self._rail_says):
            return
        self._obeying = True
        try:
            while True:
                while self._rail_says:
                    self._obey(self._rail_says.popleft())
                for model in tuple(self._holders.values()):
                    self.advance(model)  # Its room may be wanted no more.
                if not self._rail_says:
                    return
        finally:
            self._obeying = False

    def _obey(self, effect: RailEffect) -> None:
        model = self._holders[effect.model]
        match effect:
            case Load():
                model.held = ""
                self.tell(model, Begun())
                model.life = self._group.create_task(self._live(model))
            case Full(why=why):
                model.error = why
                self.tell(model, NoRoom(why))
            case Held(why=why):
                model.held = why
                self._changed()
            case Evict(why=why, cause=cause):
                self.tell(model, Evicted(why, again=model.queue.queue_depth > 0, cause=cause))
            case _:
                assert_never(effect)

    def _arm_rail(self) -> None:
        due = self.rail.deadline if self.tasks is not None else None
        if self._rail_timer is not None:
            if due == self._rail_due:
                return
            self._rail_timer.cancel()
            self._rail_timer = None
        if due is not None:
            self._rail_due = due
            self._rail_timer = asyncio.get_running_loop().call_at(due, self._rail_tick)

    def _rail_tick(self) -> None:
        self._rail_timer = None
        self.rail_step(rail_events.Tick())

    @property
    def _group(self) -> asyncio.TaskGroup:
        assert self.tasks is not None
        return self.tasks

    # A worker's life

    async def _live(self, model: Hosted) -> None:
        """Starts a worker and watches it until it ends by itself, or `_end` cancels this."""
        began, s = self.clock(), self._settings
        slow_s = max(s.slow_floor_s, s.slow_factor * model.load_s)
        slow = asyncio.get_running_loop().call_later(slow_s, self.rail_step, rail_events.Slow(model.name))
        try:
            worker, why = await self._start(model)
        finally:
            slow.cancel()
        self.tell(model, StartFailed(why) if worker is None else Started(self.clock() - began))
        self.rail_step(Settled(model.name))  # After its held requests have begun: before, it would seem idle.
        if worker is None:
            return
        self._measured(model)
        self.tell(model, Exited(await self._watch(model, worker)))

    async def _start(self, model: Hosted) -> tuple[Worker | None, str]:
        """A worker that has generated a token, or None and why there is none."""

        def progress(text: str) -> None:
            self._report(WorkerFact(model=model.name, text=text))

        assert model.engine is not None
        try:
            model.footprint.started()
            spec = structs.replace(model.spec, cache_bytes=model.footprint.cache)
            model.worker = model.engine.worker(spec, progress)
            await model.worker.start()
            if model.worker.pid is not None:
                await weigh(model, model.worker.pid, self._probe)  # before its first request: what it takes empty
        except NodeError as error:
            return None, error.message
        except Exception as error:  # noqa: BLE001 - a fault in an engine fails its model, not the daemon
            return None, f"{type(error).__name__}: {error}"
        return model.worker, ""

    async def _watch(self, model: Hosted, worker: Worker) -> str:
        """Returns why the worker has ended, or why it has to be ended."""
        watch = Watch(
            model,
            worker,
            settings=self._settings,
            probe=self._probe,
            measured=self._measured,
            recycle=self._recycle,
        )
        try:
            return await watch.run()
        except* Exception as faults:  # noqa: BLE001 - a fault in an engine fails its model, not the daemon
            why = "; ".join(f"{type(e).__name__}: {e}" for e in faults.exceptions)
        return why

    def _recycle(self, model: Hosted, why: str) -> None:
        self.tell(model, Evicted(f"its worker is exchanged: {why}", again=True, cause="recycled"))

    def _measured(self, model: Hosted) -> None:
        """What its worker takes is known better now."""
        if model.size_bytes:
            self.rail_step(rail_events.Measured(model.name, model.footprint.needs))
        self._changed()

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


def _fact(model: str, change: Changed) -> ModelFact:
    return ModelFact(
        model=model,
        state=change.state,
        why=change.why,
        cause=cause_of(change.why) if change.state is ModelState.FAILED else change.cause,
        load_s=change.load_s,
        retry_s=change.retry_s,
    )


def _clock() -> float:
    return asyncio.get_running_loop().time()
