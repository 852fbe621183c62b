"""What a node reports: each happening is one Struct; log, metrics, store and dashboard all read it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from node.types import ModelState, NodeId, RequestId, Usage


class ModelFact(Struct, frozen=True, kw_only=True, tag=True):
    """A model entered `state`. `why` is for people; `load_s` seconds from start to ready, with READY only;
    `retry_s` seconds until it is started again, with FAILED only (None: not before `models load`)."""

    model: str
    state: ModelState
    why: str = ""
    load_s: float | None = None
    retry_s: float | None = None


class CallFact(Struct, frozen=True, kw_only=True, tag=True):
    """One call this node admitted has ended. Times in ms since its admission; never any text of it.

    `wait_ms` until it had a slot (None: it never had one), `ttft_ms` until the first `data:` block (None: none came).
    """

    id: RequestId
    attempt: int
    edge: NodeId
    model: str
    outcome: Literal["ok", "busy", "failed", "cancelled"]
    error: str | None = None
    wait_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float = 0.0
    usage: Usage = Usage()


class WorkerFact(Struct, frozen=True, kw_only=True, tag=True):
    """A worker says how its start goes, or something about it is worth a line in the log."""

    model: str
    text: str


NodeFact: TypeAlias = ModelFact | CallFact | WorkerFact
