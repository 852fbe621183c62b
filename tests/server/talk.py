"""What tests say to a worker, and what they look for in its answers."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from node.errors import NodeError, NodeErrorCode
from node.io.engine import Worker, WorkerStats
from node.io.mlx import MlxWorker
from node.openai import is_comment
from tests.node.scripted import streamed

LOOK_EVERY_S = 0.1
STILL_LOOKS = 6
Start = Callable[..., Awaitable[MlxWorker]]


def chat(text: str = "Hello", **fields: object) -> bytes:
    return json.dumps({"model": "x", "messages": [{"role": "user", "content": text}], **fields}).encode()


async def blocks_of(worker: Worker, body: bytes, model_name: str, path: str = "chat/completions") -> list[bytes]:
    async with aclosing(streamed(worker, path, body, model_name=model_name)) as blocks:
        return [block async for block in blocks]


def chunks_of(blocks: Sequence[bytes]) -> list[dict[str, Any]]:
    return [json.loads(block[6:]) for block in blocks if not is_comment(block) and block != b"data: [DONE]\n\n"]


def text_of(blocks: Sequence[bytes]) -> str:
    choices = [chunk["choices"][0] for chunk in chunks_of(blocks) if chunk["choices"]]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


async def shows(worker: MlxWorker, what: Callable[[WorkerStats], bool], limit_s: float = 60.0) -> WorkerStats:
    """Its counters, once they are so. Raises TimeoutError at the limit."""
    async with asyncio.timeout(limit_s):
        while not what(stats := await worker.stats()):  # noqa: ASYNC110 - another process's counters: nobody tells
            await asyncio.sleep(LOOK_EVERY_S)
    return stats


async def stands_still(worker: MlxWorker) -> WorkerStats:
    """The counters of a worker that works on nothing any more and has not moved them over so many looks: it leaves a
    request before the thread that generates has looked whether its caller is there."""
    looks: deque[WorkerStats] = deque(maxlen=STILL_LOOKS)

    def still(stats: WorkerStats) -> bool:
        looks.append(stats)
        return stats.active == 0 and looks.count(stats) == STILL_LOOKS

    return await shows(worker, still)


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
