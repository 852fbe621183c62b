"""The bench of what more nodes add runs, and says what it was asked to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import scaling

pytestmark = pytest.mark.server


def test_a_mesh_that_grows_is_measured(short_folder: Path) -> None:
    """Not how well it grows: that is the bench's own figure, on a machine with nothing else to do."""
    found = scaling.grow(short_folder / "grow", (1, 2), agents=6, warm_s=6.0, window_s=5.0)
    assert [at.nodes for at in found] == [1, 2]
    assert set(found[0].by_node) == {"node-1"}
    assert set(found[1].by_node) == {"node-1", "node-2"}
    figures = {figure.name: figure for figure in scaling.rows(found)}
    assert figures["looping agents: requests failed"].value == 0
    assert (figures["1 node, looping agents: answers"].value or 0) > 0
    ratio = figures["2 nodes, looping agents: throughput / one node"]
    assert ratio.goal == ">= 1.9"
    assert ratio.value == pytest.approx(found[1].answers_per_s / found[0].answers_per_s, abs=1e-3)
