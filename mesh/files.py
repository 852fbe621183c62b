"""Files that survive a power cut: written whole or not at all, and set aside rather than trusted when broken."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def write_atomic(path: Path, data: str | bytes, *, mode: int = 0o600) -> None:
    """Replaces `path` by `data`: a reader sees the old file or the new one, also after a power cut.

    Makes missing parent folders. Raises OSError (disk full, not permitted); then the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every file system lets a folder be synced; the rename itself has happened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def move_aside(path: Path) -> Path:
    """Renames a file that cannot be used, so that nothing is lost; returns its new path. Raises OSError."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    target = path.with_name(f"{path.name}.broken-{stamp}")
    count = 1
    while target.exists():
        count += 1
        target = path.with_name(f"{path.name}.broken-{stamp}-{count}")
    path.rename(target)
    return target


def read_or_set_aside(path: Path, decode: Callable[[bytes], T], tell: Callable[[str], None]) -> T | None:
    """What `decode` makes of the file; None when there is none or it cannot be read.

    A file that `decode` refuses (ValueError, msgspec's errors included, and
    RecursionError) is moved aside, and `tell` gets one sentence.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        tell(f"{path} cannot be read ({error.strerror}); going on without it")
        return None
    try:
        return decode(data)
    except (ValueError, RecursionError) as error:
        try:
            kept = move_aside(path)
        except OSError as why:
            tell(f"{path} is damaged ({error}) and cannot be moved aside ({why.strerror}); going on without it")
        else:
            tell(f"{path} is damaged ({error}); moved to {kept.name}, going on without it")
        return None
