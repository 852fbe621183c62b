"""What a node reports: each happening is one Struct; log, metrics, stores and dashboard all read it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from node.types import ModelState, NodeId, Pressure, RequestId, Usage


class ModelFact(Struct, frozen=True, kw_only=True, tag=True):
    """A model entered `state`. `why` is for people; `load_s` seconds from start to ready, with READY only;
    `retry_s` seconds until it is started again, with FAILED only (None: not before `models load`).

    `cause` is why in one word, for programs ("" when there is no more to say). FAILED: "crash", "hang", "oom",
    "not_found", "port_taken", "bad_weights", "start_timeout", "killed". DRAINING and the ABSENT after it: "asked",
    "idle", "evicted", "recycled" (its worker had grown), "removed", "stopping". ABSENT after LOADING: "no_room".
    """

    model: str
    state: ModelState
    why: str = ""
    cause: str = ""
    load_s: float | None = None
    retry_s: float | None = None


class CallFact(Struct, frozen=True, kw_only=True, tag=True):
    """One call this node admitted has ended. Times in ms since its admission; never any text of it.

    `wait_ms` until it had a slot (None: it never had one), `ttft_ms` until the first `data:` block (None: none came).
    `cold`: its model was not in memory when it came.
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
    cold: bool = False


class WorkerFact(Struct, frozen=True, kw_only=True, tag=True):
    """A worker says how its start goes, or something about it is worth a line in the log."""

    model: str
    text: str


class DownloadFact(Struct, frozen=True, kw_only=True, tag=True):
    """How the download of `model` from `source` goes. Sizes in bytes: `done_bytes` of `total_bytes` (0: not known yet)
    are on disk, `new_bytes` of them came over the network since the last fact. `why` says what is wrong, with FAILED.
    """

    model: str
    source: str
    phase: Literal["begun", "progress", "done", "failed", "cancelled"]
    done_bytes: int = 0
    total_bytes: int = 0
    new_bytes: int = 0
    why: str = ""


class PressureFact(Struct, frozen=True, kw_only=True, tag=True):
    """The machine says that its memory is shorter, or less short, than before; models may take `budget_bytes` now."""

    pressure: Pressure
    budget_bytes: int = 0


class DrainFact(Struct, frozen=True, kw_only=True, tag=True):
    """The node takes no more calls (`why`), has ended the last one since, or takes calls again."""

    phase: Literal["begun", "drained", "ended"]
    why: str = ""


NodeFact: TypeAlias = ModelFact | CallFact | WorkerFact | DownloadFact | PressureFact | DrainFact
