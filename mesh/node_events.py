"""A fact of this node -> the event people and programs read later: `mlx-stack logs --events`, counters. Pure.

Not every fact is an event: each call has its route, and a worker's talk has its log.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from node.facts import CallFact, DownloadFact, DrainFact, ModelFact, NodeFact, PressureFact, WorkerFact
from node.headroom import gigabytes
from node.types import ModelState, Pressure

# Kind of event -> what it tells. docs/operations.md lists them.
KINDS = {
    "start": "the daemon began",
    "stop": "the daemon was told to end",
    "orphan": "a worker that a killed daemon left behind was ended",
    "load": "a model's load began",
    "ready": "it can answer",
    "evict": "it goes because another model needs its room",
    "recycle": "its worker had grown and is begun again",
    "unload": "its process is gone and its memory free",
    "crash": "its worker ended by itself",
    "hang": "its worker was ended: busy, but no token came",
    "oom": "its worker ran out of memory",
    "failed": "it cannot be started",
    "download": "its weights are fetched: begun, each tenth, done, failed",
    "pressure": "the machine's memory pressure changed",
    "drain": "the node takes no more requests, has finished them, takes them again",
    "drill": "a drill stopped something here",
}
_FAILURES = {"crash": "crash", "killed": "crash", "hang": "hang", "oom": "oom"}
_DEPARTURES = {"evicted": "evict", "recycled": "recycle"}
_DRAINED = {"begun": "takes no more requests", "drained": "has finished its requests", "ended": "takes requests again"}


class NodeEvent(Struct, frozen=True, kw_only=True):
    """EVENT of docs/api.md. `at` RFC 3339 UTC; `kind` one of KINDS; `model` "" when it is about the whole node; `text`
    for people; `data` the same in numbers and words for programs."""

    at: str
    kind: str
    model: str = ""
    text: str = ""
    data: dict[str, Any] = {}


def event_of(fact: NodeFact, at: str) -> NodeEvent | None:
    """What is worth keeping of `fact`; None when nothing is."""
    match fact:
        case ModelFact():
            return _of_model(fact, at)
        case DownloadFact():
            return _of_download(fact, at)
        case PressureFact(pressure=pressure, budget_bytes=budget_bytes):
            text = "memory pressure is normal again" if pressure is Pressure.NORMAL else f"pressure: {pressure.value}"
            text += f"; models may take {gigabytes(budget_bytes)}" if budget_bytes else ""
            data = {"pressure": pressure.value, "budget_bytes": budget_bytes}
            return NodeEvent(at=at, kind="pressure", text=text, data=data)
        case DrainFact(phase=phase, why=why):
            text = f"this node {_DRAINED[phase]}" + (f": {why}" if why else "")
            return NodeEvent(at=at, kind="drain", text=text, data={"phase": phase})
        case CallFact() | WorkerFact():
            return None


def _of_model(fact: ModelFact, at: str) -> NodeEvent | None:
    kind, text = "", fact.why
    data: dict[str, Any] = {"cause": fact.cause} if fact.cause else {}
    match fact.state:
        case ModelState.LOADING:
            kind = "load"
        case ModelState.READY if fact.load_s is not None:
            kind, text = "ready", text or f"after {fact.load_s:.1f} s"
            data["load_s"] = round(fact.load_s, 3)
        case ModelState.FAILED:
            kind = _FAILURES.get(fact.cause, "failed")
            data["retry_s"] = fact.retry_s
            text += f"; started again in {fact.retry_s:.0f} s" if fact.retry_s is not None else ""
        case ModelState.DRAINING:
            kind = _DEPARTURES.get(fact.cause, "")
        case ModelState.ABSENT if fact.cause != "no_room":
            kind = "unload"
        case _:
            pass
    return NodeEvent(at=at, kind=kind, model=fact.model, text=text, data=data) if kind else None


def _of_download(fact: DownloadFact, at: str) -> NodeEvent | None:
    """Of its progress each tenth only, so that a large model does not push everything else out."""
    if fact.phase == "progress" and _tenths(fact, fact.done_bytes) == _tenths(fact, fact.done_bytes - fact.new_bytes):
        return None
    of = f"{gigabytes(fact.done_bytes)} of {gigabytes(fact.total_bytes)}" if fact.total_bytes else ""
    text = "; ".join(part for part in (f"{fact.phase}: {fact.source}", of, fact.why) if part)
    data = {
        "phase": fact.phase,
        "source": fact.source,
        "done_bytes": fact.done_bytes,
        "total_bytes": fact.total_bytes,
    }
    return NodeEvent(at=at, kind="download", model=fact.model, text=text, data=data)


def _tenths(fact: DownloadFact, done_bytes: int) -> int:
    return 10 * done_bytes // fact.total_bytes if fact.total_bytes else 0
