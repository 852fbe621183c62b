"""A node is lost in the middle of an answer, with real daemons and real model servers: the official client reads one
answer, equal to the one that was never cut, and the route says who began it and who went on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec import Struct

from mesh.answers import Route
from tests.server.daemons import Node, agree, mesh_of, metric, tier, wait_for
from tests.server.reciting import Reciter

pytestmark = pytest.mark.server

MODEL = "tiny-30-layers"
TOKENS = 400
CHAT: Any = {"messages": [{"role": "user", "content": "Tell me a story"}]}
EXACT: Any = {"model": MODEL, "temperature": 0, "max_tokens": TOKENS}
Break = Callable[[Node], None]


class Answer(Struct, frozen=True, kw_only=True):
    text: str
    finish: str | None
    ids: frozenset[str]
    tokens: tuple[int, int]  # of the prompt, of the answer


@pytest.fixture(scope="module")
def trio_up(short_folder: Path, slow_model: Path) -> Iterator[tuple[Node, Node, Node]]:
    """eve coordinates with no model and is the edge of all requests; fay and gus serve the same one."""
    tiers = [tier(slow_model, name="slow", slots=2)]
    nodes = mesh_of(short_folder, eve={"tiers": None}, fay={"tiers": tiers}, gus={"tiers": tiers})
    yield nodes[0], nodes[1], nodes[2]
    for node in reversed(nodes):
        node.stop()


@pytest.fixture
def trio(trio_up: tuple[Node, Node, Node]) -> tuple[Node, Node, Node]:
    """All there, all well, whatever the test before has done to them."""
    for node in trio_up[1:]:
        assert node.process is not None
        if node.process.poll() is not None:
            node.start()
        node.wait_models()
    agree(*trio_up)
    return trio_up


async def read(stream: openai.AsyncStream[Any]) -> Answer:
    """What comes of a stream from here."""
    text, finish, ids, usage = "", None, set(), (0, 0)
    async for chunk in stream:
        ids.add(chunk.id)
        for choice in chunk.choices:
            said = choice.text if hasattr(choice, "text") else choice.delta.content
            text, finish = text + (said or ""), choice.finish_reason or finish
        if chunk.usage is not None:
            usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
    return Answer(text=text, finish=finish, ids=frozenset(ids), tokens=usage)


@asynccontextmanager
async def streaming(edge: Node, path: str, **asked: Any) -> AsyncIterator[tuple[str, openai.AsyncStream[Any]]]:
    """A stream whose head is there, and the node that gives it."""
    more: Any = {"stream": True, "stream_options": {"include_usage": True}, **asked}
    async with edge.async_openai() as client:
        api = client.chat.completions if path == "chat" else client.completions
        raw = await api.with_raw_response.create(**more)
        stream = raw.parse()
        async with stream:
            yield raw.headers["x-mesh-node"], stream


def kill_worker(node: Node) -> None:
    node.worker_of(MODEL).kill()


def kill_daemon(node: Node) -> None:
    node.signal(signal.SIGKILL)
    node.ended()


def drain_now(node: Node) -> None:
    node.cli("mesh", "drain", node.name, "--now")


def hang_worker(node: Node) -> None:
    node.worker_of(MODEL).suspend()


def newest(edge: Node) -> Route:
    return edge.client.routes(1).routes[0]


async def cut_after(edge: Node, nodes: dict[str, Node], chunks: int, how: Break, **asked: Any) -> tuple[Answer, str]:
    """The whole answer of a stream whose node meets `how` after so many chunks, and that node's name."""
    some: list[Any] = []
    async with streaming(edge, **asked) as (begun, stream):
        while len(some) < chunks:
            some.append(await anext(stream))
        await asyncio.to_thread(how, nodes[begun])
        rest = await read(stream)
    said = [c.choices[0].text if asked["path"] == "text" else c.choices[0].delta.content for c in some]
    ids = rest.ids | {c.id for c in some}
    return Answer(
        text="".join(t or "" for t in said) + rest.text, finish=rest.finish, ids=ids, tokens=rest.tokens
    ), begun


@pytest.mark.parametrize("how", [kill_worker, kill_daemon, drain_now, hang_worker])
@pytest.mark.parametrize("path", ["chat", "text"])
async def test_a_stream_whose_node_is_lost_is_the_one_that_was_never_cut(
    trio: tuple[Node, Node, Node], how: Break, path: str
) -> None:
    eve, fay, gus = trio
    nodes = {"fay": fay, "gus": gus}
    asked = {**EXACT, "path": path, **(CHAT if path == "chat" else {"prompt": "Once upon a time"})}
    async with streaming(eve, **asked) as (_, stream):
        whole = await read(stream)
    assert (whole.finish, whole.tokens[1]) == ("length", TOKENS)
    try:
        found, begun = await cut_after(eve, nodes, 40, how, **asked)
    finally:
        for node in nodes.values():
            if how is drain_now:
                await asyncio.to_thread(eve.cli, "mesh", "undrain", node.name)
    assert (found.text, found.finish, found.tokens) == (whole.text, whole.finish, whole.tokens)
    assert len(found.ids) == 1
    route = await asyncio.to_thread(wait_for, "its route", lambda: newest(eve) if newest(eve).stream else None)
    assert (route.outcome, route.completion_tokens, route.lost) == ("resumed", TOKENS, None)
    first, *_, last = route.attempts
    assert (first.node, first.cut, last.outcome, last.mode) == (begun, True, "ok", "continue")
    shown = await asyncio.to_thread(lambda: eve.cli("mesh", "routes", "--why", route.id).stdout)
    assert f"{begun} broke off in the middle of the answer; {last.node} went on where it stopped" in " ".join(
        shown.split()
    )
    assert metric(eve, "mlx_mesh_handovers_total", mode="continue") >= 1
    assert metric(eve, "mlx_mesh_kept_bytes") == 0


async def test_an_answer_in_one_piece_goes_on_too(trio: tuple[Node, Node, Node]) -> None:
    eve, fay, gus = trio
    async with eve.async_openai() as client:
        whole = await client.chat.completions.create(**EXACT, **CHAT)
        asking = asyncio.ensure_future(client.chat.completions.create(**EXACT, **CHAT))
        before = {node.name: metric(node, "mlx_mesh_worker_tokens_total") for node in (fay, gus)}

        def writes() -> Node | None:
            """The node that has made some of it."""
            made = {n: metric(n, "mlx_mesh_worker_tokens_total") - before[n.name] for n in (fay, gus)}
            return next((n for n, tokens in made.items() if tokens > 30 and n.own().in_flight), None)

        serving = await asyncio.to_thread(wait_for, "one writes", writes)
        await asyncio.to_thread(kill_worker, serving)
        found = await asking
    assert found.choices[0].message.content == whole.choices[0].message.content
    assert found.choices[0].finish_reason == whole.choices[0].finish_reason
    assert found.usage is not None
    assert whole.usage is not None
    assert found.usage.completion_tokens == whole.usage.completion_tokens == TOKENS
    assert found.usage.prompt_tokens == whole.usage.prompt_tokens
    assert "mesh_tokens" not in found.to_dict()
    route = newest(eve)
    assert (route.outcome, [a.mode for a in route.attempts][-1]) == ("resumed", "continue")


# Engines that cannot go on with an answer


@pytest.fixture
def reciters() -> Iterator[tuple[Reciter, Reciter]]:
    with Reciter() as one, Reciter() as other:
        yield one, other


@asynccontextmanager
async def external(folder: Path, reciters: tuple[Reciter, Reciter]) -> AsyncIterator[Node]:
    """The edge of a mesh in which two other nodes each have one of these servers."""
    one, other = ([tier("reciter", name="reciter", engine="external", url=r.url)] for r in reciters)
    make = asyncio.to_thread(mesh_of, folder, eve={"tiers": None}, fay={"tiers": one}, gus={"tiers": other})
    nodes = await make
    try:
        yield nodes[0]
    finally:
        for node in reversed(nodes):
            await asyncio.to_thread(node.stop)


async def recited(edge: Node, reciters: tuple[Reciter, Reciter]) -> Answer:
    """Each server breaks off behind its tenth chunk, once: the second one has said nothing new by then."""
    for reciter in reciters:
        reciter.stops_after = 10
    async with streaming(edge, "chat", model="reciter", **CHAT) as (_, stream):
        some = await anext(stream)
        rest = await read(stream)
    return Answer(
        text=(some.choices[0].delta.content or "") + rest.text,
        finish=rest.finish,
        ids=rest.ids | {some.id},
        tokens=rest.tokens,
    )


async def test_an_engine_that_cannot_continue_recites_it_again(folder: Path, reciters: tuple[Reciter, Reciter]) -> None:
    async with external(folder, reciters) as eve:
        found = await recited(eve, reciters)
        assert (found.text, found.finish) == (reciters[0].text, "stop")
        assert len(found.ids) == 1
        route = newest(eve)
        assert (route.outcome, [a.mode for a in route.attempts]) == ("resumed", ["start", "replay", "replay"])
        cut, again, whole = route.attempts
        assert (cut.cut, again.outcome, again.cut, whole.outcome) == (True, "failed", False, "ok")
        assert metric(eve, "mlx_mesh_handovers_total", mode="replay") == 1


async def test_one_that_says_something_else_each_time_loses_the_stream_by_name(
    folder: Path, reciters: tuple[Reciter, Reciter]
) -> None:
    for number, reciter in enumerate(reciters):
        reciter.text = f"{number} {reciter.text}"
        reciter.changes = True
    async with external(folder, reciters) as eve:
        with pytest.raises(openai.APIError) as lost:
            await recited(eve, reciters)
        assert lost.value.code == "stream_lost"
        route = newest(eve)
        assert (route.outcome, route.lost) == ("failed", "mismatch")
        assert metric(eve, "mlx_mesh_streams_lost_total", reason="mismatch") == 1
