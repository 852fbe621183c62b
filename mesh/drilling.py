"""`mesh drill` at a node: asks others to stop something, does what others ask, and notes what becomes of them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from mesh import clock
from mesh.answers import Seen
from mesh.drill_guard import Guard
from mesh.log import utc
from mesh.settings import DrillSettings
from mesh.wire import Drill, Drilled
from node.errors import NodeError
from node.types import ModelState, NodeId, NodeReport

if TYPE_CHECKING:
    from mesh.daemon import Daemon

_SERVES = (ModelState.READY, ModelState.BUSY)


class Drilling:
    """`notes` are the latest of what this node saw of others; always kept: they are few, and a drill comes without a
    word."""

    def __init__(self, daemon: Daemon, settings: DrillSettings | None = None) -> None:
        self._daemon, self._settings = daemon, settings or DrillSettings()
        self._guard = Guard(self._settings)
        self._numbers = itertools.count(1)
        self._asked: dict[tuple[NodeId, int], asyncio.Future[tuple[float, str, float]]] = {}
        self._ready: dict[NodeId, frozenset[str]] = {}  # the models that each node said it could answer with
        self.notes: deque[Seen] = deque(maxlen=self._settings.seen_max)

    # Asking

    async def ask(
        self, nodes: Sequence[NodeId], ask: str, drill: str, model: str, for_s: float
    ) -> dict[NodeId, tuple[float, str, float]]:
        """Each node's answer: when it came (time.monotonic()), why not ("": it is so), and in how many seconds it
        happens. Who does not answer in time is missing; the mesh must be on."""
        overlay, loop = self._daemon.overlay, asyncio.get_running_loop()
        assert overlay is not None
        found: dict[NodeId, asyncio.Future[tuple[float, str, float]]] = {}
        numbers: list[tuple[NodeId, int]] = []
        for node in nodes:
            frame = Drill(n=next(self._numbers), drill=drill, ask=ask, model=model, for_s=for_s)
            if node == self._daemon.id:
                answer = self._do(node, frame)
                found[node] = loop.create_future()
                found[node].set_result((time.monotonic(), answer.why, answer.in_s))
            elif overlay.ask_drill(node, frame):
                found[node] = self._asked[node, frame.n] = loop.create_future()
                numbers.append((node, frame.n))
        try:
            if found:
                await asyncio.wait(found.values(), timeout=self._settings.answer_s)
        finally:
            for number in numbers:
                self._asked.pop(number, None)
        return {node: future.result() for node, future in found.items() if future.done()}

    # Being asked

    def take(self, node: NodeId, frame: Drill | Drilled) -> None:
        """A frame of that node's."""
        if isinstance(frame, Drilled):
            future = self._asked.get((node, frame.n))
            if future is not None and not future.done():
                future.set_result((time.monotonic(), frame.why, frame.in_s))
        elif self._daemon.overlay is not None:
            self._daemon.overlay.ask_drill(node, self._do(node, frame))

    def _do(self, who: NodeId, frame: Drill) -> Drilled:
        now, guard = clock.now(), self._guard
        match frame.ask:
            case "hold":
                return Drilled(n=frame.n, why=guard.hold(who, frame.drill, now))
            case "release":
                return Drilled(n=frame.n, why=guard.release(who, frame.drill))
            case "worker":
                return Drilled(n=frame.n, why=guard.kill(who, frame.drill, now) or self._kill(who, frame.model))
            case "node":
                why = guard.fall(who, frame.drill, now) or self._fall(who, frame.for_s)
                return Drilled(n=frame.n, why=why, in_s=self._settings.soon_s)
            case _:
                return Drilled(n=frame.n, why=f"version {self._daemon.version} knows no such drill: update it")

    def _kill(self, who: NodeId, model: str) -> str:
        try:
            pid = self._daemon.host.kill(model)
        except (NodeError, OSError) as error:
            return str(error)
        self._daemon.observer.life("drill", f"{self._name(who)} had the server of {model} killed (pid {pid})")
        return ""

    def _fall(self, who: NodeId, for_s: float) -> str:
        if who == self._daemon.id or self._daemon.stopping:
            return "a node does not drill itself" if who == self._daemon.id else "it is stopping"
        until = utc(time.time() + for_s)
        why = f"out of the mesh for {for_s:.0f} s, until {until}: a drill that {self._name(who)} runs"
        self._daemon.observer.life("drill", why)
        asyncio.get_running_loop().call_later(self._settings.soon_s, self._daemon.mesh.fall, for_s, why)
        return ""

    # What becomes of others

    def seen(
        self, kind: Literal["gone", "back", "coordinator", "lost", "ready"], node: NodeId | None, text: str = "",
        model: str = "",
    ) -> None:  # fmt: skip
        name = self._name(node) if node is not None else ""
        self.notes.append(Seen(at=time.monotonic(), kind=kind, node=name, model=model, text=text))
        if kind == "gone" and node is not None:
            self._ready.pop(node, None)

    def reported(self, report: NodeReport) -> None:
        """A peer's report: a model that can answer no more, or again, is worth a note."""
        ready = frozenset(m.name for m in report.models if m.state in _SERVES)
        before = self._ready.get(report.id, frozenset())
        self._ready[report.id] = ready
        for model in sorted(ready ^ before):
            self.seen("ready" if model in ready else "lost", report.id, model=model)

    def _name(self, node: NodeId) -> str:
        with suppress(KeyError):
            return self._daemon.membership.view().names()[node]
        return node
