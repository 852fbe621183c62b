"""mesh/late.py: files are written, in order, without the loop waiting."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from mesh import late
from mesh.late import LateWriter


async def test_the_newest_content_is_what_stays_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, written, really = threading.Event(), list[tuple[str, bytes]](), late.write_atomic

    def slow(path: Path, data: bytes) -> None:
        disk.wait(10)
        written.append((path.name, data))
        really(path, data)

    monkeypatch.setattr(late, "write_atomic", slow)
    writer = LateWriter(pytest.fail)
    for term in range(5):
        writer.write(tmp_path / "term", b"%d" % term)
    writer.write(tmp_path / "peers", b"p")
    await asyncio.sleep(0)  # a turn of the loop: had it written here, the file would be there
    assert not (tmp_path / "term").exists()
    disk.set()
    await writer.flush()
    assert written == [("term", b"0"), ("term", b"4"), ("peers", b"p")]
    assert (tmp_path / "term").read_bytes() == b"4"


async def test_what_cannot_be_written_is_said_and_survived(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    told: list[str] = []
    writer = LateWriter(told.append)
    writer.write(tmp_path / "file" / "term", b"1")
    await writer.flush()
    writer.write(tmp_path / "other", b"2")
    await writer.flush()
    assert len(told) == 1
    assert "cannot be written" in told[0]
    assert (tmp_path / "other").read_bytes() == b"2"
    await writer.flush()
