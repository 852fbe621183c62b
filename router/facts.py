"""RouteFact: what happened to one request. Log line, metrics, `routes.db` and `mesh routes` all read this Struct."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from node.types import RequestId
from router.events import Decision


class AttemptFact(Struct, frozen=True, kw_only=True):
    """One try on one node. `error` is a code and a sentence, never prompt text."""

    node: str  # node name
    outcome: Literal["ok", "busy", "failed", "cancelled"]
    error: str | None = None
    ms: float = 0.0


class RouteFact(Struct, frozen=True, kw_only=True):
    """ROUTE of DESIGN section 4. Times in ms; `at` is RFC 3339 UTC with ms, when the edge accepted the request.

    Node fields hold names, as people know them; `decision` is the coordinator's last one for this request.
    """

    id: RequestId
    client_request_id: str | None
    at: str
    edge: str
    node: str | None
    coordinator: str | None
    model: str
    served_model: str | None
    stream: bool
    status: int
    outcome: Literal["ok", "resumed", "refused", "failed", "cancelled"]
    queue_ms: float
    ttft_ms: float | None
    total_ms: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    attempts: tuple[AttemptFact, ...] = ()
    decision: Decision | None = None
    error: str | None = None  # what the client was told, when not ok
