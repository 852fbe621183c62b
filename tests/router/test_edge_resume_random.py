"""However often, wherever and on whomever an answer breaks off: its client gets the text once."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from node.errors import NodeError, NodeErrorCode
from node.io.calls import Call
from node.types import Resume
from router.errors import ErrorCode, Refusal
from tests.router.fakes import DONE, ME, OTHER, Rig, Script, chunk, failed, message, send
from tests.router.resuming import WHOLE, asked_on, model, read

STORY = "".join(f"{n}. Größe · 你好 🎉\n\t" for n in range(12))


def unreliable(rng: random.Random, resume: Resume, breaks: int) -> Script:
    """A model that says STORY, token by token where it can continue and in pieces of any length where not; `breaks`
    times it breaks off somewhere."""
    tokens = [chunk(piece, mesh_tokens=[n]) for n, piece in enumerate(STORY)]
    ways = [failed(), failed(NodeErrorCode.DRAINING), failed(NodeErrorCode.UNREACHABLE), failed(NodeErrorCode.INTERNAL)]
    left = [breaks]

    async def serve(call: Call) -> AsyncGenerator[bytes, None]:
        if call.resumes and resume is Resume.REPLAY:
            raise NodeError(NodeErrorCode.CANNOT_RESUME, "its engine cannot")
        if resume is Resume.CONTINUE:
            said = tokens[asked_on(call)["blocks"] :] if call.resumes else tokens
        else:
            cuts = sorted(rng.sample(range(1, len(STORY)), 12))
            pieces = [STORY[a:b] for a, b in zip([0, *cuts], [*cuts, len(STORY)], strict=True)]
            said = [chunk(piece, id_="again") for piece in pieces]
        left[0] -= 1
        if left[0] >= 0:
            said = said[: rng.randrange(len(said))]
        for block in said:
            yield block
        if left[0] >= 0:
            raise rng.choice(ways)
        for block in (chunk("", "stop", mesh_tokens=[]), WHOLE, DONE):
            yield block

    return serve


@pytest.mark.parametrize("seed", range(24))
async def test_however_often_and_wherever_it_breaks_off_the_text_comes_once(rig: Rig, seed: int) -> None:
    """One node can continue or can only run it again, the other too; what one says it can, it may turn out not to."""
    rng = random.Random(seed)
    kinds = [rng.choice([Resume.CONTINUE, Resume.REPLAY]) for _ in range(2)]
    lies = rng.random() < 0.3
    rig.models, rig.other_models = (model(Resume.CONTINUE if lies else kind) for kind in kinds)
    rig.host.scripts = [unreliable(rng, kinds[0], 2)]
    rig.peer.scripts = [unreliable(rng, kinds[1], 2)]
    rig.dispatch.place = lambda request: rng.choice([n for n in (ME, OTHER) if n not in request.excluded] or [nobody()])
    if rng.random() < 0.7:
        text, ids, finish = await read(rig)
        assert (text, len(ids), finish) == (STORY, 1, "stop")
    else:
        _, body, _ = await send(rig, "/v1/chat/completions", json=message())
        assert body["choices"][0]["message"]["content"] == STORY
    assert rig.facts[0].outcome in ("ok", "resumed")


def nobody() -> Any:
    return Refusal(ErrorCode.NO_NODE_AVAILABLE, "nobody is left")
