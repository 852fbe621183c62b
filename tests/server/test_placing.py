"""Where requests go, and what `mesh routes --why` says of it: real daemons, engines of a set pace (bench/paced.py)."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from bench import paced
from tests.server.daemons import Node, mesh_of, tier, wait_for
from tests.server.daemons import words as words_of

pytestmark = pytest.mark.server

SMALL = "500MB"  # a model of which the weights are read takes 0.8 GB by its estimate
READ_MS = {"ada": 1.0, "bob": 4.0, "cyd": 10.0}  # of `uneven`
_numbers = itertools.count()


class Answer(NamedTuple):
    id: str
    node: str
    model: str
    text: str
    ttft_s: float
    usage: dict[str, Any]

    @property
    def cached(self) -> int:
        return int(self.usage["prompt_tokens_details"]["cached_tokens"])


@pytest.fixture(scope="module")
def trio(short_folder: Path) -> Iterator[tuple[Node, Node, Node]]:
    """ada coordinates. bob and cyd have the same `even` and `queued`, and each a `standard` of its own. All three have
    `uneven`, each at its own pace."""
    tiers = {name: [engine("uneven", read_ms=read_ms, write_ms=5 * read_ms)] for name, read_ms in READ_MS.items()}
    for name in ("bob", "cyd"):
        tiers[name] += [engine("even", read_ms=2), engine("queued", read_ms=20, slots=2)]
        tiers[name] += [engine("standard", f"model-of-{name}", read_ms=2)]
    mesh = mesh_of(short_folder, **{name: {"tiers": own, "memory_budget": SMALL} for name, own in tiers.items()})
    yield mesh[0], mesh[1], mesh[2]
    for node in reversed(mesh):
        node.stop()


def engine(name: str, model: str = "", **pace: float) -> dict[str, Any]:
    """A tier; `model` may be a directory, whose weights then count."""
    model, slots = model or name, int(pace.get("slots", 4))
    command = paced.command("{model}" if model.startswith("/") else model, **pace)
    return tier(model, name=name, engine="command", command=command, slots=slots)


def words(tokens: int) -> str:
    """A text of so many tokens, as the engines count them, that nobody has read before."""
    rng = random.Random(next(_numbers))
    return "".join(f"{rng.randrange(1000):03} " for _ in range(tokens))


async def ask(url: str, model: str, messages: list[dict[str, str]], tokens: int = 8) -> Answer:
    """An answer of so many tokens, streamed."""
    body = {"model": model, "messages": messages, "max_tokens": tokens, "stream": True}
    clock = asyncio.get_running_loop().time
    began, first, text, usage = clock(), None, "", {}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session,
        session.post(f"{url}/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}}) as answer,
    ):
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            word = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else ""
            first = clock() if word and first is None else first
            text += word or ""
    assert first is not None
    headers = answer.headers
    name = headers.get("x-mesh-node", "")
    return Answer(headers.get("x-request-id", ""), name, headers.get("x-mesh-model", ""), text, first - began, usage)


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class Why(NamedTuple):
    """One decision: the seconds of each term by candidate, why the others could not, and what a person reads."""

    chosen: str
    terms: dict[str, dict[str, float]]
    excluded: dict[str, str]
    text: str


def why(node: Node, request: str) -> Why:
    """What `mesh routes --why` says, once the route is recorded."""

    wait_for(f"the route of {request}", lambda: any(r.id == request for r in node.client.routes(20).routes))
    decision = node.json("mesh", "routes", "--why", request)["decision"]
    terms = {c["node"]: {t["name"]: t["seconds"] for t in c["terms"]} for c in decision["candidates"] if c["terms"]}
    excluded = {c["node"]: c["excluded"] for c in decision["candidates"] if c["excluded"]}
    return Why(decision["chosen"], terms, excluded, node.cli("mesh", "routes", "--why", request).stdout)


def alone(term: str, found: Why, loser: str) -> None:
    """`term` made the difference between the chosen and the loser, all else being equal; and a person is told so."""
    differences = {name: found.terms[loser][name] - seconds for name, seconds in found.terms[found.chosen].items()}
    decided = differences.pop(term)
    assert decided > 0.2, found.text
    assert sum(map(abs, differences.values())) < 0.25 * decided, found.text
    assert f"decided is {term}" in found.text


def drain(node: Node, name: str, *, undrain: bool = False) -> None:
    """Until the whole mesh knows."""
    (node.client.undrain if undrain else node.client.drain)(name)
    state = "ok" if undrain else "draining"
    wait_for(f"{name} is {state}", lambda: {n.name: n.state for n in node.client.mesh_status().nodes}[name] == state)


async def test_availability_alone_decides(trio: tuple[Node, Node, Node]) -> None:
    ada, bob, cyd = trio
    for away, left in ((bob, cyd), (cyd, bob)):
        await asyncio.to_thread(drain, ada, away.name)
        try:
            answer = await ask(ada.url, "even", say("Hello"))
        finally:
            await asyncio.to_thread(drain, ada, away.name, undrain=True)
        assert answer.node == left.name
        found = await asyncio.to_thread(why, ada, answer.id)
        assert list(found.terms) == [found.chosen] == [left.name]
        assert "draining" in found.excluded[away.name]
        assert "not served there" in found.excluded["ada"]
        assert f"{left.name} was the only one that could serve it" in found.text
        assert f"{away.name} could not: draining" in found.text


async def test_headroom_alone_decides(trio: tuple[Node, Node, Node], tiny_model: Path, other_tiny_model: Path) -> None:
    """Both have to load the model; the less it leaves of a node's memory, the sooner the next load there must evict."""
    ada, bob, cyd = trio
    for model, poor, rich in ((tiny_model, bob, cyd), (other_tiny_model, cyd, bob)):
        name, before = model.name, {node: node.tiers for node in (bob, cyd)}
        try:
            for node in (bob, cyd):  # There is no room yet: it is not loaded when it is found in the stack file.
                node.stack([*before[node], engine(name, str(model), read_ms=2)])
            for node in (bob, cyd):
                await asyncio.to_thread(wait_for, f"{name} is absent", partial(is_absent, node, name))
            poor.configure(memory_budget="1GB")
            rich.configure(memory_budget="30GB")
            await asyncio.to_thread(wait_for, "both have room", partial(all_have_room, ada, name))
            answer = await ask(ada.url, name, say("Hello"))
            assert answer.node == rich.name
            alone("headroom", await asyncio.to_thread(why, ada, answer.id), poor.name)
        finally:
            for node in (bob, cyd):
                node.stack(before[node])
                node.configure(memory_budget=SMALL)


def is_absent(node: Node, model: str) -> bool:
    return node.model(model).state == "absent"


def all_have_room(node: Node, model: str) -> bool:
    """Both that hold `model`, as that node knows."""
    held = [(n.memory, m) for n in node.client.mesh_status().nodes for m in n.models if m.name == model]
    return [memory.headroom_bytes > m.size_bytes for memory, m in held] == [True, True]


async def test_queue_depth_alone_decides(trio: tuple[Node, Node, Node]) -> None:
    """Two that are alike in all else: one has prompts to read first."""
    ada, bob, cyd = trio
    for busy, free in ((bob, cyd), (cyd, bob)):
        await asyncio.to_thread(drain, ada, free.name)
        before = asyncio.ensure_future(ask(ada.url, "queued", say(words(3000))))  # Read for a minute.
        try:
            await asyncio.to_thread(wait_for, "it is read", lambda node=busy: node.model("queued").in_flight == 1)
            await asyncio.to_thread(drain, ada, free.name, undrain=True)
            answer = await ask(ada.url, "queued", say("Hello"))
        finally:
            before.cancel()
            await asyncio.wait({before})
        assert answer.node == free.name
        alone("wait", await asyncio.to_thread(why, ada, answer.id), busy.name)
        await asyncio.to_thread(wait_for, "it has ended", lambda node=busy: node.model("queued").in_flight == 0)


async def talk(url: str, model: str, before: list[dict[str, str]], turns: int) -> list[Answer]:
    """So many more turns of a conversation, which `before` is grown by; a stranger asks in between."""
    answers = []
    for _ in range(turns):
        before += say(words(100))
        answers.append(await ask(url, model, before))
        before.append({"role": "assistant", "content": answers[-1].text})
        await ask(url, model, say(words(40)))
    return answers


async def test_a_conversation_stays_where_its_cache_is_and_moves_when_that_node_drains(
    trio: tuple[Node, Node, Node],
) -> None:
    ada, bob, cyd = trio
    said: list[dict[str, str]] = [{"role": "system", "content": words(100)}]
    turns = await talk(ada.url, "even", said, 10)
    home = turns[0].node
    assert {turn.node for turn in turns} == {home}
    cached = [turn.cached for turn in turns]
    assert cached[0] == 0
    assert all(later > before + 90 for before, later in itertools.pairwise(cached)), cached
    assert "are in its prompt cache" in (await asyncio.to_thread(why, ada, turns[-1].id)).text
    (other,) = {bob.name, cyd.name} - {home}
    await asyncio.to_thread(drain, ada, home)
    try:
        moved = await talk(ada.url, "even", said, 3)
    finally:
        await asyncio.to_thread(drain, ada, home, undrain=True)
    assert {turn.node for turn in moved} == {other}
    assert moved[0].cached == 0, "nobody there has read it"
    assert [turn.cached > cached[-1] for turn in moved[1:]] == [True, True]
    after = await talk(ada.url, "even", said, 2)
    assert {turn.node for turn in after} == {other}, "its cache is there now"


async def test_one_name_for_two_models_is_served_by_both_and_a_conversation_keeps_to_one(
    trio: tuple[Node, Node, Node],
) -> None:
    ada = trio[0]
    talks: list[list[dict[str, str]]] = [[{"role": "system", "content": words(60)}] for _ in range(4)]
    turns: list[list[Answer]] = [[] for _ in talks]
    for _ in range(4):  # All at once, so that neither node can serve them all at once.
        for number, more in enumerate(await asyncio.gather(*(talk(ada.url, "standard", t, 1) for t in talks))):
            turns[number] += more
    models = {turn.node: turn.model for answers in turns for turn in answers}
    assert models == {"bob": "model-of-bob", "cyd": "model-of-cyd"}, "both serve it"
    for answers in turns:
        assert len({turn.model for turn in answers}) == 1, "each conversation keeps to one"
    found = await asyncio.to_thread(why, ada, turns[0][-1].id)
    assert list(found.terms) == [turns[0][0].node]
    assert "began with other weights" in " ".join(found.excluded.values())


async def burst(ask_one: Callable[[], Awaitable[Answer]], count: int, clients: int) -> list[Answer]:
    """So many requests of clients that ask again when they are answered."""
    left = iter(range(count))

    async def client() -> list[Answer]:
        return [await ask_one() for _ in left]

    return list(itertools.chain(*await asyncio.gather(*(client() for _ in range(clients)))))


async def test_learned_speeds_order_the_nodes_and_beat_round_robin(
    trio: tuple[Node, Node, Node], capsys: pytest.CaptureFixture[str]
) -> None:
    ada = trio[0]

    async def placed() -> Answer:
        return await ask(ada.url, "uneven", say(words(150)), 16)

    servers = itertools.cycle([server(node, "uneven") for node in trio])

    async def in_turn() -> Answer:
        return await ask(next(servers), "uneven", say(words(150)), 16)

    learning = await burst(placed, 30, clients=6)
    last = await ask(ada.url, "uneven", say(words(150)), 16)
    found = await asyncio.to_thread(why, ada, last.id)
    assert {answer.node for answer in learning} == {"ada", "bob", "cyd"}
    assert "expected of this hardware" not in found.text, found.text
    for term in ("prefill", "decode"):
        assert sorted(found.terms, key=lambda node: found.terms[node][term]) == ["ada", "bob", "cyd"], found.text
    ours = await burst(placed, 30, clients=6)
    theirs = await burst(in_turn, 30, clients=6)
    means = [statistics.fmean(a.ttft_s for a in answers) for answers in (learning, ours, theirs)]
    with capsys.disabled():
        print(
            f"\nmean TTFT: {means[0]:.2f} s of the first 30, {means[1]:.2f} s of the next 30, "
            f"{means[2]:.2f} s by round robin: {means[1] / means[2]:.2f}x; "
            f"{dict(Counter(a.node for a in ours))}"
        )
    assert means[1] < means[2]
    assert means[0] < means[2]


def server(node: Node, model: str) -> str:
    """Where the engine of `model` listens."""
    command = next(c for c in map(words_of, node.children()) if "bench.paced" in c and model in c)
    return f"http://127.0.0.1:{command[command.index('--port') + 1]}"
