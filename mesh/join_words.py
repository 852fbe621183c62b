"""What people read of joining: who waits and what to type, who is new, which other mesh of this name there is. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from mesh.doors import Newcomer, Waiter
from mesh.joining import Sight, Stance
from mesh.notes import SHOWN_MAX, listed
from node.types import NodeId

INVITE = "`mlx-stack mesh invite` here, then there `mlx-stack mesh enable --invite TOKEN`"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def typed(name: str, node: NodeId) -> str:
    """What to type for this node: a stranger chooses its name, and people copy the whole line into a shell."""
    return name if _PLAIN.fullmatch(name) else node


def of_waiter(waiter: Waiter) -> str:
    """Why a node that asks is not in, as a member shows it."""
    return (
        f"asks to be let in ({waiter.why}): if it shows the check number {waiter.check} too, "
        f"`mlx-stack mesh accept {typed(waiter.name, waiter.node)}` on any node of the mesh"
    )


def of_sight(sight: Sight, *, mesh: str, name: str, merges: bool) -> str:
    """What a node of another mesh of this name is to a member of `mesh`. `merges`: the two are about to be one."""
    if sight.mesh == mesh:
        return "it is no member of this mesh, and does not ask to be let in"
    if sight.stance == "looking" or (merges and sight.stance in ("open", "kept")):
        return "it has founded a mesh of its own; the two become one by themselves"
    if sight.stance == "out":
        return "it waits to be let into another mesh, or was removed from one"
    return f"it belongs to another mesh called '{name}' (id {sight.mesh[:4]}). To bring it here: {INVITE}"


def outside(me: str, *, check: str, removed: bool) -> str:
    """What a member of the mesh is to this node, `me`, that waits before its door."""
    if removed:
        return f"this node was removed from its mesh; `mlx-stack mesh accept {me}` there lets it back{_if(check)}"
    return (
        f"its mesh lets nobody in by itself now: `mlx-stack mesh accept {me}` on one of its nodes lets this one in"
        f"{_if(check)}; `mlx-stack mesh open` here begins a mesh of your own instead"
    )


def _if(check: str) -> str:
    return f" if it shows the check number {check} too" if check else ""


def waits_note(me: str, *, mesh: str, member: str, check: str, removed: bool) -> str:
    """A note of a node that is outside."""
    if removed:
        asks = f", which {member} would show with the check number {check}" if check else ""
        return (
            f"this node was removed from the mesh {mesh[:4]}: it serves alone. "
            f"`mlx-stack mesh accept {me}` on one of its nodes lets it back{asks}"
        )
    return (
        f"this node waits to be let into the mesh {mesh[:4]} of {member}, and serves alone: "
        f"`mlx-stack mesh accept {me}` on one of its nodes, if that shows the check number {check} for {me}. "
        f"Not your mesh? `mlx-stack mesh open` here begins one of your own"
    )


def newcomers_note(newcomers: Sequence[Newcomer], names: Mapping[NodeId, str], me: NodeId) -> list[str]:
    """One line for all that came by themselves, with the numbers to compare."""
    if not newcomers:
        return []
    shown = [f"{_named(x, names)} ({x.check}{', this node' if x.node == me else ''})" for x in newcomers[:SHOWN_MAX]]
    more = f" and {len(newcomers) - SHOWN_MAX} more" if len(newcomers) > SHOWN_MAX else ""
    all_typed = " ".join(typed(_named(x, names), x.node) for x in newcomers)
    text = (
        f"joined by itself, and nobody has confirmed it yet: {', '.join(shown)}{more}. Does each of them show the same "
        f"check number in its own `mlx-stack mesh status`? `mlx-stack mesh accept {all_typed}`; "
        f"`mlx-stack mesh remove NAME` puts one out"
    )
    return [text]


def waiters_note(waiters: Iterable[Waiter]) -> list[str]:
    return [f"{w.name} {of_waiter(w)}; `mlx-stack mesh remove {typed(w.name, w.node)}` sends it away" for w in waiters]


def others_note(sights: Iterable[Sight], name: str, mesh: str, stance: Stance) -> list[str]:
    """Other meshes of this name that stay others."""
    by: dict[str, list[str]] = {}
    for sight in sights:
        apart = sight.stance == "closed" or (sight.stance in ("open", "kept") and stance == "closed")
        if sight.mesh != mesh and apart:
            by.setdefault(sight.mesh, []).append(sight.name)
    tell_apart = f"`mlx-stack mesh enable --name NAME` tells them apart; to make them one: {INVITE}"
    return [
        f"another mesh here is called '{name}', too (id {other[:4]}: {listed(nodes)}). {tell_apart}"
        for other, nodes in sorted(by.items())
    ]


def _named(newcomer: Newcomer, names: Mapping[NodeId, str]) -> str:
    return names.get(newcomer.node, newcomer.name)
