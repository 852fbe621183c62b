"""The node's id: made once, kept, and never the reason for a crash."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from node.errors import NodeError
from node.io.identity import new_id, node_id


def test_made_once_and_kept(tmp_path: Path) -> None:
    notes: list[str] = []
    made = node_id(tmp_path, notes.append)
    assert re.fullmatch(r"[0-9a-f]{16}", made)
    assert node_id(tmp_path, notes.append) == made
    assert notes == []
    assert [f.name for f in (tmp_path / "node").iterdir()] == ["id"]
    assert node_id(tmp_path / "other", notes.append) != made


@pytest.mark.parametrize(
    "content", [b"", b"0123456789abcde", b"0123456789ABCDEF", b"\xff" * 16, b"x" * 10**6, b"0" * 17]
)
def test_a_foreign_file_is_moved_aside_with_a_message(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "node" / "id"
    file.parent.mkdir()
    file.write_bytes(content)
    notes: list[str] = []
    made = node_id(tmp_path, notes.append)
    assert len(notes) == 1
    assert "id.bad-1" in notes[0]
    assert (tmp_path / "node" / "id.bad-1").read_bytes() == content
    assert node_id(tmp_path, notes.append) == made


def test_every_foreign_file_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "node" / "id"
    file.parent.mkdir()
    for content in ("first", "second"):
        file.write_text(content)
        node_id(tmp_path, lambda _: None)
    assert (tmp_path / "node" / "id.bad-1").read_text() == "first"
    assert (tmp_path / "node" / "id.bad-2").read_text() == "second"


def test_a_folder_in_its_place_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "node" / "id").mkdir(parents=True)
    notes: list[str] = []
    assert len(node_id(tmp_path, notes.append)) == 16
    assert len(notes) == 1


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("a file where the folder should be")
    with pytest.raises(NodeError, match=re.escape(str(tmp_path))):
        node_id(tmp_path, lambda _: None)


def test_a_new_id_replaces_the_one_that_another_machine_has_too(tmp_path: Path) -> None:
    before = node_id(tmp_path, pytest.fail)
    after = new_id(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{16}", after)
    assert after != before
    assert node_id(tmp_path, pytest.fail) == after
    assert [f.name for f in (tmp_path / "node").iterdir()] == ["id"]
    (tmp_path / "other").write_text("a file where the folder should be")
    with pytest.raises(NodeError, match="other"):
        new_id(tmp_path / "other")
