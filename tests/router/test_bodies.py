"""Clients' bodies: what is unpacked on the loop, and what beside it."""

from __future__ import annotations

import gzip
import threading
import zlib

import pytest

from node.http_request import Head
from node.io.turn import Incoming
from router.errors import RouterError
from router.io import bodies as module
from router.io.bodies import Bodies
from router.settings import EdgeSettings

ON_LOOP = 2**20  # bytes, by EdgeSettings


def sent(body: bytes) -> Incoming:
    incoming = Incoming(Head("POST", "/", {"content-encoding": "gzip"}, None, True, 1, False), "", lambda _: None)
    incoming.feed(body)
    incoming.end()
    return incoming


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """What was: whether on the loop's thread, and how many bytes came of it."""
    seen: list[tuple[bool, int]] = []
    real, loop_thread = module._unzipped, threading.get_ident()

    def noted(body: bytes, limit: int) -> bytes:
        plain = real(body, limit)
        seen.append((threading.get_ident() == loop_thread, len(plain)))
        return plain

    monkeypatch.setattr(module, "_unzipped", noted)
    return seen


@pytest.mark.parametrize("size", [0, 1, ON_LOOP, ON_LOOP + 1, 2**25], ids=str)
async def test_little_is_unpacked_on_the_loop_however_small_the_zip(
    unpacked: list[tuple[bool, int]], size: int
) -> None:
    zipped = gzip.compress(b" " * size)
    assert len(zipped) < 2**16
    made = Bodies(EdgeSettings(body_limit_bytes=2**25))
    async with made.hold(sent(zipped)) as body:
        assert body == b" " * size
        assert made.held_bytes == size
    assert made.held_bytes == 0
    assert sum(count for on_loop, count in unpacked if on_loop) <= ON_LOOP + 1
    assert unpacked[-1] == (size <= ON_LOOP, size)


async def test_a_long_zip_of_little_is_not_unpacked_on_the_loop(unpacked: list[tuple[bool, int]]) -> None:
    packer = zlib.compressobj()
    zipped = b"".join([packer.compress(b"{"), *(packer.flush(zlib.Z_FULL_FLUSH) for _ in range(3)), packer.flush()])
    empty = b"\0\0\0\xff\xff"  # a stored block of nothing
    long = zipped[:2] + empty * 20_000 + zipped[2:]
    async with Bodies(EdgeSettings()).hold(sent(long)) as body:
        assert body == b"{"
    assert unpacked == [(False, 1)]


@pytest.mark.parametrize("limit", [50_000, ON_LOOP, 2**21])
async def test_a_zip_of_too_much_is_refused(unpacked: list[tuple[bool, int]], limit: int) -> None:
    made = Bodies(EdgeSettings(body_limit_bytes=limit))
    with pytest.raises(RouterError, match="larger than"):
        async with made.hold(sent(gzip.compress(b" " * 2**25))):
            pass
    assert made.held_bytes == 0
    assert max(count for _, count in unpacked) <= limit + 1
