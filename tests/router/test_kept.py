"""What is kept of answers that flow, and what their chunks say when they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from node.continuation import Continuation
from router.kept import Keep, continuation
from router.seam import SeamError


def block(text: str = "", *, created: int = 7, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "c-1", "created": created, "choices": [choice], **more}).encode() + b"\n\n"


def test_it_gives_back_the_blocks_as_they_were() -> None:
    kept = Keep(1000, 1000).begin(lambda why: None)
    blocks = [block("a"), block("b\n\nc"), b'data: {"choices":[]}\n\n']
    for each in blocks:
        kept.add(each)
    assert kept.blocks() == blocks
    assert kept.size == sum(map(len, blocks))


def test_a_stream_beyond_its_bound_is_not_kept_any_more() -> None:
    keep, said = Keep(100, 1000), list[str]()
    kept = keep.begin(said.append)
    kept.add(b"x" * 100)
    assert said == []
    kept.add(b"x")
    assert said == [kept.why_not] == ["more than 100 bytes of it were sent"]
    kept.add(b"x" * 50)
    assert (kept.size, keep.held_bytes, len(said)) == (0, 0, 1)


def test_beyond_the_daemons_bound_the_oldest_streams_are_not_kept() -> None:
    keep, said = Keep(100, 250), list[str]()
    empty = keep.begin(lambda why: said.append("empty"))
    first = keep.begin(lambda why: said.append("first"))
    second = keep.begin(lambda why: said.append("second"))
    third = keep.begin(lambda why: said.append("third"))
    for kept in (third, second, first):
        kept.add(b"x" * 80)
    assert said == []
    third.add(b"x" * 20)
    assert said == ["first"]
    assert "younger streams" in first.why_not
    assert keep.held_bytes == 180
    for kept in (empty, first, second, third):
        kept.close()
        kept.close()
    assert (keep.held_bytes, said) == (0, ["first"])


def test_an_answer_that_begins_again_keeps_nothing_of_before() -> None:
    keep = Keep(100, 100)
    kept = keep.begin(lambda why: None)
    kept.add(b"x" * 60)
    kept.restart()
    kept.add(b"data: 1\n\n")
    assert kept.blocks() == [b"data: 1\n\n"]
    assert keep.held_bytes == 9


def test_chunks_that_carry_their_tokens_tell_how_to_go_on() -> None:
    blocks = [block("He", mesh_tokens=[1, 2]), block("", mesh_tokens=[]), block("llo", mesh_tokens=[3])]
    assert continuation(blocks) == Continuation(id="c-1", created=7, tokens=(1, 2, 3), blocks=3)


def test_a_chunk_without_text_may_lack_its_tokens() -> None:
    usage = b'data: {"id":"c-1","created":7,"choices":[],"usage":{"prompt_tokens":1}}\n\n'
    found = continuation([block(), block("He", mesh_tokens=[1]), usage])
    assert found == Continuation(id="c-1", created=7, tokens=(1,), blocks=3)


def test_chunks_without_tokens_cannot_be_gone_on_from() -> None:
    assert continuation([block("He"), block("llo")]) is None
    assert continuation([block("He", mesh_tokens=[1]), block("llo")]) is None
    assert continuation([block("He", mesh_tokens=["1"])]) is None
    assert continuation([block()]) is None
    assert continuation([]) is None


def test_what_is_no_chunk_is_said_so() -> None:
    for bad in (b"data: 1\n\n", b"data: {\n\n", b'data: {"choices":[1]}\n\n', b'data: {"choices":1}\n\n'):
        with pytest.raises(SeamError, match="not understood"):
            continuation([bad])
