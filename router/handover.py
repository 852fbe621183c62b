"""An answer has broken off: which nodes may go on with it, how, and what they are told. Pure.

It goes on from its tokens only where the weights are the same, which equal fingerprints say. Where it is run again it
proves itself (router/seam.py); so of weights that nobody can compare the name is enough.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec import Struct

from node.continuation import Continuation
from node.types import ModelReport, NodeId, NodeReport, Resume, Usage
from router.facts import Lost, Mode
from router.kept import Kept, continuation
from router.seam import Seam, SeamError
from router.view import NodeState, View

_STRANGERS = (NodeState.WAITING, NodeState.INCOMPATIBLE)


class Plan(Struct, frozen=True, kw_only=True):
    """What to ask for. `left_out` nodes hold a model of one of these names, but may not go on with this answer: why.
    `given` tokens of the answer are there already. `lost`: nobody ever can, and `why`."""

    models: tuple[str, ...] = ()
    left_out: Mapping[NodeId, str] = {}
    given: int = 0
    lost: Lost | None = None
    why: str = ""


class Handover:
    """What it takes to hand one answer over. `names` are those it was asked for by, in order of preference."""

    def __init__(self, kept: Kept, names: tuple[str, ...], *, streamed: bool) -> None:
        self.kept, self._names, self._streamed = kept, names, streamed
        self.begun = False  # some of the answer has come
        self._model = self._fingerprint = ""  # of who began it
        self._read = -1  # bytes that were kept when they were last read
        self._tokens: Continuation | None = None
        self._on = False  # the plan that counts is to go on from them
        self._spoilt = False
        self._cannot: Collection[NodeId] = ()

    def began(self, view: View, node: NodeId, model: str) -> None:
        """The first of the answer has come, from `model` there."""
        found = _model(view, node, model)
        self.begun, self._model = True, model
        self._fingerprint = found.fingerprint if found is not None else ""

    def spoil(self) -> None:
        """What came could not be put together: nothing can go on from that."""
        self._spoilt = True

    def restart(self) -> bool:
        """The answer begins anew. False: it cannot, the client has some of it."""
        if self.begun and self._streamed:
            return False
        self.begun = self._spoilt = False
        self._tokens, self._read = None, -1
        self.kept.restart()
        return True

    @property
    def continuation(self) -> Continuation | None:
        """What a worker needs to go on; None when it cannot, or need not be asked. Raises SeamError."""
        if self._spoilt or self.kept.why_not:
            return None
        if self._read != self.kept.size:
            self._tokens = continuation(self.kept.blocks())
            self._read = self.kept.size
        return self._tokens

    def seam(self) -> Seam:
        """Lets through of a second run what the client does not have. Raises SeamError."""
        return Seam(self.kept.blocks())

    def own(self, usage: Usage, mode: Mode) -> Usage:
        """The part of the whole answer's usage that falls to an attempt that ends it."""
        given = self._tokens.tokens if mode == "continue" and self._tokens is not None else ()
        completion = max(0, usage.completion - len(given))
        return Usage(prompt=usage.prompt + len(given), cached=usage.cached, completion=completion)

    def plan(
        self, view: View, excluded: Collection[NodeId], cannot: Collection[NodeId], *, refused: bool = False
    ) -> Plan:
        """Whom to ask, when `excluded` are out anyway and `cannot` have said that they only can run it again.
        `refused`: those who can go on with it were asked for in vain, so all who can do anything are."""
        self._cannot = cannot
        try:
            tokens = self.continuation
        except SeamError as error:
            if self._streamed:
                return Plan(lost="not_understood", why=str(error))
            self.spoil()
            tokens = None
        self._on = tokens is not None
        members = [n.report for n in view.nodes if n.state not in _STRANGERS]
        names = self._names_for(members)
        modes = {report.id: self._mode_at(report, names) for report in members}
        if not any(mode for mode, _ in modes.values()):
            if not self._streamed:
                return Plan(models=self._names)  # somebody may come who can begin it
            return Plan(lost="engine", why="no engine of this mesh can go on with it, nor run it again")
        here = {n.report.id for n in view.serving()} - set(excluded)
        on = any(mode == "continue" for node, (mode, _) in modes.items() if node in here)
        if not on and not self._streamed:
            return Plan(models=self._names)
        left_out = {node: why for node, (mode, why) in modes.items() if why and mode is None}
        if on and not refused:
            only = "it could only run the answer again from its start, and others can go on with it"
            left_out |= {node: only for node, (mode, _) in modes.items() if mode not in ("continue", None)}
        return Plan(models=names, left_out=left_out, given=len(tokens.tokens) if on and tokens is not None else 0)

    def mode(self, view: View, node: NodeId, model: str) -> Mode:
        """What can be done at the node that was granted; "start" of a stream that has begun: nothing, the weights there
        have changed meanwhile."""
        found = _model(view, node, model)
        return (self._of(node, found)[0] or "start") if found is not None else "start"

    def _names_for(self, members: Collection[NodeReport]) -> tuple[str, ...]:
        """The name that answered, and those it was asked for by that mean, somewhere, what could go on with it."""
        able = [n for n in self._names if any((m := _match(r, n)) and self._of(r.id, m)[0] for r in members)]
        return tuple(dict.fromkeys((self._model, *able)))

    def _mode_at(self, report: NodeReport, names: tuple[str, ...]) -> tuple[Mode | None, str]:
        """What can be done there, whichever of the names is taken; or why nothing."""
        found = [self._of(report.id, model) for name in names if (model := _match(report, name)) is not None]
        return min(found, key=lambda f: _WORST.index(f[0]), default=(None, ""))

    def _of(self, node: NodeId, model: ModelReport) -> tuple[Mode | None, str]:
        same = bool(self._fingerprint) and model.fingerprint == self._fingerprint
        on = self._on and not self.kept.why_not  # which younger streams may have taken since it was planned
        if same and model.resume is Resume.CONTINUE and on and node not in self._cannot:
            return "continue", ""
        if not self._streamed:
            return "start", ""
        if model.resume is Resume.NO:
            return None, "its engine can neither go on with an answer nor run it again"
        if same or (model.name == self._model and not (self._fingerprint and model.fingerprint)):
            return "replay", ""
        return None, "it holds other weights than those that began the answer"


_WORST: tuple[Mode | None, ...] = (None, "start", "replay", "continue")


def _match(report: NodeReport, name: str) -> ModelReport | None:
    """As router/filters.py matches a status."""
    named = [m for m in report.models if m.name == name]
    return min(named or [m for m in report.models if name in m.aliases], key=lambda m: m.name, default=None)


def _model(view: View, node: NodeId, model: str) -> ModelReport | None:
    found = view.node(node)
    return _match(found.report, model) if found is not None else None
