"""A streamed answer put back together is the one a client that does not stream would have had."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import NodeError, NodeErrorCode
from node.types import Usage
from router.assemble import Assembler


def block(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def delta(delta: dict[str, Any], index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish, **more}
    return block({"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [choice]})


def assembled(*blocks: bytes) -> dict[str, Any]:
    assembler = Assembler(10_000)
    for each in blocks:
        assembler.feed(each)
    answer: dict[str, Any] = msgspec.json.decode(assembler.answer(Usage(prompt=3, cached=1, completion=2)))
    return answer


def test_a_chat_answer() -> None:
    answer = assembled(
        delta({"role": "assistant", "content": ""}),
        delta({"content": "Par"}),
        delta({"content": "is"}, finish="stop"),
    )
    assert answer == {
        "id": "c1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": "Paris"},
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }


def test_the_engines_own_usage_goes_before_the_nodes_count() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17}
    answer = assembled(delta({"content": "x"}), block({"id": "c1", "choices": [], "usage": usage}))
    assert answer["usage"] == usage


def test_tool_calls_in_pieces() -> None:
    answer = assembled(
        delta({"role": "assistant", "content": None}),
        delta({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]}),
        delta({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": '{"x"'}}]}),
        delta({"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "g"}}]}),
        delta({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}, finish="tool_calls"),
    )
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"id": "b", "type": "function", "function": {"name": "g"}},
        ],
    }
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


def test_whole_tool_calls_without_an_index_stay_apart() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = assembled(delta({"tool_calls": [call, call]}))
    assert answer["choices"][0]["message"]["tool_calls"] == [call, call]


def test_an_empty_list_of_tool_calls_is_none() -> None:
    answer = assembled(delta({"content": "hi", "tool_calls": []}))
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hi"}


def test_reasoning_and_unknown_fields_are_kept() -> None:
    answer = assembled(
        delta({"reasoning": "I th"}),
        delta({"reasoning": "ink", "refusal": None}),
        delta({"content": "so"}, finish="stop", stop_reason="eos"),
        block({"id": "c1", "choices": [], "timings": {"ms": 3}, "system_fingerprint": None}),
    )
    assert answer["choices"][0]["message"]["reasoning"] == "I think"
    assert answer["choices"][0]["stop_reason"] == "eos"
    assert answer["timings"] == {"ms": 3}


def test_text_completions_with_logprobs() -> None:
    def text(text: str, finish: str | None = None) -> bytes:
        logprobs = {"tokens": [text], "token_logprobs": [-0.5]}
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": logprobs}
        return block({"id": "t", "object": "text_completion", "choices": [choice]})

    answer = assembled(text("a"), text("b", "length"))
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "ab",
            "finish_reason": "length",
            "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-0.5, -0.5]},
        }
    ]


def test_several_choices_in_their_order() -> None:
    answer = assembled(delta({"content": "b"}, 1), delta({"content": "a"}, 0), delta({"content": "b"}, 1))
    assert [c["message"]["content"] for c in answer["choices"]] == ["a", "bb"]


@given(pieces=st.lists(st.text(max_size=20), min_size=1, max_size=20))
def test_no_character_is_lost_or_doubled(pieces: list[str]) -> None:
    answer = assembled(*(delta({"content": piece}) for piece in pieces))
    assert answer["choices"][0]["message"]["content"] == "".join(pieces)


@pytest.mark.parametrize(
    "bad",
    [
        b"data: {broken\n\n",
        b"data: []\n\n",
        b'data: {"choices":[7]}\n\n',
        b'data: {"error":{"message":"x"}}\n\n',
        b'data: {"x":' + b"[" * 5000 + b"\n\n",
        b'data: {"x":"\xff"}\n\n',
        b'data: {"choices":[{"index":"1"}]}\n\n',
    ],
)
def test_what_is_no_chunk_is_a_failure_of_the_node(bad: bytes) -> None:
    with pytest.raises(NodeError) as caught:
        Assembler(1000).feed(bad)
    assert caught.value.code is NodeErrorCode.MODEL_FAILED


@pytest.mark.parametrize(
    "part", [{"message": "x"}, {"delta": {"tool_calls": [{"function": 1}, 5]}}, {"delta": "x"}, {"logprobs": ["x"]}]
)
def test_chunks_of_strange_types_are_a_failure_of_the_node(part: dict[str, object]) -> None:
    with pytest.raises(NodeError) as caught:
        assembled(block({"choices": [part, part]}))
    assert caught.value.code is NodeErrorCode.MODEL_FAILED


def test_an_answer_without_a_choice_is_none() -> None:
    with pytest.raises(NodeError, match="without an answer"):
        Assembler(1000).answer(Usage())


def test_an_answer_has_a_limit() -> None:
    assembler = Assembler(300)
    assembler.feed(delta({"content": "x" * 50}))
    with pytest.raises(NodeError, match="larger than 300 bytes"):
        assembler.feed(delta({"content": "x" * 50}))
