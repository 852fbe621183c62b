"""Every refusal says why, to who asks and in its route: what the coordinator says of each node, or the edge itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from router.errors import ErrorCode, Refusal
from router.events import Decision, Outcome, Request
from router.frames import CoordinatorFrame, Refused
from router.settings import EdgeSettings
from tests.router.fakes import FakeDispatch, Rig, message, rigged, send

EXPLAIN = {"x-mesh-explain": "1"}
SAID = Decision(request={"refused": "nobody"}, chosen=None, waited_ms=3.0, candidates=())


def refusing(dispatch: FakeDispatch, when: asyncio.Event | None = None) -> Callable[..., None]:
    """An `ask` that refuses with a decision, once `when` is set."""

    def ask(
        request: Request,
        attempt: int,
        age_s: float,
        last: Outcome | None,
        on_answer: Callable[[CoordinatorFrame], None],
    ) -> None:
        dispatch.asked.append(request)
        refused = Refused(request.id, attempt, Refusal(ErrorCode.MESH_SATURATED, "nobody"), SAID)
        waiting = asyncio.ensure_future(when.wait() if when is not None else asyncio.sleep(0))
        waiting.add_done_callback(lambda _: on_answer(refused))

    return ask


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_coordinator_says_of_a_refusal(rig: Rig, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    monkeypatch.setattr(rig.dispatch, "ask", refusing(rig.dispatch))
    body = message(stream=stream)
    status, _, headers = await send(rig, "/v1/chat/completions", json=body, headers=EXPLAIN)
    assert status == 503
    assert json.loads(headers["x-mesh-decision"])["request"] == {"refused": "nobody"}
    assert rig.facts[-1].decision == SAID
    assert rig.facts[-1].coordinator == "mini"
    _, _, headers = await send(rig, "/v1/chat/completions", json=body)
    assert "x-mesh-decision" not in headers


async def test_a_refusal_after_the_head_is_explained_in_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rigged(EdgeSettings(head_hold_s=0.05, comfort_every_s=0.05)) as (rig, _):
        late = asyncio.Event()
        monkeypatch.setattr(rig.dispatch, "ask", refusing(rig.dispatch, late))
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{rig.url}/v1/chat/completions", json=message(stream=True), headers=EXPLAIN) as response,
        ):
            await response.content.readuntil(b"\n\n")
            late.set()
            blocks = (await response.content.read()).split(b"\n\n")
    [told] = [n for n, block in enumerate(blocks) if block.startswith(b": x-mesh-decision ")]
    assert json.loads(blocks[told].removeprefix(b": x-mesh-decision "))["chosen"] is None
    assert blocks[told + 1].startswith(b"event: error")


async def test_what_the_edge_refuses_by_itself(rig: Rig) -> None:
    async def refused(body: dict[str, Any]) -> tuple[int, Any, Any]:
        status, answer, headers = await send(rig, "/v1/chat/completions", json=body, headers=EXPLAIN)
        decision = json.loads(headers["x-mesh-decision"])
        assert decision["chosen"] is None
        assert decision["request"]["refused"] == answer["error"]["message"]
        return status, decision, rig.facts[-1].decision

    status, decision, kept = await refused(message(model="nothing"))
    assert status == 404
    whys = {c["node"]: c["excluded"] for c in decision["candidates"]}
    assert whys == {"studio": "model not served there", "mini": "model not served there"}
    assert kept.chosen is None
    status, decision, _ = await refused({"model": "chat-1", "messages": "no list"})
    assert (status, decision["candidates"]) == (400, [])
    assert not rig.dispatch.asked


async def test_a_place_is_asked_for_a_little_before_the_deadline(rig: Rig) -> None:
    """So that the coordinator's refusal, which says what was waited for, comes before the edge's own."""
    await send(rig, "/v1/chat/completions", json=message(), headers={"x-mesh-deadline-ms": "20000"})
    asked_s = rig.dispatch.asked[0].deadline
    assert asked_s is not None
    assert 15 < asked_s <= 19.75
