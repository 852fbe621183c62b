"""What the tests of hand-overs at the edge share: models that can continue, and a client that reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from node.io.calls import Call
from node.types import ModelReport, ModelState, Resume
from tests.mesh.waiting import until
from tests.router.fakes import ASK, DONE, Rig, Script, chunk

WHOLE = b': usage {"prompt":5,"cached":0,"completion":6}\n\n'
HEAD = (chunk("The ", mesh_tokens=[11]), chunk("cap", mesh_tokens=[12, 13]))
TAIL = (chunk("ital", mesh_tokens=[14]), chunk(" is Paris.", "stop", mesh_tokens=[15, 16]), WHOLE, DONE)
AGAIN = (
    chunk("The capi", id_="again"),
    chunk("tal is", id_="again"),
    chunk(" Paris.", "stop", id_="again"),
    WHOLE,
    DONE,
)
TEXT = "The capital is Paris."


def model(resume: Resume = Resume.CONTINUE, fingerprint: str = "f1", **more: Any) -> tuple[ModelReport, ...]:
    return (
        ModelReport(
            name="chat-1",
            aliases=("standard",),
            state=ModelState.READY,
            resume=resume,
            fingerprint=fingerprint,
            **more,
        ),
    )


def resuming(rig: Rig, resume: Resume = Resume.CONTINUE, fingerprint: str = "f1") -> None:
    rig.models = rig.other_models = model(resume, fingerprint)


def goes_on(*blocks: bytes) -> Script:
    """A node that goes on with these, and takes nothing that it would have to begin."""

    async def serve(call: Call) -> AsyncGenerator[bytes, None]:
        assert call.resumes
        for block in blocks:
            yield block

    return serve


def asked_on(call: Call) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call.body)["mesh_resume"]
    return found


async def read(rig: Rig, **more: Any) -> tuple[str, set[str], str | None]:
    """Text, ids and finish_reason that the official client saw."""
    stream = await rig.client().chat.completions.create(model="chat-1", messages=ASK, stream=True, **more)
    text, ids, finish = "", set(), None
    async for part in stream:
        ids.add(part.id)
        for choice in part.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return text, ids, finish


def posted(body: dict[str, Any]) -> bytes:
    """A chat request on a connection that ends with its answer."""
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data


async def connected(rig: Rig) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = rig.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port), limit=2**10)


async def at_rest(rig: Rig) -> None:
    """Nothing moves any more: the client takes nothing."""
    seen: list[int] = []

    def still() -> bool:
        seen.append(rig.bytes["client_out"])
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    await until(still)
