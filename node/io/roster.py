"""Which models this node has: those of its stack file, and those that leave because they stand there no more.

A model that is changed in the stack file is two of one name for a while: the new one waits until the old one's worker
is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from node.errors import NodeError, NodeErrorCode
from node.facts import ModelFact, NodeFact
from node.io.engine import Engine, ModelSpec
from node.io.fetching import Fetching
from node.io.footprint import Footprint
from node.io.hosted import Hosted, same_worker
from node.io.keeper import Keeper
from node.io.measured import Measured
from node.lifecycle import Unwanted
from node.rail import load_order
from node.settings import NodeSettings
from node.types import ModelState


class Roster:
    """Tells `keeper` which models to load and which to let go. `changed` is called after every change of what is
    shown; `ended` has to be told of each worker that is gone."""

    def __init__(
        self,
        *,
        settings: NodeSettings,
        engines: Mapping[str, Engine],
        measured: Measured,
        keeper: Keeper,
        report: Callable[[NodeFact], None],
        changed: Callable[[], None],
    ) -> None:
        self._settings, self._engines, self._measured = settings, engines, measured
        self._keeper, self._report, self._changed = keeper, report, changed
        self.fetching = Fetching(settings, report, changed, self._arrived)
        self.models: dict[str, Hosted] = {}  # by MODEL.name
        self._leaving: list[Hosted] = []  # removed or replaced, until their worker is gone
        self._applying = asyncio.Lock()

    def find(self, name: str) -> Hosted:
        """The model of this name or alias. Raises NodeError(MODEL_NOT_FOUND)."""
        exact = self.models.get(name)
        found = exact or next((m for m in self.models.values() if m.answers_to(name)), None)
        if found is None:
            raise NodeError(NodeErrorCode.MODEL_NOT_FOUND, f"this node holds no model {name!r}")
        return found

    def has(self, model: Hosted) -> bool:
        """It is one of the stack file's, not one that leaves."""
        return self.models.get(model.name) is model

    def everyone(self) -> list[Hosted]:
        """Those that leave too."""
        return [*self.models.values(), *self._leaving]

    async def apply(self, specs: Sequence[ModelSpec]) -> None:
        """The stack file says `specs`: adds, removes, restarts what differs. New ones are loaded while they fit."""
        async with self._applying:
            models = {spec.name: self._kept(spec) or self._hosted(spec) for spec in specs}
            fresh = [m for m in models.values() if not self.has(m)]
            await asyncio.gather(*(m.examine(self._keeper.rail.budget_bytes) for m in fresh))
            before, self.models = self.models, models
            self.fetching.keep(models.values())
            for old in before.values():
                if not self.has(old):
                    self._retire(old, "changed" if old.name in models else "removed")
            for model in fresh:
                model.waits_for = next((m for m in self._leaving if m.name == model.name), None)
                self._tell_problem(model)
            pinned = frozenset(m.name for m in fresh if m.spec.pinned)
            for name in load_order({m.name: m.size_bytes for m in fresh}, pinned):
                self._keeper.want(models[name])
            for model in models.values():
                self._keeper.set_terms(model)
                if model.spec.pinned and model.lifecycle.state is ModelState.ABSENT:
                    self._keeper.want(model)
            self._changed()
            for model in fresh:
                if await model.take_fingerprint():
                    self._changed()

    def ended(self, model: Hosted) -> None:
        """Its process is gone, its memory free. If it was leaving, that is over, and who replaces it starts."""
        if model in self._leaving:
            model.disarm()
            self._leaving.remove(model)
            for waiting in self.models.values():
                if waiting.waits_for is model:
                    waiting.waits_for = None
                    self._keeper.want(waiting)
            if model.name not in self.models:
                self._keeper.forget(model)
        self._changed()

    async def _arrived(self, model: Hosted) -> None:
        """Its weights have been fetched: from here on it is like any other."""
        await model.examine(self._keeper.rail.budget_bytes)
        model.download = None
        self._changed()
        if not self.has(model):
            return
        self._tell_problem(model)
        self._keeper.want(model)
        if await model.take_fingerprint():
            self._changed()

    def _tell_problem(self, model: Hosted) -> None:
        if model.problem:
            self._report(ModelFact(model=model.name, state=ModelState.FAILED, why=model.problem))

    def _kept(self, spec: ModelSpec) -> Hosted | None:
        """The model that serves `spec` already, given its new names and policy."""
        model = self.models.get(spec.name)
        if model is None or not same_worker(model.spec, spec):
            return None
        model.spec = spec
        return model

    def _hosted(self, spec: ModelSpec) -> Hosted:
        footprint = Footprint(self._settings, self._measured)
        return Hosted(spec, self._engines.get(spec.engine), self._settings, footprint)

    def _retire(self, model: Hosted, what: str) -> None:
        """`model` is in the stack file no more: it finishes what it answers and goes."""
        self._leaving.append(model)
        model.waits_for = None  # Its turn will not come any more; who waits for it to load must hear that.
        self._keeper.tell(model, Unwanted(f"it was {what} in the stack file", "removed"))
        if not model.lifecycle.has_worker:
            self.ended(model)
