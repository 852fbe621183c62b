"""This node's id: random, made once per home, kept in `node/id`."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from node.errors import NodeError, NodeErrorCode
from node.types import NodeId

_ID = re.compile(r"[0-9a-f]{16}")


def node_id(home: Path, note: Callable[[str], None]) -> NodeId:
    """Reads `home`/node/id, or makes it. A file that holds no id is moved aside and `note` gets a sentence about it.

    Raises NodeError(INTERNAL) when the folder cannot be read or written.
    """
    file = home / "node" / "id"
    try:
        known = _read(file)
        if known is not None:
            return known
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            aside = _aside(file)
            file.rename(aside)
            note(f"{file} held no node id; moved to {aside.name}, this node gets a new id")
        return _make(file)
    except OSError as error:
        raise NodeError(NodeErrorCode.INTERNAL, f"cannot keep this node's id in {file}: {error.strerror}") from error


def new_id(home: Path) -> NodeId:
    """Replaces the id in `home`/node/id by a new one: another machine has it too. Raises NodeError(INTERNAL)."""
    file = home / "node" / "id"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return _make(file)
    except OSError as error:
        raise NodeError(NodeErrorCode.INTERNAL, f"cannot keep this node's id in {file}: {error.strerror}") from error


def _read(file: Path) -> NodeId | None:
    """The id in `file`; None when there is no file, or something else in it."""
    try:
        with file.open("rb") as data:
            text = data.read(64).decode("ascii", "replace").strip()
    except (FileNotFoundError, IsADirectoryError):
        return None
    return NodeId(text) if _ID.fullmatch(text) else None


def _aside(file: Path) -> Path:
    """A free name beside `file`."""
    return next(p for n in range(1, 10_000) if not (p := file.with_name(f"{file.name}.bad-{n}")).exists())


def _make(file: Path) -> NodeId:
    """Writes a new id so that a power cut leaves the whole file or none."""
    made = NodeId(secrets.token_hex(8))
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with draft.open("w", encoding="ascii") as data:
        data.write(made + "\n")
        data.flush()
        os.fsync(data.fileno())
    draft.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return made
