"""Inputs that are worth keeping, in tests/fuzz/corpus: a text file per target, a line per input, so that a diff says
what was added. `# ` begins a comment: of an input that once failed, how."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "fuzz" / "corpus"


def kept(name: str, folder: Path = FOLDER) -> list[bytes]:
    """The inputs of target `name`; none when there is no file."""
    file = folder / f"{name}.txt"
    if not file.exists():
        return []
    lines = file.read_text(encoding="ascii").splitlines()
    return [line_bytes(line) for line in lines if line and not line.startswith("# ")]


def add(name: str, inputs: Iterable[bytes], why: str, folder: Path = FOLDER) -> int:
    """Appends those that are new, under a comment; how many."""
    there = set(kept(name, folder))
    new = sorted({data for data in inputs if data not in there}, key=lambda data: (len(data), data))
    if new:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.txt").open("a", encoding="ascii") as file:
            file.write("".join([f"# {why}\n", *(f"{bytes_line(data)}\n" for data in new)]))
    return len(new)


def bytes_line(data: bytes) -> str:
    r"""As Python writes it: \xff, \n, nothing that ends a line. A `#` at the start is escaped."""
    text = repr(data + b'"')[2:-2]  # with a double quote in it, repr takes single quotes around
    return f"\\x23{text[1:]}" if text.startswith("#") else text


def line_bytes(line: str) -> bytes:
    found = ast.literal_eval(f"b'{line}'")
    assert isinstance(found, bytes)
    return found
