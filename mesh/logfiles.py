"""The files below logs/: which there are, their last lines, following them, and rotation.

Rotation copies and truncates in place: a worker keeps writing to the file it was started with.
"""

from __future__ import annotations

import gzip
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

POLL_S = 0.5
BLOCK_BYTES = 64 << 10


class LogFile(Struct, frozen=True, kw_only=True):
    """One log. `changed_at` seconds since the epoch; `archives` oldest first."""

    name: str
    path: Path
    size_bytes: int
    changed_at: float
    archives: tuple[Path, ...] = ()


def find(folder: Path) -> list[LogFile]:
    """The logs in `folder`, by name."""
    result = []
    for path in sorted(folder.glob("*.log")):
        try:
            facts = path.stat()
        except FileNotFoundError:
            continue  # rotated or removed while we looked
        archives = tuple(sorted(_archives(path), key=_number, reverse=True))
        result.append(
            LogFile(name=path.stem, path=path, size_bytes=facts.st_size, changed_at=facts.st_mtime, archives=archives)
        )
    return result


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines. Reads from the end: a log may be large."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        data = b""
        while position > 0 and data.count(b"\n") <= lines:
            step = min(BLOCK_BYTES, position)
            position -= step
            file.seek(position)
            data = file.read(step) + data
    return data.decode(errors="replace").splitlines()[-lines:] if lines > 0 else []


def whole(log: LogFile) -> Iterator[str]:
    """Every line that is kept, archives first."""
    for archive in log.archives:
        with gzip.open(archive, "rt", encoding="utf-8", errors="replace") as packed:
            yield from (line.rstrip("\n") for line in packed)
    with log.path.open(encoding="utf-8", errors="replace") as plain:
        yield from (line.rstrip("\n") for line in plain)


def follow(path: Path, *, poll_s: float = POLL_S) -> Iterator[str]:
    """Lines as they are added, for ever. Begins again at the start when the file was truncated or replaced."""
    position = path.stat().st_size
    inode, rest = path.stat().st_ino, b""
    while True:
        try:
            facts = path.stat()
        except FileNotFoundError:
            time.sleep(poll_s)
            continue
        if facts.st_size < position or facts.st_ino != inode:
            position, inode, rest = 0, facts.st_ino, b""
        if facts.st_size > position:
            with path.open("rb") as file:
                file.seek(position)
                data = file.read(BLOCK_BYTES)
            position += len(data)
            *full, rest = (rest + data).split(b"\n")
            yield from (line.decode(errors="replace") for line in full)
        else:
            time.sleep(poll_s)


def rotate(path: Path, *, keep: int) -> bool:
    """Packs what the log holds into `.1.gz`, older ones move up, at most `keep` stay; the file itself is emptied.
    False when there was nothing to do. Raises OSError."""
    if path.stat().st_size == 0:
        return False
    packing = path.with_name(path.name + ".packing")
    with path.open("rb") as source, gzip.open(packing, "wb", compresslevel=6) as packed:
        shutil.copyfileobj(source, packed, BLOCK_BYTES)
        copied = source.tell()
    for archive in sorted(_archives(path), key=_number, reverse=True):
        number = _number(archive)
        if number >= keep:
            archive.unlink(missing_ok=True)
        else:
            archive.rename(path.with_name(f"{path.name}.{number + 1}.gz"))
    packing.rename(path.with_name(f"{path.name}.1.gz"))
    with path.open("rb+") as file:  # what came while we packed is kept, what comes between these two lines is lost
        file.seek(copied)
        late = file.read()
        file.seek(0)
        file.write(late)
        file.truncate()
    return True


def rotate_all(folder: Path, *, max_bytes: int, keep: int) -> Sequence[str]:
    """Rotates each log of at least `max_bytes`; returns their names. One that cannot be is left for the next time."""
    done = []
    for log in find(folder):
        try:
            if log.size_bytes >= max_bytes and rotate(log.path, keep=keep):
                done.append(log.name)
        except OSError:
            continue
    return done


def _archives(path: Path) -> list[Path]:
    return [p for p in path.parent.glob(f"{path.name}.*.gz") if p.name[len(path.name) + 1 : -3].isdigit()]


def _number(archive: Path) -> int:
    return int(archive.name.rsplit(".", 2)[1])
