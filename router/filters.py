"""Can this node serve it at all? Every "no" is a sentence for people."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from node.types import ModelState, ModelStatus, NodeStatus, Pressure
from router.events import Request

ABSENT = "model not served there"


class Unfit(Struct, frozen=True):
    """Why not. `failed`: because something broke there, not because it is full or away. `excluded`: by the request,
    which has tried it. `back_s` seconds until it is started again; None: not by itself."""

    why: str
    failed: bool = False
    excluded: bool = False
    back_s: float | None = None


def match(status: NodeStatus, name: str) -> ModelStatus | None:
    """The model that `name` means on this node: MODEL.name goes before aliases; of several, the first by name."""
    named = [m for m in status.models if m.name == name]
    return min(named or [m for m in status.models if name in m.aliases], key=lambda m: m.name, default=None)


def unfit(
    status: NodeStatus, model: ModelStatus, request: Request, *, pending: bool = False, promised_bytes: int = 0
) -> Unfit | None:
    """None when `status.node` can serve `request` with `model`, at once or later; else why not.

    `pending`: a grant of ours has already made it load. `promised_bytes` are what other such loads will take.
    """
    if status.node in request.excluded:
        return Unfit("excluded: already failed this request", failed=True, excluded=True)
    if status.draining:
        return Unfit("draining: it takes no new requests")
    if model.state is ModelState.FAILED:
        why = f"failed there: {model.error}" if model.error else "failed there"
        why += f"; started again in {model.retry_s:.0f} s" if model.retry_s is not None else ""
        return Unfit(why, failed=True, back_s=model.retry_s)
    if model.state is ModelState.DOWNLOADING:
        return Unfit(f"not there yet: {model.error or 'downloading'}")
    if model.state is ModelState.ABSENT and not pending:
        return _unfit_load(status, model, promised_bytes)
    return None


def _unfit_load(status: NodeStatus, model: ModelStatus, promised_bytes: int) -> Unfit | None:
    if status.pressure is Pressure.CRITICAL:
        return Unfit("memory pressure is critical there, and it would have to load the model")
    left = max(0, status.headroom_bytes - promised_bytes)
    if model.size_bytes <= left:
        return None
    # A node that evicts holds the request until others have gone, those that our own grants make it load included.
    possible = left if status.evictable_bytes is None else status.headroom_bytes + status.evictable_bytes
    if model.size_bytes <= possible:
        return None
    return Unfit(f"absent and does not fit: needs {model.size_bytes / 1e9:.1f} GB, headroom {possible / 1e9:.1f} GB")


def names(statuses: Iterable[NodeStatus]) -> list[str]:
    """Every MODEL.name and alias that exists on these nodes, each once, sorted."""
    return sorted({name for s in statuses for m in s.models for name in (m.name, *m.aliases)})
