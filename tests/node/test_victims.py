"""Which models go so that another fits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.victims import Candidate, cheapest


def test_the_fewest_and_of_them_the_cheapest() -> None:
    small, large = Candidate("s", 2, cost=1.0), Candidate("l", 6, cost=50.0)
    assert cheapest(0, [small]) == ()
    assert cheapest(3, [small]) is None
    assert cheapest(3, [small, large, Candidate("s2", 2)]) == ("l",)
    assert cheapest(2, [small, large]) == ("s",)
    assert cheapest(4, [small, Candidate("s2", 2, cost=9.0), Candidate("s3", 2, cost=3.0)]) == ("s", "s3")
    assert cheapest(2, [Candidate("busy", 2, busy=True), Candidate("idle", 2, cost=9.0)]) == ("idle",)
    assert cheapest(2, [Candidate("new", 2, age=-9.0), Candidate("old", 2, age=-1.0)]) == ("old",)
    assert cheapest(1, [Candidate("external", 0)]) is None
    many = [Candidate(f"m{n:02}", 1) for n in range(40)]
    assert len(cheapest(20, many) or ()) == 20


@given(
    missing=st.integers(0, 30),
    sizes=st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 5)), max_size=7),
)
def test_victims_are_the_fewest_and_not_one_is_superfluous(missing: int, sizes: list[tuple[int, bool, int]]) -> None:
    found = [Candidate(f"m{n}", size, busy, float(cost)) for n, (size, busy, cost) in enumerate(sizes)]
    chosen = cheapest(missing, found)
    total = sum(c.size_bytes for c in found)
    assert (chosen is None) == (total < missing)
    if chosen is None:
        return
    by_name = {c.name: c.size_bytes for c in found}
    freed = sum(by_name[n] for n in chosen)
    assert freed >= missing
    assert all(freed - by_name[n] < missing for n in chosen)
    for count in range(len(chosen)):
        assert sum(sorted(by_name.values(), reverse=True)[:count]) < missing
