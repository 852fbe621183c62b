"""Blocks of prompts: what goes on keeps them, what differs shares only what it has in common."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from router.asked import CHAT, COMPLETIONS, read
from router.prompt import Prompt, chain
from router.settings import PromptSettings

JSON = "application/json"
BOUNDS = PromptSettings()
SMALL = PromptSettings(block_bytes=8, blocks_limit=64)
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Blocks in common from the start."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
parts = texts.map(lambda t: {"type": "text", "text": t}) | st.integers(0, 99).map(
    lambda n: {"type": "image_url", "image_url": {"url": f"data:{n}"}}
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts | st.lists(parts, max_size=3)},
    optional={"name": texts, "tool_calls": st.just([{"id": "1", "function": {"name": "look", "arguments": "{}"}}])},
)
talks = st.lists(messages, min_size=1, max_size=6)


def prompt(messages: list[Any], bounds: PromptSettings = SMALL, **more: Any) -> Prompt:
    return read(CHAT, msgspec.json.encode({"model": "m", "messages": messages, **more}), JSON, bounds).prompt


@given(talk=talks, more=talks)
def test_a_talk_that_goes_on_keeps_every_block(talk: list[Any], more: list[Any]) -> None:
    before, after = prompt(talk), prompt([*talk, *more])
    assert after.blocks[: len(before.blocks)] == before.blocks
    assert after.size_bytes >= before.size_bytes
    answered = prompt([*talk, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}])
    assert answered.follows == before.whole


@given(talk=talks)
def test_other_tools_make_all_blocks_other_blocks(talk: list[Any]) -> None:
    plain, with_tools = prompt(talk), prompt(talk, tools=[TOOL])
    other = prompt(talk, tools=[{**TOOL, "type": "other"}])
    assert not set(plain.blocks) & set(with_tools.blocks)
    assert with_tools.blocks[:1] != other.blocks[:1] or shared(with_tools.blocks, other.blocks) < len(other.blocks)
    assert plain == prompt(talk, tools=None)


@given(start=texts, one=texts, other=texts)
def test_two_that_share_a_start_share_its_blocks_only(start: str, one: str, other: str) -> None:
    a, b = (chain((start + rest).encode(), 8) for rest in (one, other))
    left, right = (start + one).encode(), (start + other).encode()
    same = next((n for n, (x, y) in enumerate(zip(left, right, strict=False)) if x != y), min(len(left), len(right)))
    assert shared(a, b) == same // 8
    assert not set(a[same // 8 :]) & set(b[same // 8 :])


@given(talk=talks)
def test_what_the_model_does_not_see_changes_nothing(talk: list[Any]) -> None:
    seen = prompt(talk)
    assert prompt([{**m, "id": "x", "tool_call_id": "y"} for m in talk]) == seen
    spaced = msgspec.json.format(msgspec.json.encode({"messages": talk, "model": "m"}), indent=3)
    assert seen.guessed or read(CHAT, spaced, JSON, SMALL).prompt == seen
    as_parts = [
        {**m, "content": [{"type": "text", "text": m["content"], "cache_control": {"type": "ephemeral"}}]}
        if isinstance(m["content"], str)
        else m
        for m in talk
    ]
    assert prompt(as_parts) == seen


@given(talk=talks)
def test_it_is_bounded_and_whole_numbers_of_64_bits(talk: list[Any]) -> None:
    found = prompt(talk)
    assert len(found.blocks) == min(found.size_bytes // 8, SMALL.blocks_limit)
    assert all(0 <= block < 2**64 for block in found.blocks)


@given(text=texts)
def test_a_role_is_more_than_its_text(text: str) -> None:
    user, tool = (prompt([{"role": role, "content": text}]) for role in ("user", "tool"))
    assert not set(user.blocks) & set(tool.blocks)
    assert user.whole != tool.whole


@given(calls=st.recursive(st.none() | st.integers() | texts, lambda v: st.lists(v) | st.dictionaries(texts, v)))
def test_tool_calls_of_any_shape_are_the_engines_business(calls: object) -> None:
    assert prompt([{"role": "assistant", "content": None, "tool_calls": calls, "name": calls}]).size_bytes >= 16


def test_two_agents_that_share_a_system_prompt() -> None:
    system = {"role": "system", "content": "You help. " * 100}
    one, other = (prompt([system, {"role": "user", "content": f"Task {n} " * 80}], BOUNDS) for n in (1, 2))
    assert shared(one.blocks, other.blocks) == (16 + 1000 + 16) // 256
    assert one.whole != other.whole


def test_images_count_as_one_each_and_are_told_apart() -> None:
    def seen(*urls: str) -> Prompt:
        return prompt(
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": u}} for u in urls]}], BOUNDS
        )

    big = "x" * 200_000
    assert seen(big).size_bytes == 16 + BOUNDS.media_bytes
    assert seen(big).guessed
    assert seen(big, big).size_bytes == 16 + 2 * BOUNDS.media_bytes
    assert seen(big + "1").blocks[-1] != seen(big + "12").blocks[-1]


def test_prompts_without_roles() -> None:
    def of(prompt: object) -> Prompt:
        return read(COMPLETIONS, msgspec.json.encode({"model": "m", "prompt": prompt}), JSON, SMALL).prompt

    assert of("x" * 20).size_bytes == 20
    assert len(of("x" * 20).blocks) == 2
    assert of([1, 2, 3]) == Prompt(tokens=3)
    assert of([[1], [2, 3]]) == Prompt(tokens=3)
    assert of(["ä", "b"]) == Prompt(size_bytes=3)


@given(data=st.binary(max_size=700), width=st.sampled_from([1, 8, 13]))
def test_what_is_remembered_of_a_prompt_is_what_would_be_worked_out(data: bytes, width: int) -> None:
    wanted, before = [], b""
    for at in range(0, len(data) - width + 1, width):
        before = hashlib.blake2b(before + data[at : at + width], digest_size=8).digest()
        wanted.append(int.from_bytes(before))
    assert chain(data, width) == tuple(wanted)
    assert chain(data, width) == tuple(wanted)


def test_a_turn_names_the_one_before_also_past_what_is_hashed() -> None:
    most = SMALL.block_bytes * SMALL.blocks_limit
    asked = [{"role": "user", "content": "x" * (most + 5)}]
    more = [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "why?"}]
    assert prompt([*asked, *more]).follows == prompt(asked).whole
    assert prompt([{"role": "user", "content": "x" * (most + 6)}]).whole != prompt(asked).whole
