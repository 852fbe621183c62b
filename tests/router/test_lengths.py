"""How long a prompt is believed to be, and what an answer teaches of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.lengths import Lengths
from router.prompt import Prompt
from router.settings import PromptSettings

SETTINGS = PromptSettings()


def sized(size: int) -> Prompt:
    return Prompt(size_bytes=size)


def test_before_anything_is_known() -> None:
    lengths = Lengths(SETTINGS)
    assert lengths.tokens("m", sized(4_000)) == 1_000
    assert lengths.block_tokens("m") == 64
    assert lengths.tokens("m", Prompt(tokens=7)) == 7


def test_each_model_has_its_own_ratio() -> None:
    lengths = Lengths(SETTINGS)
    for _ in range(20):
        lengths.learn("dense", sized(8_000), 4_000)
    assert 2.0 < lengths.bytes_per_token("dense") < 2.05
    assert lengths.bytes_per_token("other") == 4.0
    assert lengths.block_tokens("dense") in (126, 127, 128)


def test_what_teaches_nothing() -> None:
    lengths = Lengths(SETTINGS)
    lengths.learn("m", sized(10), 30)  # mostly what the template adds
    lengths.learn("m", sized(10_000), 0)  # the engine did not count
    lengths.learn("m", Prompt(size_bytes=10_000, guessed=True), 9_999)
    lengths.learn("m", Prompt(size_bytes=10_000, tokens=5), 9_999)
    assert lengths.bytes_per_token("m") == 4.0


def test_one_giant_prompt_does_not_decide_for_ever() -> None:
    lengths = Lengths(SETTINGS)
    lengths.learn("m", sized(2_000_000), 1_000_000)
    for _ in range(30):
        lengths.learn("m", sized(4_000), 1_000)
    assert abs(lengths.bytes_per_token("m") - 4.0) < 0.2


def test_it_forgets_the_model_not_heard_of_for_longest() -> None:
    lengths = Lengths(PromptSettings(models_limit=2))
    for name in ("a", "b", "a", "c"):
        lengths.learn(name, sized(8_000), 4_000)
    assert [lengths.bytes_per_token(name) < 4.0 for name in "abc"] == [True, False, True]


@given(samples=st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 10**8)), max_size=30))
def test_it_stays_within_its_bounds(samples: list[tuple[int, int]]) -> None:
    lengths = Lengths(SETTINGS)
    for size, tokens in samples:
        lengths.learn("m", sized(size), tokens)
        assert SETTINGS.ratio_least <= lengths.bytes_per_token("m") <= SETTINGS.ratio_most
        assert lengths.tokens("m", sized(size)) >= 0
        assert lengths.block_tokens("m") >= 1
