"""A second run joins on to the first: what the client has is swallowed, the rest comes once, a lie is noticed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.kept import continuation
from router.seam import Seam, SeamError


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, run: int = 1, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish, **more}
    body = {"id": f"run-{run}", "created": run, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def said(text: str, finish: str | None = None, run: int = 1) -> bytes:
    return chunk({"content": text}, finish, run)


def usage(run: int) -> bytes:
    body = {"id": f"run-{run}", "created": run, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def rest(sent: list[bytes], second: list[bytes]) -> list[dict[str, Any]]:
    seam = Seam(sent)
    blocks = [new for block in second if (new := seam.feed(block)) is not None]
    seam.end()
    assert all(block.startswith(b"data: ") and block.endswith(b"\n\n") for block in blocks)
    return [json.loads(block[6:]) for block in blocks]


def deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def test_what_the_client_has_is_swallowed_and_a_block_across_the_cut_is_rewritten() -> None:
    role = {"role": "assistant", "content": ""}
    new = rest(
        [chunk(role), said("The capital"), said(" of Fr")],
        [chunk(role, run=2), said("The ", run=2), said("capital of France", run=2), said(" is Paris.", "stop", 2)],
    )
    assert deltas(new) == [{"content": "ance"}, {"content": " is Paris."}]
    assert {(c["id"], c["created"], c["model"]) for c in new} == {("run-1", 1, "m")}
    assert new[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_role_in_every_chunk_is_not_repeated_where_the_run_joins_on() -> None:
    def each(text: str) -> bytes:
        return chunk({"role": "assistant", "content": text})

    new = rest([each("a"), each("b")], [each("a"), each("b"), each("c"), each("d")])
    assert deltas(new) == [{"content": "c"}, {"role": "assistant", "content": "d"}]


def test_a_client_that_has_only_the_role_gets_all_the_text() -> None:
    role = chunk({"role": "assistant", "content": ""})
    assert deltas(rest([role], [role, said("Hi", "stop", 2)])) == [{"content": "Hi"}]
    assert deltas(rest([said("")], [chunk({"role": "assistant"}), said("Hi")])) == [
        {"role": "assistant"},
        {"content": "Hi"},
    ]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thinking_and_speaking_keep_their_order(field: str) -> None:
    sent = [chunk({field: "Let me "}), chunk({field: "think."}), said("So")]
    second = [chunk({field: "Let me think.", "content": "So, "}, run=2), said("yes", run=2)]
    assert deltas(rest(sent, second)) == [{"content": ", "}, {"content": "yes"}]
    with pytest.raises(SeamError, match="something else"):
        rest(sent, [chunk({field: "Let me think. More"}), said("So, yes")])


def test_a_second_run_that_says_something_else_is_named() -> None:
    seam = Seam([said("The capital")])
    assert seam.feed(said("The ", run=2)) is None
    with pytest.raises(SeamError, match="something else") as error:
        seam.feed(said("secret", run=2))
    assert "secret" not in str(error.value)


def test_a_second_run_that_ends_early_is_named() -> None:
    with pytest.raises(SeamError):
        rest([said("The capital")], [said("The", "stop")])
    with pytest.raises(SeamError, match="ended before"):
        rest([said("The capital")], [said("The"), usage(2)])
    with pytest.raises(SeamError, match="ended before"):
        rest([said("The capital")], [said("The")])


def test_an_end_that_was_sent_is_not_sent_again() -> None:
    sent = [said("Hi"), said("", "stop")]
    assert rest(sent, [said("Hi", "stop", 2)]) == []
    (last,) = rest(sent, [said("Hi", "stop", 2), usage(2)])
    assert (last["usage"]["completion_tokens"], last["id"]) == (9, "run-1")
    assert rest([*sent, usage(1)], [said("Hi", "stop", 2), usage(2)]) == []
    with pytest.raises(SeamError):
        rest(sent, [said("Hi", "length", 2)])


def test_tool_calls_join_on_by_index_whatever_their_ids() -> None:
    def call(index: int, arguments: str, name: str | None = None, id_: str | None = None) -> dict[str, Any]:
        function = {"arguments": arguments} | ({"name": name} if name else {})
        return {"index": index, "function": function} | ({"id": id_, "type": "function"} if id_ else {})

    sent = [
        chunk({"tool_calls": [call(0, "", "weather", "call-a")]}),
        chunk({"tool_calls": [call(0, '{"city": ')]}),
    ]
    second = [
        chunk({"tool_calls": [call(0, '{"city": "Paris"}', "weather", "call-x")]}, run=2),
        chunk({"tool_calls": [call(1, "{}", "time", "call-y")]}, run=2),
        chunk({}, "tool_calls", run=2),
    ]
    first, then, last = rest(sent, second)
    assert first["choices"][0]["delta"] == {"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]}
    assert then["choices"][0]["delta"] == {"tool_calls": [call(1, "{}", "time", "call-y")]}
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    both = chunk({"tool_calls": [call(0, '{"city": "Paris"}', "weather", "x"), call(1, "{}", "time", "y")]}, run=2)
    (joined,) = rest(sent, [both])
    assert joined["choices"][0]["delta"]["tool_calls"] == [
        {"index": 0, "function": {"arguments": '"Paris"}'}},
        call(1, "{}", "time", "y"),
    ]


def test_a_tool_that_is_named_with_every_piece_or_not_numbered_is_understood() -> None:
    def named(arguments: str) -> bytes:
        return chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": arguments}}]})

    assert deltas(rest([named("{"), named('"a"')], [named('{"a":'), named("1}")])) == [
        {"tool_calls": [{"index": 0, "function": {"arguments": ":"}}]},
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "1}"}}]},
    ]
    one = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    two = {"id": "2", "type": "function", "function": {"name": "g", "arguments": "[]"}}
    (new,) = deltas(
        rest([said("So:"), chunk({"tool_calls": [one]})], [chunk({"content": "So:", "tool_calls": [one, two]})])
    )
    assert new == {"tool_calls": [two]}


def test_completions_and_several_choices() -> None:
    def text(index: int, words: str, run: int = 1) -> bytes:
        choice = {"index": index, "text": words, "finish_reason": None}
        return b"data: " + json.dumps({"id": f"t-{run}", "choices": [choice]}).encode() + b"\n\n"

    sent = [text(0, "one "), text(1, "eins "), text(0, "two")]
    second = [text(1, "eins zwei", 2), text(0, "one", 2), text(2, "uno", 2), text(0, " two three", 2)]
    new = rest(sent, second)
    assert [(c["choices"][0]["index"], c["choices"][0]["text"]) for c in new] == [
        (1, "zwei"),
        (2, "uno"),
        (0, " three"),
    ]
    assert {c["id"] for c in new} == {"t-1"}


def test_logprobs_that_the_client_has_are_left_out() -> None:
    def with_logprobs(text: str, *tokens: str) -> bytes:
        return chunk({"content": text}, logprobs={"content": [{"token": t} for t in tokens]})

    sent = [with_logprobs("ab", "a", "b"), with_logprobs("c", "c")]
    (new,) = rest(sent, [with_logprobs("a", "a"), with_logprobs("bcd", "b", "c", "d")])
    assert new["choices"][0]["logprobs"] == {"content": [{"token": "d"}]}


def test_tokens_of_the_second_run_do_not_reach_the_client() -> None:
    body = json.loads(said("Hi there")[6:]) | {"mesh_tokens": [1, 2]}
    (new,) = rest([said("Hi")], [b"data: " + json.dumps(body).encode() + b"\n\n"])
    assert "mesh_tokens" not in new


def test_a_block_that_is_no_chunk_is_named() -> None:
    with pytest.raises(SeamError, match="not understood"):
        Seam([b"data: what\n\n"])
    with pytest.raises(SeamError, match="not understood"):
        Seam([said("Hi")]).feed(b'data: {"choices": [7]}\n\n')


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": "x"},
        {"delta": [1]},
        {"index": [1], "delta": {}},
        {"index": "0", "delta": {}},
        {"delta": {"tool_calls": 5}},
        {"delta": {"tool_calls": {"0": {}}}},
        {"delta": {"tool_calls": ["x"]}},
        {"delta": {"tool_calls": [{"index": 0, "function": "f"}]}},
    ],
)
def test_a_chunk_of_another_shape_is_named_wherever_it_comes(choice: dict[str, Any]) -> None:
    odd = b"data: " + json.dumps({"id": "c", "choices": [choice]}).encode() + b"\n\n"
    with pytest.raises(SeamError, match="not understood"):
        Seam([odd])
    with pytest.raises(SeamError, match="not understood"):
        Seam([said("Hi")]).feed(odd)
    with pytest.raises(SeamError, match="not understood"):
        continuation([odd])


@pytest.mark.parametrize("delta", [None, {}, {"tool_calls": None}, {"tool_calls": [{"index": None, "function": None}]}])
def test_what_is_left_out_of_a_chunk_may_be_null(delta: dict[str, Any] | None) -> None:
    block = b"data: " + json.dumps({"choices": [{"index": None, "delta": delta}]}).encode() + b"\n\n"
    assert deltas(rest([block, said("Hi")], [block, said("Hi"), said(" there")])) == [{"content": " there"}]
