"""How deep a JSON text nests, told from its brackets: as a reader would find it."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.nesting import Nesting, deeper_than

values = st.recursive(
    st.none() | st.integers() | st.text(alphabet='ab"\\[]{}\n/é', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='a"\\[{', max_size=3), inner, max_size=4)
    ),
    max_leaves=30,
)


def depth(value: Any) -> int:
    if isinstance(value, list | dict):
        inside = value if isinstance(value, list) else value.values()
        return 1 + max((depth(one) for one in inside), default=0)
    return 0


@given(values, st.integers(0, 6), st.booleans())
def test_it_is_as_deep_as_a_reader_finds_it(value: Any, limit: int, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert deeper_than(text, limit) is (depth(value) > limit)


@given(values, st.lists(st.integers(0, 200), max_size=5), st.booleans())
def test_however_it_is_cut(value: Any, cuts: list[int], ascii_only: bool) -> None:
    text, nesting = json.dumps(value, ensure_ascii=ascii_only).encode(), Nesting()
    for begin, end in pairwise([0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]):
        nesting.feed(text[begin:end])
    assert nesting.deepest == depth(value)


@given(st.binary(max_size=60) | st.text(alphabet='[]{}"\\a', max_size=60).map(str.encode), st.integers(0, 6))
def test_any_bytes_are_told_something(body: bytes, limit: int) -> None:
    assert deeper_than(body, limit) in (True, False)


@pytest.mark.parametrize("limit", [1, 100])
def test_just_at_the_limit_and_one_beyond(limit: int) -> None:
    for opens, closes in ((b"[", b"]"), (b'{"a":', b"}")):
        assert not deeper_than(opens * limit + b"1" + closes * limit, limit)
        assert deeper_than(opens * (limit + 1) + b"1" + closes * (limit + 1), limit)
        assert deeper_than(opens * (limit + 1), limit), "what never ends, too"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 2**18,
        b"[]" * 2**17,
        b'{"a":' * 2**16,
        b'"' * 2**18 + b"[" * 200,
        b"\\" * 2**18 + b"[" * 200,
        b'"\\"' * 2**17 + b"[" * 200,
        (b"[" * 99 + b"]" * 99) * 1300,
        b'{"messages":[' + b'{"role":"user","content":"what is [this] {here}?"},' * 5000 + b"{}]}",
    ],
    ids=["opens", "pairs", "objects", "quotes", "backslashes", "escapes", "combs", "messages"],
)
def test_no_slice_takes_long(body: bytes) -> None:
    began = time.process_time()
    Nesting().feed(body)
    assert time.process_time() - began < 0.2, "256 KiB in some ms, on a slow machine too"
