"""Requests at each limit and just over it: what their client is told."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from router.settings import EdgeSettings

PATH = "/v1/chat/completions"
LIMIT_S = 60.0
BODY, DEPTH = EdgeSettings().body_limit_bytes, EdgeSettings().json_depth
SLICE = 65536


class Case(NamedTuple):
    """A request as bytes, and the status it must get."""

    name: str
    head: bytes
    body: bytes
    status: int


def _asked(size: int = 0, depth: int = 0) -> bytes:
    """A good body of so many bytes, or with so many levels."""
    start = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})[:-1]
    deep = depth and f',"user":{"[" * (depth - 1)}{"]" * (depth - 1)}'
    text = f'{start}{deep or ""},"x":"'
    return f'{text}{"y" * max(0, size - len(text) - 2)}"}}'.encode()


def _case(name: str, status: int, body: bytes, *, path: str = PATH, fields: str = "", length: bool = True) -> Case:
    says = f"Content-Length: {len(body)}\r\n" if length else "Transfer-Encoding: chunked\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: 10.77.0.1\r\nConnection: close\r\n{says}{fields}\r\n"
    sent = body if length else b"".join(_chunks(body))
    return Case(name, head.encode(), sent, status)


def _chunks(body: bytes) -> Iterator[bytes]:
    for at in range(0, len(body), SLICE):
        part = body[at : at + SLICE]
        yield b"%x\r\n%b\r\n" % (len(part), part)
    yield b"0\r\n\r\n"


def cases() -> Iterator[Case]:
    """Each limit: at it, and over it."""
    small = _asked()
    yield _case("body at the limit", 200, _asked(BODY))
    yield _case("body over it", 413, _asked(BODY + 1))
    yield _case("chunked body over it", 413, _asked(BODY + 1), length=False)
    yield _case("JSON as deep as it may be", 200, _asked(depth=DEPTH))
    yield _case("JSON deeper", 400, _asked(depth=DEPTH + 1))
    yield _case("JSON 4 million deep", 400, _asked(depth=4_000_000))
    url = f"{PATH}?{'q' * (8192 - len(PATH) - 1)}"
    yield _case("URL at the limit", 200, small, path=url)
    yield _case("URL over it", 414, small, path=url + "q")
    few = 100 - 3  # host, connection and the length are fields too
    yield _case("fields at the limit", 200, small, fields="A: b\r\n" * few)
    yield _case("fields over it", 431, small, fields="A: b\r\n" * (few + 1))
    room = 32 * 1024 - len(_case("", 0, small).head) - len("A: \r\n")
    yield _case("head at the limit", 200, small, fields=f"A: {'b' * room}\r\n")
    yield _case("head over it", 431, small, fields=f"A: {'b' * (room + 1)}\r\n")


def asked(case: Case, server: tuple[str, int], address: str) -> int:
    """The status it gets; 0: none."""
    with socket.create_connection(server, LIMIT_S, (address, 0)) as sock:
        said = b""
        with suppress(OSError):  # refused in the middle of it
            sock.sendall(case.head)
            sock.sendall(case.body)
        with suppress(OSError):
            while len(said) < len("HTTP/1.1 200") and (data := sock.recv(4096)):
                said += data
    with suppress(ValueError):
        return int(said[9:12])
    return 0
