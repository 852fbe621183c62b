"""What a daemon writes, says of itself to the system, and leaves on the disk holds no prompt, no answer and no key.

Tests ask with these words, and every home of a test is looked through when its daemon ends (`check`).
"""

from __future__ import annotations

import re
import sqlite3
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil

MARK = "zq7marmalade"  # a word of prompts
KEY = "sk-zq7-not-to-be-written-anywhere"
# What tests ask, and what comes back: words that no program has a reason to write down by itself.
SECRETS = tuple(word.encode() for word in (
    MARK, KEY, "zq7-not-to-be", "What is the capital of", "Tell me something", "Tell me a story", "Once upon a time",
    "get_weather_of_a_town", "one two three",
))  # fmt: skip
# Keys of clients as `keys create` prints them, and private keys.
_FORMS = (re.compile(rb"sk-mesh-[0-9a-f]{24,}"), re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY"))
_OWN = {"config.yaml", "default.yaml", "key.pem"}  # written by a person, or the key itself
_PRIVATE = ("node/key.pem", "mesh/*.json", "daemon.sock", "routes.db*", "events.db*")


def found_in(data: bytes) -> list[str]:
    """Which secrets stand in it."""
    words = [word.decode() for word in SECRETS if word in data]
    return words + [f"a {form.pattern.decode()}" for form in _FORMS if form.search(data)]


def leaks(home: Path) -> list[str]:
    """A line for each secret in a file of `home`, weights left out."""
    return [f"{file}: {word}" for file, data in _contents(home) for word in found_in(data)]


def _contents(home: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(home.rglob("*")):
        name = str(file.relative_to(home))
        if file.name in _OWN or name.startswith("models") or not file.is_file():
            continue
        with suppress(FileNotFoundError):
            yield name, file.read_bytes()
            if file.suffix == ".db":
                yield from ((name, data) for data in _rows(file))


def _rows(file: Path) -> Iterator[bytes]:
    """Every value of every table, unpacked: what a file's bytes do not show."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in database.execute(f"SELECT * FROM {table}"):
                for value in row:
                    data = value.encode() if isinstance(value, str) else value
                    if isinstance(data, bytes):
                        yield data
                        with suppress(zlib.error):
                            yield zlib.decompress(data)


def exposed(home: Path) -> list[str]:
    """A line for each file with secrets, or about people, that other users of this machine could read."""
    found = []
    for pattern in _PRIVATE:
        for file in home.glob(pattern):
            with suppress(FileNotFoundError):
                mode = stat.S_IMODE(file.lstat().st_mode)
                above = [folder for folder in file.parents if folder.is_relative_to(home) and folder != home]
                if mode & 0o077 and all(folder.stat().st_mode & 0o077 for folder in above):
                    found.append(f"{file.relative_to(home)} has mode {mode:o}")
    folders = [home / name for name in ("logs", "node", "mesh") if (home / name).exists()]
    modes = {folder.name: stat.S_IMODE(folder.stat().st_mode) for folder in folders}
    return found + [f"{name}/ has mode {mode:o}" for name, mode in modes.items() if mode & 0o077]


def said_of(pids: Iterable[int]) -> list[str]:
    """A line for each secret in the command line or the environment of these processes and of those below them."""
    found = []
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    environment = [f"{name}={value}" for name, value in one.environ().items()]
                    data = "\0".join([*one.cmdline(), *environment]).encode(errors="replace")
                    found += [f"process {one.pid} ({one.name()}): {word}" for word in found_in(data)]
    return found


def check(home: Path, *pids: int) -> None:
    """Raises AssertionError with all that is wrong."""
    wrong = [*leaks(home), *exposed(home), *said_of(pids)]
    assert not wrong, f"secrets of {home.name}:\n" + "\n".join(wrong)
