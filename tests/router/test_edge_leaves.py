"""What a request leaves behind in memory: nothing that only the collector could find."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from router.io.exchange import Exchange
from tests.router.fakes import Rig, message, send


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_was_answered_is_not_in_memory(rig: Rig, stream: bool) -> None:
    before = {id(found) for found in gc.get_objects() if isinstance(found, Exchange)}
    status, _, _ = await send(rig, "/v1/chat/completions", json=message(stream=stream))
    assert status == 200
    for _ in range(3):
        await asyncio.sleep(0)  # what its last turn of the loop still held
    assert not [f for f in gc.get_objects() if isinstance(f, Exchange) and id(f) not in before]
