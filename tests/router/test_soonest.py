"""The earliest time that still counts, whatever was added and dropped before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.soonest import SPARE, Soonest

steps = st.lists(st.tuples(st.floats(0, 100), st.integers(0, 3)), max_size=300)


@given(steps)
def test_it_is_the_least_of_those_that_live(script: list[tuple[float, int]]) -> None:
    alive: dict[int, float] = {}
    soonest = Soonest[int](lambda _, item: item in alive)
    for number, (at, drop) in enumerate(script):
        alive[number] = at
        soonest.add(at, number)
        for gone in list(alive)[:drop]:
            del alive[gone]
        assert soonest.first() == min(alive.values(), default=None)
    soonest.clear()
    assert soonest.first() is None


def test_what_is_over_does_not_pile_up() -> None:
    """Each is over long before its time, as requests are before they count as lost."""
    alive = set[int]()
    soonest = Soonest[int](lambda _, item: item in alive)
    for number in range(10_000):
        alive = {number}
        soonest.add(3600.0 + number, number)
    assert len(soonest._heap) <= 2 * SPARE
    assert soonest.first() == 3600.0 + 9_999
