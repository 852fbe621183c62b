"""Which model names exist in the mesh, who serves them, and what to say when one does not. Pure."""

from __future__ import annotations

import difflib
from typing import Any

from msgspec import Struct

from node.openai import plain_path
from node.types import ModelReport, ModelState, NodeId
from router.asked import CHAT, COMPLETIONS, Asked
from router.errors import ErrorCode, Refusal, RouterError
from router.filters import ABSENT
from router.view import NodeState, NodeView, View

# `/v1/...` that engines may serve beside the two every one does. A model's `paths` says whether its engine does.
ALLOWED = ("embeddings", "rerank", "responses", "messages", "audio/*", "images/*")

# Best first: how a name is shown that several nodes hold in several states.
_STATES = (
    ModelState.READY,
    ModelState.BUSY,
    ModelState.LOADING,
    ModelState.DOWNLOADING,
    ModelState.ABSENT,
    ModelState.DRAINING,
    ModelState.FAILED,
)


class Wanted(Struct, frozen=True):
    """Where a request may run. `models` in order of preference; `barred` nodes hold one, but cannot serve this."""

    models: tuple[str, ...]
    barred: tuple[NodeId, ...] = ()


def names_of(model: ModelReport) -> tuple[str, ...]:
    return (model.name, *model.aliases)


def matches(pattern: str, path: str) -> bool:
    """Whether `path` (below /v1) is meant by `pattern`: itself, or what `audio/*` stands for."""
    pattern = pattern.strip("/").removeprefix("v1/")
    return path.startswith(pattern[:-1]) if pattern.endswith("/*") else path == pattern


def serves(model: ModelReport, path: str) -> bool:
    return path in (CHAT, COMPLETIONS) or any(matches(p, path) for p in model.paths)


def known_path(view: View, path: str) -> bool:
    """Whether `/v1/<path>` may be asked for at all: on the list, or served by some model of the mesh."""
    if not plain_path(path):
        return False
    if path in (CHAT, COMPLETIONS) or any(matches(p, path) for p in ALLOWED):
        return True
    return any(serves(m, path) for n in view.serving() for m in n.report.models)


def wanted(view: View, path: str, asked: Asked, listed: int) -> Wanted:
    """What to ask the coordinator for. At most `listed` names stand in an error's message.

    Raises RouterError: MODEL_NOT_FOUND naming what exists, NO_NODE_AVAILABLE when only nodes that are away hold it,
    PATH_NOT_FOUND naming what serves the path, INVALID_REQUEST for `n` > 1 where no engine serves it.
    """
    if path not in (CHAT, COMPLETIONS):  # a pattern stands for any number of others
        return _wanted(view, path, asked, listed)
    key = (path, asked.model, asked.choices > 1)
    if (found := view.wanted.get(key)) is None:
        found = view.wanted[key] = _wanted(view, path, asked, listed)
    return found


def _wanted(view: View, path: str, asked: Asked, listed: int) -> Wanted:
    held = _held(view, asked.model)
    fallbacks = tuple(name for _, model in held for name in model.fallback)
    models = tuple(dict.fromkeys((asked.model, *fallbacks)))
    holders = [pair for name in models for pair in _held(view, name, serving=True)]
    if not holders:
        raise _absent(view, asked.model, held, listed)
    able = {n.report.id for n, m in holders if serves(m, path)}
    if not able:
        raise RouterError(ErrorCode.PATH_NOT_FOUND, _who_serves(view, path, asked.model, listed), param="model")
    if asked.choices > 1:
        able &= {n.report.id for n, m in holders if m.multiple_choices}
        if not able:
            why = f"no engine that runs '{shown(asked.model)}' gives more than one choice"
            raise RouterError(ErrorCode.INVALID_REQUEST, f"'n' must be 1: {why}", param="n")
    barred = {n.report.id for n, _ in holders} - able
    return Wanted(models, tuple(sorted(barred)))


def _held(view: View, name: str, *, serving: bool = False) -> list[tuple[NodeView, ModelReport]]:
    """Every (node, model) this name stands for; nodes that never were members do not count."""
    nodes = view.serving() if serving else view.nodes
    strangers = (NodeState.WAITING, NodeState.INCOMPATIBLE)
    return [(n, m) for n in nodes if n.state not in strangers for m in n.report.models if name in names_of(m)]


def _absent(view: View, name: str, held: list[tuple[NodeView, ModelReport]], listed: int) -> RouterError:
    if held:
        away = sorted({f"{view.names()[n.report.id]} ({_why_away(n)})" for n, _ in held})
        message = f"no node can serve '{shown(name)}' now; it is on {', '.join(away)}"
        return RouterError(ErrorCode.NO_NODE_AVAILABLE, message, param="model")
    return RouterError(ErrorCode.MODEL_NOT_FOUND, not_found(view, name, listed), param="model")


def nobody(view: View, name: str, listed: int) -> Refusal:
    """Why `name` cannot be had here: who has it and is away, or that nobody has it."""
    return _absent(view, name, _held(view, name), listed).refusal


def away(view: View, name: str) -> dict[NodeId, str]:
    """Why not, of each node that holds `name` but cannot be asked, and of those that do not hold it."""
    held = {n.report.id: n for n, _ in _held(view, name)}
    able = {n.report.id for n, _ in _held(view, name, serving=True)}
    absent = {n.report.id: ABSENT for n in view.serving() if n.report.id not in held}
    return {node: _why_away(n) for node, n in held.items() if node not in able} | absent


def not_found(view: View, name: str, listed: int) -> str:
    """What to tell a client that asks for `name`: what exists, and what it may have meant."""
    exist = sorted({other for n in view.serving() for m in n.report.models for other in names_of(m)})
    if not exist:
        return f"model '{shown(name)}' not found: no node of this mesh has any model"
    near = difflib.get_close_matches(name[:200].lower(), exist, n=1)
    hint = f"did you mean '{near[0]}'? These exist" if near else "these exist"
    return f"model '{shown(name)}' not found; {hint}: {_some(exist, listed)}"


def _why_away(node: NodeView) -> str:
    if node.state in (NodeState.OK, NodeState.SUSPECT):
        return "no connection"
    return f"{node.state.value}: {node.reason}" if node.reason else node.state.value


def _who_serves(view: View, path: str, name: str, listed: int) -> str:
    able = sorted({m.name for n in view.serving() for m in n.report.models if serves(m, path)})
    others = f"these do: {_some(able, listed)}" if able else "no model of this mesh does"
    return f"'{shown(name)}' does not serve /v1/{shown(path)}; {others}"


def _some(names: list[str], listed: int) -> str:
    more = f" and {len(names) - listed} more" if len(names) > listed else ""
    return ", ".join(names[:listed]) + more


def shown(text: str) -> str:
    """A client's word as it may stand in a message or a log: short and printable."""
    clean = "".join(c if c.isprintable() else "?" for c in text[:101])
    return clean if len(clean) <= 100 else clean[:100] + "…"


def listing(view: View, created: int) -> list[dict[str, Any]]:
    """The models of `GET /v1/models`: each name and alias once. `created` in Unix seconds, the same for all."""
    found: dict[str, tuple[set[NodeId], ModelState]] = {}
    for node in view.serving():
        for model in node.report.models:
            for name in names_of(model):
                nodes, state = found.get(name, (set(), ModelState.FAILED))
                found[name] = (nodes | {node.report.id}, min(state, model.state, key=_STATES.index))
    names = view.names()
    return [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "mlx-stack",
            "mesh": {"nodes": sorted(names[n] for n in nodes), "state": state.value},
        }
        for name, (nodes, state) in sorted(found.items())
    ]


def why_not_ready(view: View) -> str | None:
    """None when a request sent now can be answered; else the reason, for people."""
    if (me := view.node(view.self_id)) is not None and me.report.draining:
        return f"this node is draining: {me.report.drain_reason}".rstrip(": ")
    if view.enabled and view.coordinator is None and not view.alone:
        return "no coordinator is known"
    states = {m.state for n in view.serving() for m in n.report.models}
    if not states:
        return "no node of this mesh has a model"
    if states & {ModelState.READY, ModelState.BUSY, ModelState.ABSENT}:
        return None
    if states & {ModelState.LOADING, ModelState.DOWNLOADING}:
        return "models are being loaded"
    return "every model has failed or is draining: see `mlx-stack models`"
