"""Flags of ours, changed by the user's."""

from __future__ import annotations

import pytest

from node.io.flags import merged, number_of, value_of

OURS = {"--model": "m", "--port": 1, "--slots": 4}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ((), "--model m --port 1 --slots 4"),
        (("--slots", "2"), "--model m --port 1 --slots 2"),
        (("--slots=2",), "--model m --port 1 --slots=2"),
        (("--trust", "--slots", "2"), "--model m --port 1 --trust --slots 2"),
        (("--port", "9", "--trust"), "--model m --port 1 --slots 4 --trust"),
        (("--model=x", "--trust"), "--model m --port 1 --slots 4 --trust"),
        (("--port",), "--model m --port 1 --slots 4"),
        (("-v", "--bias", "-1"), "--model m --port 1 --slots 4 -v --bias -1"),
    ],
)
def test_each_flag_stands_once(extra: tuple[str, ...], words: str) -> None:
    assert merged(OURS, extra, fixed=("--model", "--port")) == words.split()


def test_the_last_value_counts() -> None:
    assert value_of(("--a", "1", "--a=2"), "--a") == "2"
    assert value_of(("--ab", "1"), "--a") is None
    assert value_of(("--a",), "--a") is None
    assert number_of(("--a", "12"), "--a") == 12
    assert number_of(("--a", "many"), "--a") is None
