"""Never over the budget, never two loads, no turn lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.rail import Full, Load, Rail, Release, Reserve, Settled

names = st.sampled_from("abcdef")
steps = st.lists(st.tuples(st.sampled_from(["reserve", "settle", "release"]), names, st.integers(0, 8)), max_size=80)


@given(budget=st.integers(0, 20), steps=steps)
def test_budget_single_flight_and_turns(budget: int, steps: list[tuple[str, str, int]]) -> None:
    rail = Rail(budget)
    held: dict[str, int] = {}
    loading: set[str] = set()  # with bytes, told to load and not settled
    waiting: list[str] = []
    for what, name, size in steps:
        if what == "reserve":
            if name in held:
                continue
            effects = rail.step(Reserve(name, size))
            fits = sum(held.values()) + size <= budget
            assert any(isinstance(e, Full) for e in effects) == (not fits)
            if fits:
                held[name] = size
                waiting += [name] if size else []
        elif what == "settle":
            effects = rail.step(Settled(name)) if name in loading else []
            loading.discard(name)
        else:
            effects = rail.step(Release(name))
            held.pop(name, None)
            loading.discard(name)
            waiting = [w for w in waiting if w != name]
        for effect in effects:
            if isinstance(effect, Load) and held[effect.model]:
                assert effect.model == waiting.pop(0)
                loading.add(effect.model)
        assert len(loading) <= 1
        assert not waiting or loading  # Whoever waits, waits for a load that runs.
        assert rail.used_bytes == sum(held.values()) <= budget
