"""RouteFact: what happened to one request. Log line, metrics, `routes.db` and `mesh routes` all read this Struct."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct, field

from node.types import RequestId
from router.events import Decision, Why

# How an attempt begins: from nothing; where the answer broke off, with the tokens made so far; from the start again,
# without what was sent already.
Mode: TypeAlias = Literal["start", "continue", "replay"]

# Why a stream that broke off could not go on: what was sent was not kept (bounds) or is not understood; no engine of
# the mesh can go on with it; the second run said something else; nobody was there in time; too many attempts failed;
# it had broken off too often already.
Lost: TypeAlias = Literal["not_kept", "not_understood", "engine", "mismatch", "nobody", "failures", "cuts"]


class AttemptFact(Struct, frozen=True, kw_only=True):
    """One try on one node. `error` is a code and a sentence, never prompt text. `cut`: it broke off when something
    new of the answer had come from it."""

    node: str  # node name
    outcome: Literal["ok", "busy", "failed", "cancelled"]
    error: str | None = None
    ms: float = 0.0
    mode: Mode = "start"
    cut: bool = False


class RouteFact(Struct, frozen=True, kw_only=True):
    """ROUTE of DESIGN section 4. Times in ms; `at` is RFC 3339 UTC with ms, when the edge accepted the request.

    Node fields hold names, as people know them; `decision` is the coordinator's last one for this request, put
    together when it is read.
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
    why: Why | None = field(name="decision", default=None)
    error: str | None = None  # what the client was told, when not ok
    resumable: bool = True  # False: what was sent was not kept to its end, so that a cut would have lost it
    lost: Lost | None = None  # it broke off and could not go on
    key: str | None = None  # the name of the key that its client brought, never the key

    @property
    def decision(self) -> Decision | None:
        return self.why.decision if self.why is not None else None
