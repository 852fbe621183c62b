"""Progress of busy workers, and when idle ones are probed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.settings import NodeSettings
from node.vitals import ProbeClock, Progress, patience_s

SETTINGS = NodeSettings(
    hang_factor=4,
    hang_floor_s=60,
    hang_blind_s=300,
    hang_prefill_tps=20,
    idle_probe_first_s=60,
    idle_probe_cap_s=300,
)


def test_silence_counts_only_while_there_is_something_to_do() -> None:
    progress = Progress(0.0)
    assert progress.silent_s((1, 1), busy=False, now=100.0) == 0.0
    assert progress.silent_s((1, 1), busy=True, now=101.0) == 1.0
    assert progress.silent_s((1, 1), busy=True, now=150.0) == 50.0
    assert progress.silent_s((1, 2), busy=True, now=151.0) == 0.0
    assert progress.silent_s((1, 2), busy=True, now=155.0) == 4.0
    assert progress.silent_s((1, 2), busy=False, now=156.0) == 0.0


def test_patience_follows_the_models_own_speed() -> None:
    assert patience_s(SETTINGS, 2048, prefill_tps=1000.0) == 60.0
    assert patience_s(SETTINGS, 2048, prefill_tps=64.0) == 128.0
    assert patience_s(SETTINGS, 2000, prefill_tps=None) == 400.0
    assert patience_s(SETTINGS, 10, prefill_tps=None, tells=False) == 300.0


@given(tokens=st.integers(0, 10**6), more=st.integers(0, 10**6), tps=st.floats(0.1, 1e5))
def test_longer_prompts_and_slower_models_are_given_more_time(tokens: int, more: int, tps: float) -> None:
    assert patience_s(SETTINGS, tokens, tps) <= patience_s(SETTINGS, tokens + more, tps)
    assert patience_s(SETTINGS, tokens, tps) <= patience_s(SETTINGS, tokens, tps / 2)


def test_probes_come_at_growing_intervals_while_nobody_asks() -> None:
    clock = ProbeClock(SETTINGS, 0.0)
    probed = [now for now in range(2000) if clock.due(idle=True, now=float(now))]
    assert probed == [60, 180, 420, 720, 1020, 1320, 1620, 1920]
    assert not clock.due(idle=False, now=2000.0)
    assert not clock.due(idle=True, now=2059.0)
    assert clock.due(idle=True, now=2060.0)


@given(uses=st.lists(st.booleans(), max_size=300))
def test_a_worker_in_use_is_never_probed(uses: list[bool]) -> None:
    clock = ProbeClock(SETTINGS, 0.0)
    for second, idle in enumerate(uses):
        assert not clock.due(idle=idle, now=second * 30.0) or idle
