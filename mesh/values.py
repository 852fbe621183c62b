"""How people write values in config.yaml, stack files and the environment: sizes, durations, yes and no, lists.

Each reader takes what YAML or a command line gave and returns the typed value, or raises ValueError with the text that
completes the sentence "... must be".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIB = 1 << 30  # memory is sold and shown in these, under the name GB
_SIZE_UNITS = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": GIB, "tb": 1 << 40}
_TIME_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_AMOUNT = re.compile(r"\s*([+-]?\d+(?:\.\d+)?)\s*([a-z]*)\s*\Z", re.IGNORECASE)
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def text(value: object) -> str:
    """A string. Numbers are taken as written: a mesh may be called 7."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("text")
    return str(value).strip()


def name(value: object) -> str:
    """A name people and URLs can carry: 1 to 63 characters, no spaces at the ends, no control characters or slash."""
    result = text(value)
    if not 1 <= len(result) <= 63 or "/" in result or not result.isprintable():
        raise ValueError("a name of 1 to 63 characters without '/'")
    return result


def printable(text: str, keep: str = "") -> str:
    """What may stand on a terminal: names, reasons and errors come from other machines, and a control character among
    them could begin a line of its own, or tell the terminal what to do. `keep`: control characters that are ours."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c in keep else "?" for c in text)


def boolean(value: object) -> bool:
    """True or false, as YAML has it or as people write it."""
    if isinstance(value, bool):
        return value
    written = str(value).strip().lower()
    if isinstance(value, str | int) and written in _YES + _NO:
        return written in _YES
    raise ValueError("true or false (also yes/no, on/off, 1/0)")


def whole(low: int, high: int | None = None) -> Callable[[object], int]:
    """Reader of a whole number from `low` to `high`."""
    wanted = f"a whole number from {low} to {high}" if high is not None else f"a whole number, {low} or more"

    def read(value: object) -> int:
        try:
            number = int(value, 10) if isinstance(value, str) else value
        except ValueError:
            number = None
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(wanted)
        if number < low or (high is not None and number > high):
            raise ValueError(wanted)
        return number

    return read


def size(value: object) -> int:
    """Bytes: a whole number of them, or "24 GB" (2^30 bytes each, as memory is sold), also KB, MB, TB."""
    wanted = 'bytes, or a size with its unit like "24 GB"'
    match = None if isinstance(value, bool) else _AMOUNT.match(str(value).lower().replace("ib", "b"))
    if match is None or match[2] not in _SIZE_UNITS:
        raise ValueError(wanted)
    result = round(float(match[1]) * _SIZE_UNITS[match[2]])
    if result < 1 << 20:
        raise ValueError(f'{wanted} (this would be {result} bytes: write "{match[1]} GB" if you mean that)')
    return result


def seconds(low: float | None = 0.0) -> Callable[[object], float]:
    """Reader of a duration in seconds, at least `low` (None: negative too, which means for ever)."""
    wanted = 'seconds, or a duration like "90 s", "5m", "1h"' + ("" if low is None else f", at least {low:g} s")

    def read(value: object) -> float:
        match = None if isinstance(value, bool) else _AMOUNT.match(str(value).lower())
        if match is None or match[2] not in _TIME_UNITS:
            raise ValueError(wanted)
        result = float(match[1]) * _TIME_UNITS[match[2]]
        if low is not None and result < low:
            raise ValueError(wanted)
        return result

    return read


def texts(value: object) -> tuple[str, ...]:
    """A list of texts: as YAML has it, or "a, b"."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list | tuple) and all(isinstance(v, str | int | float) for v in value):
        return tuple(str(v).strip() for v in value)
    raise ValueError("a list of texts")


def hosts(value: object) -> tuple[str, ...]:
    """A list of HOST or HOST:PORT ([v6]:PORT for IPv6)."""
    try:
        result = texts(value)
        for entry in result:
            host_port(entry)
    except ValueError:
        raise ValueError('a list of HOST or HOST:PORT, like "mac-mini-3.tailnet:4000"') from None
    return result


_HOST_NAME = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\*", re.IGNORECASE)
_ORIGIN = re.compile(r"[a-z*][a-z0-9+.*-]*://[^\s/?#@,]+/?|\*|null", re.IGNORECASE)


def host_names(value: object) -> tuple[str, ...]:
    """A list of names of this machine, without port: NAME, *.DOMAIN, or * for any."""
    return _each(value, _HOST_NAME, 'a list of names like "llm.example.com" or "*.example.com", or "*" for any')


def origins(value: object) -> tuple[str, ...]:
    """A list of what browsers send as Origin, where * stands for any part."""
    return _each(value, _ORIGIN, 'a list of origins like "https://chat.example.com" or "http://localhost:*", or "*"')


def _each(value: object, form: re.Pattern[str], wanted: str) -> tuple[str, ...]:
    try:
        result = texts(value)
    except ValueError:
        result = ("",)
    if not all(form.fullmatch(one) for one in result):
        raise ValueError(wanted)
    return result


def host_port(written: str, port: int = 4000) -> tuple[str, int]:
    """The two parts of HOST[:PORT]; `port` when none is written. Raises ValueError."""
    wanted = "HOST or HOST:PORT"
    if written.startswith("["):
        host, closed, rest = written[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError(wanted)
        tail = rest[1:]
    elif written.count(":") > 1:  # a bare IPv6 address
        host, tail = written, ""
    else:
        host, _, tail = written.partition(":")
    if not host or any(c.isspace() or c in "/@?#" for c in host):
        raise ValueError(wanted)
    if tail:
        port = whole(1, 65535)(tail)
    return host, port


def file(value: object) -> Path | None:
    """A file's path, `~` expanded; the empty text is none."""
    written = text(value)
    return Path(written).expanduser() if written else None


def folder(value: object) -> Path:
    """A folder's path, `~` expanded."""
    return Path(text(value)).expanduser()


def shown(value: Any) -> str:
    """A value as people would write it; the empty text and list as `-`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return ", ".join(str(v) for v in value) or "-"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value not in (None, "") else "-"
