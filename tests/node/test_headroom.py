"""Bytes of models and budgets, checked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.headroom import (
    GIB,
    Shape,
    Taken,
    cache_bytes,
    default_budget,
    gigabytes,
    kv_bytes,
    load_s,
    model_bytes,
)
from node.io.probe import working_set_of
from node.settings import NodeSettings

MIB = 2**20
LLAMA_8B = Shape(weight_bytes=4_500_000_000, kv_layers=32, kv_heads=8, head_dim=128, context=131_072)
WINDOWED = Shape(
    weight_bytes=0, kv_layers=2, kv_heads=1, head_dim=64, window=512, window_token_bytes=10 * 2 * 64 * 2, context=8192
)


def cache_of(shape: Shape, budget_gib: int, kv_tokens: int = 8192) -> int:
    return cache_bytes(shape, budget_bytes=budget_gib * GIB, kv_tokens=kv_tokens, least=256 * MIB, most=2 * GIB)


def test_a_known_model() -> None:
    assert kv_bytes(LLAMA_8B, 1) == 131_072
    cache = cache_of(LLAMA_8B, 12)
    assert cache == 131_072 * 8192, "one text of 8192 tokens fits, although a sixteenth of the budget is less"
    weights = LLAMA_8B.weight_bytes
    assert model_bytes(LLAMA_8B, cache) == weights + weights * 3 // 100 + cache + cache // 10 + GIB // 2


# Weights and shapes as their repositories on the hub have them, 4 bit.
QWEN3_8B = Shape(weight_bytes=4_610_000_000, kv_layers=36, kv_heads=8, head_dim=128, context=40_960)
LLAMA_3B = Shape(weight_bytes=1_810_000_000, kv_layers=28, kv_heads=8, head_dim=128, context=131_072)
QWEN3_4B = Shape(weight_bytes=2_260_000_000, kv_layers=36, kv_heads=8, head_dim=128, context=40_960)
QWEN25_7B = Shape(weight_bytes=4_280_000_000, kv_layers=28, kv_heads=4, head_dim=128, context=32_768)
FALCON_H1_7B = Shape(weight_bytes=4_270_000_000, kv_layers=44, kv_heads=2, head_dim=128, context=262_144)


@pytest.mark.parametrize(
    "tiers",
    [
        (QWEN3_8B, LLAMA_3B, QWEN25_7B),
        (QWEN3_8B, LLAMA_3B, FALCON_H1_7B),
        (LLAMA_8B, QWEN3_4B, FALCON_H1_7B),
    ],
)
def test_three_tiers_of_the_older_stack_stay_together_on_24_gb(tiers: tuple[Shape, ...]) -> None:
    """It runs them side by side; so do we, before anything is measured, within what macOS lets a GPU hold."""
    memory = 24 * GIB
    budget = default_budget(memory, working_set_of("0", memory))
    settings = NodeSettings()
    least, most = settings.cache_bytes_min, settings.cache_bytes_max
    needed = sum(
        model_bytes(s, cache_bytes(s, budget_bytes=budget, kv_tokens=settings.kv_tokens, least=least, most=most))
        for s in tiers
    )
    assert needed <= budget


def test_a_window_stops_growing() -> None:
    full, windowed = 2 * 2 * 64 * 2, 10 * 2 * 64 * 2
    assert kv_bytes(WINDOWED, 100) == 100 * (full + windowed)
    assert kv_bytes(WINDOWED, 512) == 512 * (full + windowed)
    assert kv_bytes(WINDOWED, 8192) == 8192 * full + 512 * windowed


def test_the_cache_is_a_share_of_the_budget_within_bounds() -> None:
    heavy = Shape(weight_bytes=40 * GIB)
    assert [cache_of(heavy, gib) for gib in (2, 4, 12, 24, 108)] == [
        256 * MIB,
        256 * MIB,
        768 * MIB,
        1536 * MIB,
        2 * GIB,
    ]
    assert cache_of(Shape(weight_bytes=GIB), 108) == GIB, "a small model keeps less than its weights"
    assert cache_of(Shape(weight_bytes=1), 108) == 256 * MIB


def test_no_more_tokens_are_budgeted_than_the_context_holds() -> None:
    short = Shape(weight_bytes=0, kv_layers=64, kv_heads=64, head_dim=128, context=400)
    assert cache_of(short, 4) == kv_bytes(short, 400)
    unknown = Shape(weight_bytes=0, kv_layers=64, kv_heads=64, head_dim=128)
    assert cache_of(unknown, 4) == kv_bytes(unknown, 8192)


def test_what_was_measured_stands_for_what_was_guessed() -> None:
    guess = model_bytes(LLAMA_8B, GIB)
    light = model_bytes(LLAMA_8B, GIB, Taken(4_500_000_000))
    assert light == 4_500_000_000 + GIB + GIB // 10 + GIB // 4 < guess
    assert model_bytes(LLAMA_8B, GIB, Taken(4_500_000_000, peak_bytes=9 * GIB)) == 9 * GIB
    assert model_bytes(LLAMA_8B, GIB, Taken(4_500_000_000, peak_bytes=GIB)) == light


@pytest.mark.parametrize(
    ("memory_gib", "budget_gib"),
    [(8, 4), (16, 12), (23, 19), (24, 16), (36, 28), (63, 55), (64, 44), (128, 108), (512, 492), (4, 1), (2, 0.5)],
)
def test_default_budgets(memory_gib: int, budget_gib: float) -> None:
    assert default_budget(memory_gib * GIB) == budget_gib * GIB


def test_the_gpu_caps_the_budget() -> None:
    assert default_budget(16 * GIB, working_set_bytes=10 * GIB) == 10 * GIB
    assert default_budget(16 * GIB, working_set_bytes=14 * GIB) == 12 * GIB


@given(memory=st.integers(0, 2**41))
def test_a_budget_never_exceeds_the_machine(memory: int) -> None:
    assert 0 <= default_budget(memory) <= memory


@given(
    weights=st.integers(0, 2**40), more=st.integers(0, 2**40), cache=st.integers(0, 2**36), kept=st.integers(0, 2**36)
)
def test_heavier_models_and_larger_caches_need_more(weights: int, more: int, cache: int, kept: int) -> None:
    light, heavy = Shape(weight_bytes=weights), Shape(weight_bytes=weights + more)
    assert weights + cache < model_bytes(light, cache) <= model_bytes(heavy, cache + kept)


@given(
    tokens=st.integers(0, 2**18),
    more=st.integers(0, 2**18),
    window=st.integers(0, 2**14),
    row=st.integers(0, 2**14),
)
def test_longer_texts_need_more(tokens: int, more: int, window: int, row: int) -> None:
    shape = Shape(weight_bytes=0, kv_layers=1, kv_heads=1, head_dim=1, window=window, window_token_bytes=row)
    assert 0 <= kv_bytes(shape, tokens) <= kv_bytes(shape, tokens + more)
    assert kv_bytes(shape, tokens) <= tokens * kv_bytes(shape, 1) or window == 0


def test_load_time() -> None:
    assert load_s(3_000_000_000, 1.5e9, 4.0) == 6.0


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.0 MB"), (2**20, "1.0 MB"), (GIB // 2, "0.5 GB"), (int(5.25 * GIB), "5.2 GB")]
)
def test_bytes_for_people(size: int, text: str) -> None:
    assert gigabytes(size) == text
