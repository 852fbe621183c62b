"""Which node a person means. Pure."""

from __future__ import annotations

from mesh.errors import MeshError
from node.types import NodeId
from router.view import View


def resolve(view: View, text: str) -> NodeId:
    """The node a person means: its name, `name~id4`, its id or at least 4 digits of its start.

    Raises MeshError unknown_node (listing who is there) or ambiguous_node (listing who it may be).
    """
    wanted, names = text.strip().lower(), view.names()
    for matches in (
        [id_ for id_, name in names.items() if wanted in (name.lower(), id_)],
        [n.report.id for n in view.nodes if n.report.name.lower() == wanted],
        [id_ for id_, name in names.items() if _tilde(wanted, name, id_)],
        [id_ for id_ in names if len(wanted) >= 4 and id_.startswith(wanted)],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            candidates = ", ".join(sorted(view.long_name(n.report) for n in view.nodes if n.report.id in matches))
            raise MeshError(
                "ambiguous_node", f"'{text}' is more than one node: {candidates}", hint="use one of these", status=409
            )
    there = ", ".join(sorted(names.values()))
    raise MeshError("unknown_node", f"no node '{text}' in this mesh; there is: {there}", status=404)


def _tilde(wanted: str, shown: str, node: NodeId) -> bool:
    """`name~id` with any length of id, also for a node that is shown without one."""
    name, _, start = wanted.rpartition("~")
    return len(start) >= 4 and node.startswith(start) and shown.lower().split("~")[0] == name
