"""Small files of this node: replaced whole or not at all, and set aside when they hold something else.

They save work; nothing depends on them. So a disk that is full or cannot be read is no error here.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


def write_file(file: Path, data: bytes) -> bool:
    """Replaces `file`: a reader sees the old one or the new one. False when the disk does not take it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            Path(draft).replace(file)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError:
        return False
    return True


def read_file(file: Path, kind: type[T]) -> T | None:
    """What `file` holds, as `kind`; None when it is absent, unreadable or something else (then it is set aside)."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except OSError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        with suppress(OSError):
            file.replace(file.with_name(f"{file.name}.bad"))
        return None
