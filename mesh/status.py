"""`mesh status`: the contract's JSON, made from one View and one account. Pure.

The counts are a partition: each open request of the mesh is either waiting at the coordinator (`mesh.queue_depth`), or
granted to one node, where it counts as that node's `queue_depth` (reserved, or waiting inside it) or `in_flight`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from node.types import ModelReport, NodeId
from router.account import Account, NodeAccount
from router.view import NodeView, View

Json = dict[str, Any]


_MODEL_FIELDS = (
    "name",
    "aliases",
    "source",
    "engine",
    "fingerprint",
    "state",
    "size_bytes",
    "slots",
    "in_flight",
    "queue_depth",
    "prefill_tps",
    "decode_tps",
    "resume",
    "error",
)
_DETAIL_FIELDS = (
    *("reserved_bytes", "measured_bytes", "unloads_in_s", "progress", "waits_for", "last_error", "load_s", "context"),
    *("paths", "fallback"),
)


def model_json(model: ModelReport) -> Json:
    """MODEL of DESIGN section 4; its `error` also says who is in the way of a model that waits for room."""
    fields = msgspec.to_builtins(model)
    waits = f"waits for room: {model.waits_for}" if model.waits_for else None
    return {**{name: fields[name] for name in _MODEL_FIELDS}, "error": model.error or waits}


def model_details(model: ModelReport) -> Json:
    """MODEL and what only its own node's commands show."""
    fields = msgspec.to_builtins(model)
    return {name: fields[name] for name in (*_MODEL_FIELDS, *_DETAIL_FIELDS)}


def node_json(
    node: NodeView,
    view: View,
    name: str,
    account: NodeAccount | None,
    model: Callable[[ModelReport], Json] = model_json,
) -> Json:
    """NODE of DESIGN section 4. `account` None: nobody counts for this node now, so its own count stands."""
    report = node.report
    if account is None:
        account = NodeAccount(sum(m.queue_depth for m in report.models), sum(m.in_flight for m in report.models))
    return {
        "name": name,
        "id": report.id,
        "state": node.state.value,
        "reason": node.reason,
        "coordinator": report.id == view.coordinator,
        "far": node.far,
        "priority": report.priority,
        "uptime_s": round(report.uptime_s, 1),
        "addresses": list(node.addresses or report.addresses),
        "version": report.version,
        "via": node.via,
        "rtt_ms": None if node.rtt_s is None else round(node.rtt_s * 1e3, 2),
        "hardware": {
            "chip": report.hardware.chip,
            "memory_bytes": report.hardware.memory_bytes,
            "gpu_cores": report.hardware.gpu_cores,
        },
        "memory": {
            "budget_bytes": report.memory.budget_bytes,
            "used_bytes": report.memory.used_bytes,
            "headroom_bytes": report.memory.headroom_bytes,
            "pressure": report.memory.pressure.value,
        },
        "queue_depth": account.reserved,
        "in_flight": account.in_flight,
        "models": [model(m) for m in report.models],
    }


def mesh_json(
    view: View,
    names: Mapping[NodeId, str],
    account: Account,
    extra_notes: Sequence[str] = (),
    *,
    checks: Mapping[NodeId, str] = MappingProxyType({}),
    window_s: float = 0.0,
) -> Json:
    """The whole of `mesh status --json`. `names` as people know the nodes; `notes` say what a person should know;
    `checks`, by id, the numbers of who is not accepted yet; `window_s`: for how long nodes may join by themselves."""
    return {
        "mesh": {
            "name": view.mesh_name,
            "id": view.mesh_id,
            "enabled": view.enabled,
            "coordinator": names.get(view.coordinator) if view.coordinator else None,
            "term": view.term,
            "url": view.url,
            "alone": view.alone,
            "queue_depth": account.queue_depth,
            "in_flight": account.total - account.queue_depth,
        },
        "self": names[view.self_id],
        "nodes": [
            node_json(n, view, names[n.report.id], account.nodes.get(n.report.id, NodeAccount()))
            for n in sorted(view.nodes, key=lambda n: (names[n.report.id], n.report.id))
        ],
        "trust": {"window_s": window_s, "checks": dict(checks)},
        "notes": [*extra_notes, *differing_names(view)],
    }


def differing_names(view: View) -> list[str]:
    """A note for each name under which nodes serve different weights (DESIGN section 5, Names)."""
    weights: dict[str, set[str]] = {}
    for node in view.serving():
        for model in node.report.models:
            for name in {model.name, *model.aliases}:
                weights.setdefault(name, set()).add(model.fingerprint or model.name)
    return [
        f"'{name}' is not the same weights on every node: a conversation stays on those it began with"
        for name, kinds in sorted(weights.items())
        if len(kinds) > 1
    ]
