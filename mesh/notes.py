"""What a person should know of the mesh, found by comparing what its parts know. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from node.types import NodeId
from router.view import View

SHOWN_MAX = 5
ADD = "`mlx-stack mesh add HOST` on one node joins it"


def unheard(view: View, alive: Collection[NodeId], heard: Collection[NodeId], after_s: float) -> list[str]:
    """Near nodes that mDNS never told of, although they have been here for `after_s`: it swallows what we send, or what
    they do, without an error."""
    names = view.names()
    missing = [
        names[node.report.id]
        for node in view.nodes
        if node.report.id in alive and node.report.id not in heard and not node.far and node.report.uptime_s >= after_s
    ]
    if not missing:
        return []
    text = (
        f"{listed(missing)}: found by address, never by mDNS. Multicast is lost in this network (switch, VLAN, Wi-Fi "
        f"client isolation, firewall), so a new node is not found by itself: {ADD}"
    )
    return [text]


def forbidden(view: View, why: Mapping[NodeId, str]) -> list[str]:
    """Nodes that a permission here keeps us from, one line for each permission."""
    names = view.names()
    by: dict[str, list[str]] = {}
    for node, text in why.items():
        by.setdefault(text, []).append(names.get(node, node[:4]))
    return [f"{listed(nodes)} cannot be reached: {text}" for text, nodes in by.items()]


def listed(names: list[str]) -> str:
    """The first few, and how many more."""
    more = len(names) - SHOWN_MAX
    return ", ".join(sorted(names)[:SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
