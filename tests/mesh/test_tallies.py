"""Counts and spreads: plain numbers that add up."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from mesh.tallies import OTHER, SERIES_MAX, Counts, Spread, Spreads

BOUNDS = (0.1, 1.0, 10.0)


@given(values=st.lists(st.floats(0, 100)))
def test_each_bound_has_all_values_not_above_it(values: list[float]) -> None:
    spread = Spread(BOUNDS)
    for value in values:
        spread.observe(value)
    assert spread.up_to() == [(bound, sum(v <= bound for v in values)) for bound in (*BOUNDS, inf)]
    assert spread.sum == sum(values)


def test_a_count_for_each_combination_of_labels() -> None:
    counts = Counts("name", "what", ["a", "b"])
    counts.labels("x", "y").inc()
    counts.labels("x", "y").inc(2)
    counts.labels("x", "z").inc()
    assert {labels: count.value for labels, count in counts.items()} == {("x", "y"): 3, ("x", "z"): 1}


def test_what_has_no_labels_is_there_from_the_start() -> None:
    assert [(labels, count.value) for labels, count in Counts("name", "what").items()] == [((), 0)]
    ((labels, spread),) = Spreads("name", "what", bounds=BOUNDS).items()
    assert (labels, spread.up_to()[-1]) == ((), (inf, 0))
    counts = Counts("name", "what")
    counts.inc(2)
    assert counts.labels().value == 2


def test_whoever_changes_its_name_on_and_on_makes_no_more_series() -> None:
    counts, spreads = Counts("name", "what", ["node"]), Spreads("name", "what", ["node"], bounds=BOUNDS)
    for number in range(SERIES_MAX + 500):
        counts.labels(f"node-{number}").inc()
        spreads.labels(f"node-{number}").observe(1.0)
    found = {labels: count.value for labels, count in counts.items()}
    assert len(found) == len(list(spreads.items())) == SERIES_MAX + 1
    assert found[(OTHER,)] == 500, "nothing is lost of the sum"
    counts.labels("node-1").inc()
    assert counts.labels("node-1").value == 2, "those that are there count on"
