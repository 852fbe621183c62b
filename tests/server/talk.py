"""What tests say to a worker, and what they look for in its answers."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from node.errors import NodeError, NodeErrorCode
from node.io.engine import WorkerStats
from node.io.mlx import MlxWorker
from node.openai import is_comment

Start = Callable[..., Awaitable[MlxWorker]]


def chat(text: str = "Hello", **fields: object) -> bytes:
    return json.dumps({"model": "x", "messages": [{"role": "user", "content": text}], **fields}).encode()


async def blocks_of(worker, body: bytes, model_name: str, path: str = "chat/completions") -> list[bytes]:
    async with aclosing(worker.stream(path, body, model_name=model_name)) as blocks:
        return [block async for block in blocks]


def chunks_of(blocks: Sequence[bytes]) -> list[dict]:
    return [json.loads(block[6:]) for block in blocks if not is_comment(block) and block != b"data: [DONE]\n\n"]


def text_of(blocks: Sequence[bytes]) -> str:
    choices = [chunk["choices"][0] for chunk in chunks_of(blocks) if chunk["choices"]]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


async def until(condition: Callable[[], Awaitable[bool]], limit_s: float = 60.0) -> None:
    async with asyncio.timeout(limit_s):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def stands_still(worker: MlxWorker) -> WorkerStats:
    """Waits until the worker works on nothing and its counters have not moved for half a second; the counters."""
    seen = WorkerStats()

    async def still() -> bool:
        nonlocal seen
        before, seen = seen, await worker.stats()
        await asyncio.sleep(0.5)
        return seen.active == 0 and before == seen

    await until(still)
    return seen


async def fails(awaitable: Awaitable[object], code: NodeErrorCode = NodeErrorCode.MODEL_FAILED) -> str:
    with pytest.raises(NodeError) as caught:
        await awaitable
    assert caught.value.code is code
    return caught.value.message


def broken(model: Path, target: Path, name: str, content: bytes | None) -> Path:
    """A copy of `model` in which the file `name` holds `content`, or is missing."""
    shutil.copytree(model, target)
    (target / name).unlink()
    if content is not None:
        (target / name).write_bytes(content)
    return target


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
