"""Speeds learned from answers."""

from __future__ import annotations

import pytest

from node.speed import Speed
from node.types import Usage


def test_nothing_is_known_before_an_answer() -> None:
    assert (Speed().prefill_tps, Speed().decode_tps) == (None, None)


def test_cached_tokens_were_not_read_and_the_first_one_not_decoded() -> None:
    speed = Speed()
    speed.learn(Usage(prompt=1000, cached=600, completion=101), ttft_s=2.0, decode_s=5.0)
    assert (speed.prefill_tps, speed.decode_tps) == (200.0, 20.0)


def test_the_newest_answer_moves_the_mean_a_fifth() -> None:
    speed = Speed()
    speed.learn(Usage(prompt=100, completion=101), ttft_s=1.0, decode_s=1.0)
    speed.learn(Usage(prompt=200, completion=201), ttft_s=1.0, decode_s=1.0)
    assert speed.prefill_tps == pytest.approx(120.0)
    assert speed.decode_tps == pytest.approx(120.0)


def test_short_answers_and_broken_clocks_teach_nothing() -> None:
    speed = Speed()
    speed.learn(Usage(prompt=15, completion=16), ttft_s=1.0, decode_s=1.0)
    speed.learn(Usage(prompt=100, completion=100), ttft_s=0.0, decode_s=0.0)
    speed.learn(Usage(prompt=10, cached=100, completion=0), ttft_s=1.0, decode_s=1.0)
    assert (speed.prefill_tps, speed.decode_tps) == (None, None)
