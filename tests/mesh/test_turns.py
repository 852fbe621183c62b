from __future__ import annotations

import pytest

from mesh.turns import Turns


def test_a_step_asked_for_by_a_step_runs_after_it() -> None:
    turns, said = Turns(), list[str]()

    def outer() -> None:
        turns.take(lambda: said.append("inner"))
        said.append("outer")

    turns.take(outer)
    assert said == ["outer", "inner"]


def test_a_step_that_raises_takes_no_other_turn_away() -> None:
    turns, said = Turns(), list[str]()

    def outer() -> None:
        turns.take(lambda: said.append("behind"))
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        turns.take(outer)
    turns.take(lambda: said.append("later"))
    assert said == ["behind", "later"]
