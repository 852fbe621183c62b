"""A node is lost in the middle of an answer: the client reads one answer, whole and once, or hears why not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from node.errors import NodeError, NodeErrorCode
from node.io.calls import Call
from node.types import Resume
from router.errors import ErrorCode, Refusal
from router.settings import EdgeSettings
from tests.mesh.waiting import until
from tests.router.fakes import (
    DONE,
    ME,
    OTHER,
    USAGE_CHUNK,
    Rig,
    Script,
    chunk,
    failed,
    message,
    rigged,
    says,
    send,
)
from tests.router.resuming import (
    AGAIN,
    HEAD,
    TAIL,
    TEXT,
    WHOLE,
    asked_on,
    at_rest,
    connected,
    goes_on,
    model,
    posted,
    read,
    resuming,
)


async def lost(rig: Rig, **more: Any) -> tuple[str | None, str]:
    """A stream ends with `stream_lost`; how the route names it, and what the client was told."""
    _, text, _ = await send(rig, "/v1/chat/completions", json=message(stream=True, **more))
    assert b"[DONE]" not in text
    error = json.loads(text.split(b"data: ")[-1])["error"]
    assert error["code"] == "stream_lost"
    (fact,) = rig.facts
    assert fact.outcome == "failed"
    return fact.lost, error["message"]


@pytest.mark.parametrize("broken", [failed(), failed(NodeErrorCode.DRAINING), failed(NodeErrorCode.UNREACHABLE)])
async def test_a_stream_goes_on_where_the_weights_are_the_same(rig: Rig, broken: NodeError) -> None:
    resuming(rig)
    rig.host.scripts = [says(*HEAD, broken)]
    rig.peer.scripts = [goes_on(*TAIL)]
    assert await read(rig, max_tokens=20) == (TEXT, {"c"}, "stop")
    (call,) = rig.peer.calls
    assert asked_on(call) == {"id": "c", "created": 1, "tokens": [11, 12, 13], "blocks": 2}
    (fact,) = rig.facts
    assert (fact.outcome, fact.node, fact.completion_tokens) == ("resumed", "mini", 6)
    assert [(a.node, a.mode, a.cut) for a in fact.attempts] == [("studio", "start", True), ("mini", "continue", False)]
    how = "busy" if broken.code is NodeErrorCode.DRAINING else "failed"
    assert rig.dispatch.said == [
        ("ask", 1, None),
        ("taken", 1),
        ("first", 1),
        ("ask", 2, how),
        ("taken", 2),
        ("first", 2),
        ("done", 2, "ok"),
    ]
    first, second = rig.dispatch.asked
    assert second.prompt_tokens == first.prompt_tokens + 3
    assert (first.max_tokens, second.max_tokens) == (20, 17)
    assert second.excluded == (ME,)


async def test_an_answer_that_is_not_streamed_goes_on_too(rig: Rig) -> None:
    resuming(rig)
    rig.host.scripts = [says(*HEAD, failed())]
    rig.peer.scripts = [goes_on(*TAIL)]
    status, body, headers = await send(rig, "/v1/chat/completions", json=message())
    assert (status, body["choices"][0]["message"]["content"]) == (200, TEXT)
    assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("stop", 6)
    assert "mesh_tokens" not in body
    assert headers["x-mesh-attempts"] == "2"
    assert rig.facts[0].outcome == "resumed"


async def test_a_second_cut_goes_on_from_there(rig: Rig) -> None:
    resuming(rig)
    rig.host.scripts = [says(*HEAD, failed()), goes_on(*TAIL[1:])]
    rig.peer.scripts = [goes_on(TAIL[0], failed_block())]
    rig.dispatch.place = lambda request: next(n for n in (ME, OTHER) if n not in request.excluded)
    assert await read(rig) == (TEXT, {"c"}, "stop")
    assert asked_on(rig.host.calls[1]) == {"id": "c", "created": 1, "tokens": [11, 12, 13, 14], "blocks": 3}
    assert [a.mode for a in rig.facts[0].attempts] == ["start", "continue", "continue"]


def failed_block() -> bytes:
    return b'event: error\ndata: {"error":{"code":"model_failed","message":"it crashed","retry_after_s":null}}\n\n'


async def test_the_node_itself_goes_on_when_its_worker_is_back(rig: Rig) -> None:
    """And a node with other weights of that name is not asked, however free it is."""
    rig.models, rig.other_models = model(), model(fingerprint="f2")
    rig.host.scripts = [says(*HEAD, failed()), goes_on(*TAIL)]
    assert await read(rig) == (TEXT, {"c"}, "stop")
    assert rig.peer.calls == []
    assert rig.dispatch.asked[1].excluded == (ME, OTHER)
    assert rig.dispatch.asked[2].excluded == (OTHER,)


async def test_an_engine_that_cannot_continue_runs_it_again(rig: Rig) -> None:
    resuming(rig, Resume.REPLAY)
    rig.host.scripts = [says(chunk("The "), chunk("cap"), failed())]
    rig.peer.scripts = [says(*AGAIN)]
    assert await read(rig) == (TEXT, {"c"}, "stop")
    (call,) = rig.peer.calls
    assert not call.resumes
    assert b"mesh_resume" not in call.body
    (fact,) = rig.facts
    assert (fact.outcome, [a.mode for a in fact.attempts]) == ("resumed", ["start", "replay"])


async def test_of_weights_that_nobody_can_compare_the_name_is_enough_to_run_it_again(rig: Rig) -> None:
    resuming(rig, Resume.REPLAY, fingerprint="")
    rig.host.scripts = [says(chunk("The "), chunk("cap"), failed())]
    rig.peer.scripts = [says(*AGAIN)]
    assert (await read(rig))[0] == TEXT


async def test_a_node_that_turns_out_unable_to_continue_runs_it_again(rig: Rig) -> None:
    resuming(rig)
    rig.host.scripts = [says(*HEAD, failed())]
    rig.peer.scripts = [says(NodeError(NodeErrorCode.CANNOT_RESUME, "its engine cannot")), says(*AGAIN)]
    assert await read(rig) == (TEXT, {"c"}, "stop")
    assert [call.resumes for call in rig.peer.calls] == [True, False]
    assert [a.mode for a in rig.facts[0].attempts] == ["start", "continue", "replay"]
    assert rig.facts[0].attempts[1].error == "cannot_resume: its engine cannot"


async def test_who_can_continue_goes_before_who_can_only_run_it_again(rig: Rig) -> None:
    rig.models, rig.other_models = model(Resume.REPLAY), model()
    rig.host.scripts = [says(*HEAD, failed())]
    rig.peer.scripts = [goes_on(*TAIL)]
    rig.dispatch.place = lambda request: ME if len(rig.dispatch.asked) == 1 else OTHER
    assert (await read(rig))[0] == TEXT


async def test_a_second_run_that_says_something_else_loses_the_stream(rig: Rig) -> None:
    resuming(rig, Resume.REPLAY)
    rig.host.scripts = [says(chunk("The "), chunk("cap"), failed())]
    rig.peer.scripts = [says(chunk("The "), chunk("city", "stop"), WHOLE, DONE)]
    assert await lost(rig) == ("mismatch", "the second run says something else than the first")
    assert rig.dispatch.said[-1] == ("done", 2, "cancelled")


async def test_a_second_run_that_ends_early_loses_the_stream(rig: Rig) -> None:
    resuming(rig, Resume.REPLAY)
    rig.host.scripts = [says(chunk("The "), chunk("cap"), failed())]
    rig.peer.scripts = [says(chunk("The "), WHOLE, DONE)]
    assert (await lost(rig))[0] == "mismatch"


async def test_an_engine_that_can_do_neither_loses_the_stream_at_once(rig: Rig) -> None:
    resuming(rig, Resume.NO)
    rig.host.scripts = [says(*HEAD, failed())]
    why, told = await lost(rig)
    assert (why, len(rig.dispatch.asked)) == ("engine", 1)
    assert "no engine of this mesh" in told
    assert rig.dispatch.said[-1] == ("done", 1, "failed")


async def test_when_nobody_comes_back_the_stream_is_lost(rig: Rig) -> None:
    resuming(rig)
    rig.host.scripts = [says(*HEAD, failed())]
    nobody = Refusal(ErrorCode.NO_NODE_AVAILABLE, "nobody is left")
    rig.dispatch.place = lambda request: ME if len(rig.dispatch.asked) == 1 else nobody
    why, told = await lost(rig)
    assert (why, told) == ("nobody", "it broke (after 1 attempt); nobody could go on with it")


async def test_what_was_sent_is_kept_up_to_a_bound() -> None:
    async with rigged(EdgeSettings(round_pause_s=0.02, kept_stream_bytes=300)) as (rig, _):
        resuming(rig)
        rig.host.scripts = [says(*HEAD, chunk("ital"), failed())]
        why, told = await lost(rig)
        assert why == "not_kept"
        assert told.endswith("more than 300 bytes of it were sent")
        assert not rig.facts[0].resumable


async def test_what_other_streams_push_out_during_a_hand_over_is_not_begun_anew() -> None:
    """The oldest loses what was kept of it while it waits for a place: nothing may be sent twice then."""
    settings = EdgeSettings(round_pause_s=60.0, kept_stream_bytes=900, kept_limit_bytes=1000)
    async with rigged(settings) as (rig, _):
        resuming(rig)
        rig.other_models = ()
        rig.host.scripts = [says(*HEAD, failed()), says(*HEAD, *TAIL)]
        nobody = Refusal(ErrorCode.NO_NODE_AVAILABLE, "nobody is left")
        rig.dispatch.place = lambda request: nobody if request.excluded else ME
        first = asyncio.create_task(send(rig, "/v1/chat/completions", json=message(stream=True)))
        await until(lambda: len(rig.dispatch.asked) == 2)
        assert (await read(rig))[0] == TEXT
        _, text, _ = await first
        assert text.count(HEAD[0]) == 1
        assert json.loads(text.split(b"data: ")[-1])["error"]["code"] == "stream_lost"
        assert {fact.lost for fact in rig.facts} == {None, "not_kept"}


async def test_an_answer_that_is_not_streamed_and_not_kept_begins_again() -> None:
    async with rigged(EdgeSettings(round_pause_s=0.02, kept_stream_bytes=0, kept_limit_bytes=0)) as (rig, _):
        resuming(rig)
        rig.host.scripts = [says(*HEAD, failed())]
        rig.peer.scripts = [says(*HEAD, *TAIL)]
        _, body, _ = await send(rig, "/v1/chat/completions", json=message())
        assert body["choices"][0]["message"]["content"] == TEXT
        assert (rig.facts[0].outcome, [a.mode for a in rig.facts[0].attempts]) == ("ok", ["start", "start"])


async def test_an_answer_that_is_not_streamed_begins_again_where_nobody_can_continue(rig: Rig) -> None:
    resuming(rig, Resume.REPLAY)
    rig.host.scripts = [says(chunk("The "), failed())]
    rig.peer.scripts = [says(*AGAIN)]
    _, body, _ = await send(rig, "/v1/chat/completions", json=message())
    assert (body["choices"][0]["message"]["content"], body["id"]) == (TEXT, "again")
    assert rig.facts[0].outcome == "ok"


def hangs_after(*blocks: bytes) -> Script:
    async def serve(_: Call) -> AsyncGenerator[bytes, None]:
        for block in blocks:
            yield block
        await asyncio.Event().wait()

    return serve


def elsewhere(rig: Rig) -> None:
    """First on the peer, then here."""
    rig.dispatch.place = lambda request: next(n for n in (OTHER, ME) if n not in request.excluded)


async def test_a_node_that_membership_gives_up_is_left_at_once() -> None:
    async with rigged(EdgeSettings(silence_s=600.0)) as (rig, edge):
        resuming(rig)
        elsewhere(rig)
        rig.peer.scripts, rig.host.scripts = [hangs_after(*HEAD)], [goes_on(*TAIL)]
        reading = asyncio.create_task(read(rig))
        await until(lambda: ("first", 1) in rig.dispatch.said)
        edge.node_lost(OTHER)
        assert await reading == (TEXT, {"c"}, "stop")
        assert rig.facts[0].attempts[0].error == "unreachable: the node is gone"
        await until(lambda: rig.peer.open == 0)


async def test_a_node_that_falls_silent_is_left(rig: Rig) -> None:
    resuming(rig)
    elsewhere(rig)
    rig.peer.scripts, rig.host.scripts = [hangs_after(*HEAD)], [goes_on(*TAIL)]
    assert await read(rig) == (TEXT, {"c"}, "stop")
    assert "silent for" in (rig.facts[0].attempts[0].error or "")


async def test_the_client_sees_signs_of_life_while_it_waits() -> None:
    seen = asyncio.Event()

    async def when_seen(call: Call) -> AsyncGenerator[bytes, None]:
        await seen.wait()
        async for block in goes_on(*TAIL)(call):
            yield block

    async with rigged(EdgeSettings(round_pause_s=0.05, comfort_every_s=0.05)) as (rig, _):
        resuming(rig)
        rig.other_models = ()
        rig.host.scripts = [says(*HEAD, failed()), when_seen]
        reader, writer = await connected(rig)
        writer.write(posted(message(stream=True)))
        assert HEAD[0] in await reader.readuntil(HEAD[1])
        for _ in range(2):
            await reader.readuntil(b": working\n\n")
        seen.set()
        assert DONE in await reader.read()
        writer.close()


async def test_the_deadline_ends_a_hand_over_by_its_name() -> None:
    async with rigged(EdgeSettings(round_pause_s=60.0)) as (rig, _):
        resuming(rig)
        rig.other_models = ()
        rig.host.scripts = [says(*HEAD, failed())]
        _, text, _ = await send(
            rig, "/v1/chat/completions", json=message(stream=True), headers={"x-mesh-deadline-ms": "700"}
        )
        assert json.loads(text.split(b"data: ")[-1])["error"]["code"] == "deadline_exceeded"


async def test_nothing_is_lost_of_what_a_slow_client_was_being_sent() -> None:
    """The node dies while a block waits for the client to read: the block goes out whole, and the rest follows it."""
    big = tuple(chunk(str(n) * 1_500_000, mesh_tokens=[n]) for n in range(1, 10))

    async with rigged(EdgeSettings(silence_s=600.0, kept_stream_bytes=2**26)) as (rig, edge):
        resuming(rig)
        elsewhere(rig)
        rig.peer.scripts, rig.host.scripts = [hangs_after(*big)], [counted(rig, big)]
        reader, writer = await connected(rig)
        writer.write(posted(message(stream=True)))
        await until(lambda: ("first", 1) in rig.dispatch.said)
        await at_rest(rig)
        edge.node_lost(OTHER)
        answer = b""
        while part := await reader.read(2**20):
            answer += part
        writer.close()
    for block in (*big, *TAIL[:2]):
        text = json.loads(block[6:])["choices"][0]["delta"]["content"].encode()
        assert answer.count(b'"' + text + b'"') == 1
    assert answer.count(DONE) == 1
    assert rig.facts[0].outcome == "resumed"


def counted(rig: Rig, before: tuple[bytes, ...]) -> Script:
    """Goes on behind as many of the blocks as the edge says it has."""

    async def serve(call: Call) -> AsyncGenerator[bytes, None]:
        for block in (*before[asked_on(call)["blocks"] :], *TAIL):
            yield block

    return serve


async def test_the_word_of_the_nodes_is_not_a_clients(rig: Rig) -> None:
    body = message(mesh_resume={"id": "c", "created": 1, "tokens": [1], "blocks": 1})
    status, answer, _ = await send(rig, "/v1/chat/completions", json=body)
    assert (status, answer["error"]["param"], answer["error"]["type"]) == (400, "mesh_resume", "invalid_request_error")
    assert rig.host.calls == []


async def test_a_cut_behind_the_last_word_still_ends_well(rig: Rig) -> None:
    resuming(rig)
    rig.host.scripts = [says(*HEAD, *TAIL[:2], USAGE_CHUNK, failed())]
    rig.peer.scripts = [goes_on(WHOLE, DONE)]
    assert await read(rig, stream_options={"include_usage": True}) == (TEXT, {"c"}, "stop")
    assert asked_on(rig.peer.calls[0])["blocks"] == 5
    assert rig.facts[0].outcome == "resumed"
