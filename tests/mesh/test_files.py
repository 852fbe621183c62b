"""Atomic writes and moving aside, on a real disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from mesh.files import move_aside, read_or_set_aside, write_atomic


def test_a_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "term"
    write_atomic(target, "7")
    write_atomic(target, b"8", mode=0o640)
    assert target.read_text() == "8"
    assert target.stat().st_mode & 0o777 == 0o640
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "term"
    write_atomic(target, "7")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomic(target, "8")
    assert target.read_text() == "7"
    assert list(tmp_path.iterdir()) == [target]


def test_moving_aside_never_overwrites(tmp_path: Path) -> None:
    kept = []
    for text in ("one", "two", "three"):
        (tmp_path / "peers").write_text(text)
        kept.append(move_aside(tmp_path / "peers"))
    assert [path.read_text() for path in kept] == ["one", "two", "three"]


def test_a_damaged_file_is_set_aside_with_one_sentence(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "peers.json"
    assert read_or_set_aside(path, json.loads, said.append) is None
    assert said == []  # absent is not damaged
    path.write_text('{"a": 1}')
    assert read_or_set_aside(path, json.loads, said.append) == {"a": 1}
    path.write_text('{"a": ')
    assert read_or_set_aside(path, json.loads, said.append) is None
    assert len(said) == 1
    assert "peers.json" in said[0]
    assert not path.exists()


def test_a_file_that_nests_without_end_is_set_aside(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "peers.json"
    path.write_text('{"x": ' + "[" * 5000)
    assert read_or_set_aside(path, msgspec.json.Decoder(dict[str, int]).decode, said.append) is None
    assert len(said) == 1
    assert not path.exists()
