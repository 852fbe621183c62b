"""mesh/names.py, and the names a view shows: what a person types leads to one node."""

from __future__ import annotations

import pytest

from mesh.errors import MeshError
from mesh.names import resolve
from node.types import NodeId
from router.view import NodeView, View
from tests.mesh.members import ME, A, B, report


def view_of(*named: tuple[NodeId, str]) -> View:
    return View(self_id=named[0][0], nodes=tuple(NodeView(report=report(i, name=n)) for i, n in named))


def test_equal_names_show_part_of_the_id() -> None:
    twins = view_of((A, "mini"), (B, "Mini"), (ME, "studio"))
    assert twins.names() == {A: "mini~aaaa", B: "Mini~bbbb", ME: "studio"}
    close = NodeId("aaaaaa00" * 2)
    assert view_of((A, "mini"), (close, "mini")).names() == {A: "mini~aaaaaaa", close: "mini~aaaaaa0"}


@pytest.mark.parametrize("text", ["mini~aaaa", "MINI~AAAA", A, "aaaa", "mini~aaaaaa", " mini~aaaa "])
def test_a_node_is_found_by_name_or_id(text: str) -> None:
    assert resolve(view_of((A, "mini"), (B, "mini"), (ME, "studio")), text) == A


def test_unclear_names_are_answered_with_the_candidates() -> None:
    view = view_of((A, "mini"), (B, "mini"), (ME, "studio"))
    assert resolve(view, "Studio") == resolve(view, "studio~0000") == ME
    with pytest.raises(MeshError, match="mini~aaaa, mini~bbbb") as caught:
        resolve(view, "mini")
    assert caught.value.code == "ambiguous_node"
    with pytest.raises(MeshError, match="there is: mini~aaaa, mini~bbbb, studio") as caught:
        resolve(view, "max")
    assert caught.value.code == "unknown_node"
