import json

import pytest

from node.errors import NodeError, NodeErrorCode
from node.openai import (
    Renamer,
    SseSplitter,
    bare,
    clean_request,
    data_of,
    error_of,
    error_text,
    is_comment,
    is_done,
    rename_request,
    runs_alone,
    usage_of,
)
from node.types import Usage


def cleaned(**fields: object) -> dict[str, object]:
    found: dict[str, object] = json.loads(clean_request(json.dumps(fields).encode(), model="default_model"))
    return found


def test_fields_that_would_change_the_weights_are_dropped() -> None:
    found = cleaned(model="x", adapters="a", draft_model="b", num_draft_tokens=3, keep_alive="5m", messages=[])
    assert found == {
        "model": "default_model",
        "messages": [],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_nulls_are_dropped_at_the_top_only() -> None:
    found = cleaned(model="x", stop=None, seed=None, messages=[{"role": "user", "content": None}], tools=[{"a": None}])
    assert "stop" not in found
    assert "seed" not in found
    assert found["messages"] == [{"role": "user", "content": None}]
    assert found["tools"] == [{"a": None}]


def test_the_answer_is_streamed_with_usage_whatever_the_client_said() -> None:
    found = cleaned(stream=False, stream_options={"include_usage": False, "x": 1})
    assert found["stream"] is True
    assert found["stream_options"] == {"include_usage": True}


def test_unknown_fields_and_number_spelling_stay() -> None:
    body = b'{"model":"m","top_p":1.0,"big":12345678901234567890,"x_new":{"deep":[1e3]}}'
    found = clean_request(body, model="default_model")
    assert b'"top_p":1.0' in found
    assert b'"big":12345678901234567890' in found
    assert b'"x_new":{"deep":[1e3]}' in found


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"text"',
        b'{"a":',
        b'{"a":NaN}',
        b'{"a":"\xff"}',
        b'{"stop":[1]}',
        b'{"stop":7}',
        b'{"stop":""}',
        b'{"stop":["a",""]}',
        b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_what_no_worker_could_read_is_refused(body: bytes) -> None:
    with pytest.raises(NodeError) as caught:
        clean_request(body, model="default_model")
    assert caught.value.code is NodeErrorCode.BAD_REQUEST


def test_stop_words_pass() -> None:
    assert cleaned(stop=["a", "b"])["stop"] == ["a", "b"]
    assert cleaned(stop="a")["stop"] == "a"


def test_other_endpoints_only_get_the_name() -> None:
    renamed = rename_request(b'{"model":"x","input":null,"keep_alive":0}', model="y")
    assert json.loads(renamed) == {"model": "y", "input": None}


def test_crlf_and_split_blocks() -> None:
    splitter = SseSplitter(1000)
    assert splitter.feed(b"data: a\r") == []
    assert splitter.feed(b"\n\r") == []
    assert splitter.feed(b"\ndata: b\r\n\r\n: c\n\nda") == [b"data: a\n\n", b"data: b\n\n", b": c\n\n"]
    assert splitter.feed(b"ta: d\n") == []
    assert splitter.feed(b"\n") == [b"data: d\n\n"]


def test_an_endless_block_is_a_failure() -> None:
    splitter = SseSplitter(10)
    with pytest.raises(NodeError) as caught:
        splitter.feed(b"data: 12345678901234")
    assert caught.value.code is NodeErrorCode.MODEL_FAILED


def test_kinds_of_blocks() -> None:
    assert is_comment(b": keepalive 1/2\n\n")
    assert not is_comment(b": hello\ndata: x\n\n")
    assert is_done(b"data: [DONE]\n\n")
    assert is_done(b"data:[DONE]\n\n")
    assert not is_done(b'data: {"content":"[DONE]"}\n\n')
    assert data_of(b"event: x\ndata: 1\ndata: 2\n\n") == b"1\n2"
    assert data_of(b": x\n\n") is None


def test_usage_is_found_alone_and_beside_the_last_choice() -> None:
    alone = usage_of(
        b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,'
        b'"prompt_tokens_details":{"cached_tokens":3}}}\n\n'
    )
    assert alone is not None
    assert (alone.usage, alone.alone) == (Usage(prompt=5, cached=3, completion=7), True)
    beside = usage_of(b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":5,"completion_tokens":7}}\n\n')
    assert beside is not None
    assert (beside.usage, beside.alone) == (Usage(prompt=5, completion=7), False)


@pytest.mark.parametrize(
    "block",
    [
        b'data: {"choices":[{"delta":{"content":"hi"}}],"usage":null}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\"usage\\": 3"}}]}\n\n',
        b': "usage"\n\n',
        b'data: {"usage": 3}\n\n',
        b'data: {"usage"\n\n',
    ],
)
def test_what_is_no_usage(block: bytes) -> None:
    assert usage_of(block) is None


def test_errors_in_every_shape() -> None:
    assert error_text(b'{"error": "bad"}') == "bad"
    assert error_text(b'{"error": {"message": "bad", "code": 3}}') == "bad"
    assert error_text(b'{"detail": "bad"}') == "bad"
    assert error_text(b"<html>") == "<html>"
    assert error_text(b"") == "no explanation"
    assert error_of(b'data: {"error": {"message": "lost"}}\n\n') == "lost"
    assert error_of(b"event: error\ndata: gone\n\n") == "gone"
    assert error_of(b'data: {"choices":[{"delta":{"content":"\\"error\\""}}]}\n\n') is None


@pytest.mark.parametrize("junk", [b'"\xff"', b"[" * 5000])
def test_what_a_server_garbles_is_passed_on_as_it_is(junk: bytes) -> None:
    block = b'data: {"usage":' + junk + b',"error":' + junk + b',"model":"m"}\n\n'
    assert usage_of(block) is None
    assert error_of(block) is None
    assert error_of(b"event: error\n" + block) is not None
    assert error_text(junk)
    renamed = Renamer("ours")(block)
    assert renamed in (block, block.replace(b'"m"', b'"ours"'))


def test_chunks_are_renamed_and_nothing_else_changes() -> None:
    block = b'data: {"id":"1","model":"/path/x","choices":[{"delta":{"content":"a  b"}}]}\n\n'
    rename = Renamer("mine")
    for _ in range(2):
        assert rename(block) == block.replace(b"/path/x", b"mine")
    spaced = block.replace(b":", b": ")
    assert rename(spaced) == spaced.replace(b"/path/x", b"mine")
    for other in (b": x\n\n", b"data: [DONE]\n\n", b'data: {"x":{"model":"y"}}\n\n', b'data: {"model":\n\n'):
        assert rename(other) == other


def test_a_text_that_looks_like_a_model_is_no_model() -> None:
    rename = Renamer("mine")
    said = json.dumps({"model": "theirs", "choices": [{"delta": {"content": 'say "model": "theirs"'}}]})
    for _ in range(2):
        block = b"data: " + said.encode() + b"\n\n"
        assert json.loads(rename(block)[6:]) == {**json.loads(said), "model": "mine"}
    nested = b'data: {"model":"theirs","x":{"model":"theirs"}}\n\n'
    assert json.loads(rename(nested)[6:]) == {"model": "mine", "x": {"model": "theirs"}}


def test_a_chunk_that_has_the_right_name_already_is_not_touched() -> None:
    rename, block = Renamer("mine"), b'data: {"model":  "mine", "n": 1}\n\n'
    assert json.loads(rename(block)[6:]) == {"model": "mine", "n": 1}
    block = b'data: {"model": "mine", "n": 1}\n\n'
    assert rename(block) == rename(block) == block


def test_usage_that_is_null_is_no_usage() -> None:
    assert usage_of(b'data: {"choices":[],"usage": null}\n\n') is None
    assert usage_of(b'data: {"choices":[],"usage":null}\n\n') is None
    found = usage_of(b'data: {"x":{"usage":null},"usage":{"prompt_tokens":3}}\n\n')
    assert found is not None
    assert found.usage.prompt == 3


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (b"data: {}\n\n", b"data: {}\n\n"),
        (b"data: {}\nid: 7\n\n", b"data: {}\nid: 7\n\n"),
        (b": note\n\n", b": note\n\n"),
        (b'event: message\nid: 7\ndata: {"a":1}\n\n', b'data: {"a":1}\n\n'),
        (b": note\ndata: {}\n\n", b"data: {}\n\n"),
        (b"id: 7\ndata: {\ndata: }\n\n", b"data: { }\n\n"),
        (b"event: ping\n\n", None),
        (b"retry: 5\n\n", None),
    ],
)
def test_only_data_and_comments_are_passed_on(block: bytes, said: bytes | None) -> None:
    assert bare(block) == said


@pytest.mark.parametrize(
    ("body", "alone"),
    [
        (b'{"prompt": "a", "seed": 0}', True),
        (b'{"prompt": "a", "seed": null}', False),
        (b'{"prompt": "a \\"seed\\": 1"}', False),
        (b'{"messages": [{"role": "user", "content": "x", "seed": 1}]}', False),
        (b'{"seed": ', False),
        (b"{}", False),
    ],
)
def test_seeded_requests_run_alone(body: bytes, alone: bool) -> None:
    assert runs_alone(body) is alone
