"""Learned speeds: the prior of the hardware, what moves it, and that it always comes back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.types import ModelStatus, NodeId, NodeStatus
from router.settings import RouterSettings
from router.speed import Speeds

SETTINGS = RouterSettings()
MODEL = ModelStatus(name="qwen", size_bytes=4_500_000_000)
NODE = NodeStatus(node=NodeId("n"), bandwidth=546.0, models=(MODEL,))  # an M4 Max with 8B in 4 bit


def test_the_prior_is_what_the_hardware_should_do() -> None:
    rates = Speeds(SETTINGS).rates(NODE, MODEL, 0.0)
    assert rates.prefill_tps == pytest.approx(850, rel=0.25)
    assert rates.decode_tps == pytest.approx(84, rel=0.25)
    assert rates.learned == 0


def test_unknown_hardware_and_size_have_a_prior_too() -> None:
    rates = Speeds(SETTINGS).rates(NodeStatus(node=NodeId("x")), ModelStatus(name="m"), 0.0)
    assert rates.prefill_tps == pytest.approx(95.0)
    assert rates.decode_tps == pytest.approx(10.0)
    proxy = ModelStatus(name="m", size_bytes=30_000_000)  # A process that only passes on: it does not hold the weights.
    assert Speeds(SETTINGS).rates(NodeStatus(node=NodeId("x")), proxy, 0.0) == rates


def test_a_few_samples_carry_it_to_the_truth_and_time_carries_it_back() -> None:
    speeds = Speeds(SETTINGS)
    for i in range(12):
        speeds.read(NODE, MODEL, 1000, 1000 / 300 * (1 + 500 / 30_000), now=10.0 * i)
        speeds.wrote(NODE, MODEL, 100, 100 / 20 * 1.15, streams=2.0, now=10.0 * i)
    rates = speeds.rates(NODE, MODEL, 120.0)
    assert rates.prefill_tps == pytest.approx(300, rel=0.05)
    assert rates.decode_tps == pytest.approx(20, rel=0.07)  # as if it had run alone
    assert rates.learned == 24
    late = speeds.rates(NODE, MODEL, 120.0 + 30 * 900)
    assert late.prefill_tps == pytest.approx(Speeds(SETTINGS).rates(NODE, MODEL, 0.0).prefill_tps, rel=0.01)


def test_the_price_of_later_tokens_is_learned_beside_that_of_the_first() -> None:
    """A machine that reads 400 tokens/s, and half as fast after 15,000 tokens; the prior says 30,000."""
    speeds = Speeds(SETTINGS)
    for i in range(40):
        tokens, position = ((500, 0), (4000, 0), (500, 12_000), (2000, 6000))[i % 4]
        seconds = tokens / 400 * (1 + (position + tokens / 2) / 15_000)
        speeds.read(NODE, MODEL, tokens, seconds, position=position, now=float(i))
    pace = speeds.pace(NODE, MODEL, 40.0)
    assert 1 / pace.token_s == pytest.approx(400, rel=0.05)
    assert pace.read_s(1000, 10_000) == pytest.approx(1000 / 400 * (1 + 10_500 / 15_000), rel=0.05)


def test_what_was_learned_fades_while_nothing_happens_but_not_at_every_look() -> None:
    speeds = Speeds(SETTINGS)
    speeds.read(NODE, MODEL, 1000, 100.0, now=0.0)
    slow = speeds.pace(NODE, MODEL, 0.0).token_s
    assert speeds.pace(NODE, MODEL, 20.0).token_s == slow
    assert speeds.pace(NODE, MODEL, 900.0).token_s < slow


def test_short_prompts_and_answers_teach_nothing() -> None:
    speeds = Speeds(SETTINGS)
    speeds.read(NODE, MODEL, 10, 5.0, now=0.0)
    speeds.read(NODE, MODEL, 1000, 0.0, now=0.0)
    speeds.wrote(NODE, MODEL, 3, 5.0, streams=1.0, now=0.0)
    assert speeds.rates(NODE, MODEL, 0.0).learned == 0


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e6), st.floats(0, 1e4)), max_size=60))
def test_a_rate_stays_within_bounds_of_the_prior_whatever_is_learned(samples: list[tuple[int, float, float]]) -> None:
    speeds, now = Speeds(SETTINGS), 0.0
    prior = speeds.rates(NODE, MODEL, 0.0)
    for tokens, took_s, later in samples:
        now += later
        speeds.read(NODE, MODEL, tokens, took_s, position=tokens // 3, now=now)
        speeds.wrote(NODE, MODEL, tokens, took_s, streams=1.0, now=now)
        rates = speeds.rates(NODE, MODEL, now)
        for rate, expected in ((rates.prefill_tps, prior.prefill_tps), (rates.decode_tps, prior.decode_tps)):
            assert math.isfinite(rate)
            assert expected / 51 <= rate <= expected * 51
        pace = speeds.pace(NODE, MODEL, now)
        assert 0 <= pace.place_s <= 51 * pace.token_s * 50 / 30_000 * 50
        assert pace.read_s(100, 0) <= pace.read_s(200, 0) <= pace.read_s(200, 1000)


def test_the_length_of_answers_is_learned_and_bounded_by_the_client() -> None:
    speeds = Speeds(SETTINGS)
    assert speeds.output("qwen", 0) == 256.0
    assert speeds.output("qwen", 10) == 10.0
    for _ in range(200):
        speeds.ended("qwen", 50)
    assert speeds.output("qwen", 0) == pytest.approx(50, rel=0.02)
    assert speeds.output("other", 0) == 256.0


def test_the_last_load_is_the_forecast_of_the_next() -> None:
    speeds = Speeds(SETTINGS)
    assert speeds.load_s(NODE.node, MODEL) == pytest.approx(1 + 1.5)
    assert speeds.load_s(NODE.node, ModelStatus(name="qwen", load_s=7.0)) == 7.0
    speeds.loaded(NODE.node, "qwen", 3.3)
    assert speeds.load_s(NODE.node, ModelStatus(name="qwen", load_s=7.0)) == 3.3


def test_what_is_remembered_has_a_bound() -> None:
    speeds = Speeds(RouterSettings(speeds_limit=4))
    for i in range(20):
        speeds.loaded(NodeId(str(i)), "qwen", 1.0)
        speeds.ended(f"m{i}", 5)
    assert len(speeds._learners) == len(speeds._output) == 4
