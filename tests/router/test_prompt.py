"""What a prompt looks like from outside: its length, its starts, what it goes on from."""

from __future__ import annotations

import msgspec

from router.prompt import Message, Prompt, chain, of_chat, of_form, of_several, of_text
from router.settings import PromptSettings

BOUNDS = PromptSettings()


def test_a_prompt_is_its_length_and_hashes() -> None:
    found = of_chat((msgspec.Raw(b"null"), msgspec.Raw()), [Message("user", "hä?")], BOUNDS)
    assert (found.size_bytes, found.blocks, found.guessed) == (16 + 4, (), False)
    assert (found.whole != 0, found.follows) == (True, 0)


def test_a_turn_names_the_one_before() -> None:
    talk = [Message("system", "x"), Message("user", "hi")]
    before = of_chat((), talk, BOUNDS)
    after = of_chat((), [*talk, Message("assistant", "hello"), Message("user", "so?")], BOUNDS)
    assert after.follows == before.whole != after.whole


def test_calls_count_with_their_arguments() -> None:
    calls = msgspec.Raw(b'[{"id": "a", "function": {"name": "look", "arguments": "{}"}}]')
    odd = msgspec.Raw(b'[{"what": 1}]')
    assert of_chat((), [Message("assistant", None, tool_calls=calls)], BOUNDS).size_bytes == 16 + 16 + 6
    assert of_chat((), [Message("assistant", None, tool_calls=odd)], BOUNDS).size_bytes == 16 + 13


def test_text_that_is_no_text_counts_as_something_else() -> None:
    """The serving node refuses it; until then it is placed like any other."""
    part = {"type": msgspec.Raw(b'"text"'), "text": msgspec.Raw(b'"\xff"')}
    assert of_chat((), [Message("user", [part])], BOUNDS).size_bytes >= BOUNDS.media_bytes
    assert of_chat((), [Message("user", "x", tool_calls=msgspec.Raw(b'["\xff"]'))], BOUNDS).size_bytes > 0


def test_text_tokens_and_forms() -> None:
    assert of_text("x" * 256, BOUNDS).blocks == chain(b"x" * 256, 256)
    assert of_text("x", BOUNDS).size_bytes == 1
    assert of_several([1, 2]) == Prompt(tokens=2)
    assert of_form(BOUNDS) == Prompt(size_bytes=BOUNDS.media_bytes, guessed=True)


def test_only_the_beginning_of_a_very_long_prompt_is_hashed() -> None:
    found = of_text("x" * 10_000_000, BOUNDS)
    assert (found.size_bytes, len(found.blocks)) == (10_000_000, BOUNDS.blocks_limit)
