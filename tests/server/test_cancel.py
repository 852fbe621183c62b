"""Work whose caller has left stops: streamed or not, while it is written, read, or still waits."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import aiohttp
import pytest

from node.openai import is_comment
from tests.node.scripted import streamed
from tests.server.talk import Start, blocks_of, chat, shows, stands_still

pytestmark = pytest.mark.server


async def test_a_closed_stream_stops_the_generation(started: Start, slow_model: Path) -> None:
    worker = await started(slow_model)
    async with aclosing(streamed(worker, "chat/completions", chat(max_tokens=8000), model_name="x")) as blocks:
        async for block in blocks:
            if not is_comment(block):
                break
    assert 0 < (await stands_still(worker)).generated_tokens < 4000


@pytest.mark.parametrize("seed", [None, 7], ids=["in a batch", "alone"])
async def test_a_plain_request_stops_when_its_caller_leaves(started: Start, slow_model: Path, seed: int | None) -> None:
    worker = await started(slow_model)
    body = {"prompt": "a", "max_tokens": 8000, **({"seed": seed} if seed else {})}

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            await session.post(f"{worker.upstream.base}/completions", json=body)

    asking = asyncio.ensure_future(ask())
    await shows(worker, lambda stats: stats.generated_tokens > 10)
    asking.cancel()
    await asyncio.wait({asking})
    assert (await stands_still(worker)).generated_tokens < 4000


@pytest.mark.parametrize("seed", [None, 7], ids=["in a batch", "alone"])
async def test_reading_a_prompt_stops_when_its_caller_leaves(
    started: Start, slow_model: Path, seed: int | None
) -> None:
    worker = await started(slow_model, extra_args=("--prefill-step-size", "32"))
    before = await worker.stats()
    body = chat("one two three " * 800, max_tokens=5, **({"seed": seed} if seed else {}))

    async def ask() -> None:
        await blocks_of(worker, body, "x")

    asking = asyncio.ensure_future(ask())
    await shows(worker, lambda stats: stats.prompt_tokens > before.prompt_tokens + 32)
    asking.cancel()
    await asyncio.wait({asking})
    after = await stands_still(worker)
    assert after.generated_tokens == before.generated_tokens
    assert after.prompt_tokens - before.prompt_tokens < 2000


async def test_work_that_waits_is_dropped_with_its_caller(started: Start, slow_model: Path) -> None:
    worker = await started(slow_model)
    begun = (await worker.stats()).generated_tokens
    # A seeded request runs alone, so the next one waits: long enough for this test to come and go meanwhile.
    first = asyncio.ensure_future(blocks_of(worker, chat(max_tokens=600, seed=1, temperature=0), "x"))
    await shows(worker, lambda stats: stats.generated_tokens > begun)
    second = asyncio.ensure_future(blocks_of(worker, chat(max_tokens=8000), "x"))
    await shows(worker, lambda stats: stats.active == 2)
    second.cancel()
    await asyncio.wait({second})
    assert (await first)[-1] == b"data: [DONE]\n\n"
    assert (await stands_still(worker)).generated_tokens <= 602  # the first's, and one of the start
