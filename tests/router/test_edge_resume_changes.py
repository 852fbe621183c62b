"""What was true when an answer broke off is not any more when a place is asked for, granted or opened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import aiohttp
import pytest

from node.io.calls import Call
from node.types import NodeId, Resume
from router.errors import ErrorCode, Refusal
from router.events import Request
from router.settings import EdgeSettings
from tests.mesh.waiting import until
from tests.router.fakes import DONE, ME, OTHER, Rig, chunk, failed, message, rigged, says, send
from tests.router.resuming import AGAIN, HEAD, TAIL, TEXT, at_rest, connected, goes_on, model, resuming


@pytest.mark.parametrize("streamed", [True, False])
async def test_when_who_can_continue_is_refused_who_can_run_it_again_is_asked(rig: Rig, streamed: bool) -> None:
    """The node that can is there, but its model has failed; the other had no room for a moment."""
    rig.models, rig.other_models = model(), model(Resume.REPLAY)
    rig.host.scripts, rig.peer.scripts = [says(*HEAD, failed())], [says(*AGAIN)]
    full = Refusal(ErrorCode.NO_NODE_AVAILABLE, "no room")

    def place(request: Request) -> NodeId | Refusal:
        asks = len(rig.dispatch.asked)
        return ME if asks == 1 else OTHER if asks > 2 and OTHER not in request.excluded else full

    rig.dispatch.place = place
    _, body, _ = await send(rig, "/v1/chat/completions", json=message(stream=streamed))
    assert DONE in body if streamed else body["choices"][0]["message"]["content"] == TEXT
    assert rig.facts[0].attempts[-1].mode == ("replay" if streamed else "start")


async def test_an_answer_that_nobody_has_the_model_for_any_more_is_refused_long_before_its_deadline(rig: Rig) -> None:
    resuming(rig)
    rig.other_models = ()

    async def serve(_: Call) -> AsyncGenerator[bytes, None]:
        yield HEAD[0]
        rig.models = ()
        raise failed()

    rig.host.scripts = [serve]
    nobody = Refusal(ErrorCode.MODEL_NOT_FOUND, "nobody has it")
    rig.dispatch.place = lambda request: ME if len(rig.dispatch.asked) == 1 else nobody
    status, body, _ = await send(rig, "/v1/chat/completions", json=message(), timeout=aiohttp.ClientTimeout(30))
    assert (status, body["error"]["code"]) == (503, "model_failed")


@pytest.mark.parametrize("granted", [False, True])
async def test_an_answer_that_younger_streams_push_out_during_a_hand_over_is_not_doubled(granted: bool) -> None:
    """Before its grant: it begins anew. Between the grant and its opening: it goes on from what was read for that."""
    settings = EdgeSettings(round_pause_s=0.02, kept_stream_bytes=900, kept_limit_bytes=1000)
    async with rigged(settings) as (rig, edge):
        resuming(rig)
        rig.host.scripts = [says(*HEAD, failed())]
        rig.peer.scripts = [goes_on(*TAIL) if granted else says(*HEAD, *TAIL)]

        def pushed_out() -> None:
            younger = edge._means.keep.begin(lambda _: None)
            younger.add(b"x" * 890)
            younger.close()

        def place(request: Request) -> NodeId | Refusal:
            if len(rig.dispatch.asked) < 3:  # the third ask comes from a timer: what it opens is opened a turn later
                return ME if len(rig.dispatch.asked) == 1 else Refusal(ErrorCode.NO_NODE_AVAILABLE, "nobody")
            if granted:
                asyncio.get_running_loop().call_soon(pushed_out)
            else:
                pushed_out()
            return OTHER

        rig.dispatch.place = place
        _, body, _ = await send(rig, "/v1/chat/completions", json=message())
        assert body["choices"][0]["message"]["content"] == TEXT
        assert rig.facts[0].attempts[-1].mode == ("continue" if granted else "start")
        assert not rig.facts[0].resumable


@pytest.mark.parametrize("place", [OTHER, None])
async def test_a_client_that_does_not_read_is_held_no_longer_than_its_deadline(place: NodeId | None) -> None:
    """Also when its node is lost while a block waits to be read, and nothing runs at the deadline."""
    settings = EdgeSettings(silence_s=600.0, round_pause_s=600.0, kept_stream_bytes=2**26, farewell_s=0.1)
    async with rigged(settings) as (rig, edge):
        resuming(rig)
        rig.peer.scripts = [says(*(chunk(str(n) * 1_500_000, mesh_tokens=[n]) for n in range(1, 10)))]
        nobody = Refusal(ErrorCode.NO_NODE_AVAILABLE, "nobody")
        rig.dispatch.place = lambda _: OTHER if len(rig.dispatch.asked) == 1 else nobody if place else None
        body = json.dumps(message(stream=True)).encode()
        _, writer = await connected(rig)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"X-Mesh-Deadline-Ms: 2000\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await until(lambda: ("first", 1) in rig.dispatch.said)
        await at_rest(rig)
        edge.node_lost(OTHER)
        await until(lambda: rig.facts and edge.open_requests == 0)
        assert rig.facts[0].outcome == "failed"
        writer.close()
