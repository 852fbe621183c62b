"""Work whose caller has left stops: streamed or not, while it is written, read, or still waits."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import aiohttp
import pytest

from node.openai import is_comment
from tests.server.talk import Start, blocks_of, chat, stands_still, until

pytestmark = pytest.mark.server


async def test_a_closed_stream_stops_the_generation(started: Start, slow_model: Path) -> None:
    worker = await started(slow_model)
    async with aclosing(worker.stream("chat/completions", chat(max_tokens=8000), model_name="x")) as blocks:
        async for block in blocks:
            if not is_comment(block):
                break
    assert 0 < (await stands_still(worker)).generated_tokens < 1000


@pytest.mark.parametrize("seed", [None, 7], ids=["in a batch", "alone"])
async def test_a_plain_request_stops_when_its_caller_leaves(started: Start, slow_model: Path, seed: int | None) -> None:
    worker = await started(slow_model)
    body = {"prompt": "a", "max_tokens": 8000, **({"seed": seed} if seed else {})}

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            await session.post(f"{worker.upstream.base}/completions", json=body)

    async def generating() -> bool:
        return (await worker.stats()).generated_tokens > 10

    asking = asyncio.ensure_future(ask())
    await until(generating)
    asking.cancel()
    await asyncio.wait({asking})
    assert (await stands_still(worker)).generated_tokens < 1000


@pytest.mark.parametrize("seed", [None, 7], ids=["in a batch", "alone"])
async def test_reading_a_prompt_stops_when_its_caller_leaves(
    started: Start, slow_model: Path, seed: int | None
) -> None:
    worker = await started(slow_model, extra_args=("--prefill-step-size", "32"))
    before = await worker.stats()
    body = chat("one two three " * 800, max_tokens=5, **({"seed": seed} if seed else {}))

    async def ask() -> None:
        await blocks_of(worker, body, "x")

    async def reading() -> bool:
        return (await worker.stats()).prompt_tokens > before.prompt_tokens + 32

    asking = asyncio.ensure_future(ask())
    await until(reading)
    asking.cancel()
    await asyncio.wait({asking})
    after = await stands_still(worker)
    assert after.generated_tokens == before.generated_tokens
    assert after.prompt_tokens - before.prompt_tokens < 2000


async def test_work_that_waits_is_dropped_with_its_caller(started: Start, slow_model: Path) -> None:
    worker = await started(slow_model)
    alone = chat(max_tokens=60, seed=1, temperature=0)  # a seeded request runs alone, so the next one waits
    first = asyncio.ensure_future(blocks_of(worker, alone, "x"))

    async def busy() -> bool:
        return (await worker.stats()).active == 1

    async def both() -> bool:
        return (await worker.stats()).active == 2

    await until(busy)
    second = asyncio.ensure_future(blocks_of(worker, chat(max_tokens=8000), "x"))
    await until(both)
    second.cancel()
    await asyncio.wait({second})
    assert (await first)[-1] == b"data: [DONE]\n\n"
    assert (await stands_still(worker)).generated_tokens <= 62  # the first's, and one of the start
