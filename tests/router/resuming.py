"""What the tests of hand-overs at the edge share: models that can continue, and a client that reads."""

from __future__ import annotations

import json
from typing import Any

from node.io.calls import Call
from node.types import ModelReport, ModelState, Resume
from tests.router.fakes import ASK, Rig

WHOLE = b': usage {"prompt":5,"cached":0,"completion":6}\n\n'


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
