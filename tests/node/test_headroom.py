"""Bytes of models and budgets, checked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.headroom import GIB, Shape, default_budget, gigabytes, kv_bytes_per_token, load_s, model_bytes

LLAMA_8B = Shape(weight_bytes=4_500_000_000, kv_layers=32, kv_heads=8, head_dim=128, context=131_072)


def test_a_known_model() -> None:
    assert kv_bytes_per_token(LLAMA_8B) == 131_072
    grows = 4_500_000_000 + 131_072 * 32_768
    assert model_bytes(LLAMA_8B, 32_768) == grows + grows // 10 + GIB // 2


def test_no_more_tokens_are_budgeted_than_the_context_holds() -> None:
    short = Shape(weight_bytes=0, kv_layers=1, kv_heads=1, head_dim=1, context=100)
    assert model_bytes(short, 32_768) == 400 + 40 + GIB // 2
    unknown = Shape(weight_bytes=0, kv_layers=1, kv_heads=1, head_dim=1)
    assert model_bytes(unknown, 1000) == 4000 + 400 + GIB // 2


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


@given(weights=st.integers(0, 2**40), more=st.integers(0, 2**40), tokens=st.integers(0, 2**20))
def test_heavier_models_need_more(weights: int, more: int, tokens: int) -> None:
    light = Shape(weight_bytes=weights, kv_layers=2, kv_heads=2, head_dim=2)
    heavy = Shape(weight_bytes=weights + more, kv_layers=2, kv_heads=2, head_dim=2)
    assert weights < model_bytes(light, tokens) <= model_bytes(heavy, tokens)


def test_load_time() -> None:
    assert load_s(3_000_000_000, 1.5e9, 4.0) == 6.0


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.0 MB"), (2**20, "1.0 MB"), (GIB // 2, "0.5 GB"), (int(5.25 * GIB), "5.2 GB")]
)
def test_bytes_for_people(size: int, text: str) -> None:
    assert gigabytes(size) == text
