"""What happened to one request, gathered while it happens, and the RouteFact made of it at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Literal, TypeAlias

from msgspec import structs

from node.types import NodeId, RequestId
from router import catalog, explain
from router.asked import Asked
from router.attempt_events import Fail, Finish
from router.attempts import Attempts
from router.errors import ErrorCode, Refusal
from router.events import Why
from router.facts import RouteFact
from router.frames import Granted
from router.io.said import Said
from router.kept import Kept
from router.reasons import in_names, named
from router.view import View

NOBODY = {ErrorCode.MODEL_NOT_FOUND, ErrorCode.NO_NODE_AVAILABLE}
CLIENT_LEFT = 499  # nginx's number for it; nobody is there to read it, but routes and logs are

Outcome: TypeAlias = Literal["ok", "resumed", "refused", "failed", "cancelled"]


@dataclass(slots=True)
class Record:
    """Times in seconds on the event loop's clock. `end` None: it ended before its attempts did."""

    id: RequestId
    began: float
    key: str | None = None  # the name of the client's, if it brought one that counts
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    said: Said | None = None
    asked: Asked | None = None
    machine: Attempts | None = None
    granted: Granted | None = None  # the last grant
    decided: Why | None = None  # the coordinator's last word, a grant or a refusal,
    coordinator: NodeId | None = None  # and whose that was
    first_at: float | None = None  # first byte of the attempt that counts; when not streamed: as it came in
    end: Finish | Fail | None = None
    refusal: Refusal | None = None  # before any attempt
    kept: Kept | None = None  # what the client has of the answer
    left_out: Mapping[NodeId, str] = field(default_factory=dict)  # by the edge, when an answer had to go on: why
    defect: bool = False  # of ours
    status: int = 0  # HTTP status sent; 0 = none, the client had left

    def fact(self, view: View, now: float) -> RouteFact:
        """Everything under the names people know."""
        names = view.names()
        facts = self.machine.facts if self.machine is not None else []
        coordinator = self.coordinator or view.coordinator
        usage = self.end.usage if isinstance(self.end, Finish) else Finish("cancelled").usage
        served = self.granted.model if self.granted is not None and self.first_at is not None else None
        return RouteFact(
            id=self.id,
            client_request_id=self.said.client_request_id if self.said is not None else None,
            at=self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            edge=names[view.self_id],
            node=names.get(NodeId(facts[-1].node), facts[-1].node) if facts else None,
            coordinator=names.get(coordinator, coordinator) if coordinator is not None else None,
            model=catalog.shown(self.asked.model) if self.asked is not None else "",
            served_model=served,
            stream=self.asked is not None and self.asked.stream,
            status=self.status or CLIENT_LEFT,
            outcome=self._outcome(),
            queue_ms=_ms(self.machine.waited_s) if self.machine is not None else 0.0,
            ttft_ms=_ms(self.first_at - self.began) if self.first_at is not None else None,
            total_ms=_ms(now - self.began),
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            completion_tokens=usage.completion,
            attempts=tuple(structs.replace(f, node=names.get(NodeId(f.node), f.node)) for f in facts),
            why=self.why(view),
            error=self._error(),
            resumable=self.kept is None or not self.kept.why_not,
            lost=self.end.lost if isinstance(self.end, Fail) else None,
            key=self.key,
        )

    def why(self, view: View) -> Why | None:
        """The coordinator's last decision, as people read it; without one, why its edge refused it."""
        refusal = self._refused()
        if self.decided is not None:
            return Why(partial(named, self.decided, view.names(), self.left_out))
        if refusal is None:
            return None
        model = catalog.shown(self.asked.model) if self.asked is not None else ""
        away = catalog.away(view, model) if refusal.code in NOBODY else {}
        return Why(in_names(explain.refused_unasked(refusal, self.id, model, away), view.names(), {}))

    def _refused(self) -> Refusal | None:
        return self.end.refusal if isinstance(self.end, Fail) else self.refusal

    def _outcome(self) -> Outcome:
        """Refused: nobody tried, or the fault is the client's. Failed: the mesh tried and could not."""
        if self.defect:
            return "failed"
        if self.refusal is not None:
            return "refused"
        if isinstance(self.end, Fail):
            tried = self.machine is not None and bool(self.machine.facts)
            return "failed" if tried and self.end.refusal.code is not ErrorCode.INVALID_REQUEST else "refused"
        if self.end is None or self.end.outcome == "cancelled":
            return "cancelled"
        if self.status >= 400:
            return "refused"  # an engine's own 4xx
        went_on = self.machine is not None and self.machine.facts[-1].mode != "start"
        return "resumed" if went_on else "ok"

    def _error(self) -> str | None:
        if self.defect:
            return "internal_error"
        refusal = self._refused()
        return f"{refusal.code.value}: {refusal.message}" if refusal is not None else None


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
