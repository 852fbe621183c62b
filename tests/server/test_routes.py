"""The history of requests: every attempt, why each node was chosen, gathered from every edge."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.server.daemons import Node, agree, freeze, mesh_of, tier, wait_for

pytestmark = pytest.mark.server

ROUTE = {
    *("id", "client_request_id", "at", "edge", "node", "coordinator", "model", "served_model", "stream", "status"),
    *("outcome", "queue_ms", "ttft_ms", "total_ms", "prompt_tokens", "cached_tokens", "completion_tokens"),
    *("attempts", "decision", "key", "resumable", "lost"),
}
HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def pair_up(short_folder: Path, tiny_model: Path, slow_model: Path) -> Iterator[tuple[Node, Node, Node]]:
    """A mesh of its own, for its workers are killed: eve coordinates with no model, fay and gus have the same two."""
    tiers = [tier(tiny_model, name="quick"), tier(slow_model, name="slow")]
    nodes = mesh_of(short_folder, eve={"tiers": None}, fay={"tiers": tiers}, gus={"tiers": tiers})
    yield nodes[0], nodes[1], nodes[2]
    for node in reversed(nodes):
        node.stop()


@pytest.fixture
def pair(pair_up: tuple[Node, Node, Node]) -> tuple[Node, Node, Node]:
    """They agree: a machine too busy to send heartbeats in time may have made them lose each other meanwhile."""
    agree(*pair_up)
    return pair_up


def recorded(node: Node, count: int) -> list[dict[str, Any]]:
    """The newest `count` routes as `mesh routes --json` on `node` prints them."""
    found: dict[str, Any] = node.json("mesh", "routes", "--last", str(count))
    assert set(found) == {"routes", "unreachable"}
    return list(found["routes"])


def by_client_id(node: Node, name: str) -> dict[str, Any]:
    """The route of the request that its client called `name`, once it is recorded."""

    def found() -> dict[str, Any] | None:
        return next((r for r in recorded(node, 20) if r["client_request_id"] == name), None)

    route = wait_for(f"the route of {name}", found)
    assert isinstance(route, dict)
    return route


def check(route: dict[str, Any], names: set[str]) -> None:
    """What holds for every route."""
    assert set(route) == ROUTE
    assert route["at"].endswith("Z")
    assert len(route["at"]) == len("2026-01-02T03:04:05.678Z")
    assert route["edge"] in names
    assert route["total_ms"] >= (route["ttft_ms"] or 0) >= 0
    for attempt in route["attempts"]:
        assert set(attempt) == {"node", "outcome", "error", "ms", "mode", "cut"}
        assert attempt["node"] in names
    decision = route["decision"]
    if decision is None:
        assert route["outcome"] == "cancelled", "what was answered or refused was decided"
        return
    assert (decision["chosen"] is None) == ("refused" in decision["request"])
    assert set(decision) == {"request", "chosen", "waited_ms", "candidates"}
    assert decision["chosen"] in {None, *names}
    for candidate in decision["candidates"]:
        assert set(candidate) == {"node", "model", "total_s", "terms", "excluded"}
        assert candidate["node"] in names
        assert (candidate["total_s"] is None) == (candidate["excluded"] is not None)
        if candidate["total_s"] is not None:
            assert sum(t["seconds"] for t in candidate["terms"]) == pytest.approx(candidate["total_s"], abs=1e-6)
            assert all(set(t) == {"name", "seconds", "why"} and t["why"] for t in candidate["terms"])
    usable = [c for c in decision["candidates"] if c["total_s"] is not None]
    if usable and decision["chosen"] is not None:
        assert decision["chosen"] == min(usable, key=lambda c: c["total_s"])["node"]


async def ask(node: Node, name: str, **body: Any) -> aiohttp.ClientResponse:
    """A completion called `name` by its client; the answer has been read."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{node.url}/v1/completions", json=body, headers={"x-request-id": name}) as answer,
    ):
        await answer.read()
        return answer


def in_flight(*nodes: Node) -> Node | None:
    """Which of them works on `slow` now."""
    return next((n for n in nodes if n.model("slow").in_flight), None)


async def test_every_outcome_is_there_with_every_attempt(pair: tuple[Node, Node, Node]) -> None:
    eve, fay, gus = pair
    names = {n.name for n in pair}
    assert (await ask(eve, "ok-1", model="quick", prompt="a b", max_tokens=5)).status == 200
    assert (await ask(fay, "ok-2", model="quick", prompt="a b", max_tokens=5, stream=True)).status == 200
    assert (await ask(gus, "refused-1", model="nothing", prompt="a")).status == 404

    leaving = asyncio.ensure_future(ask(eve, "cancelled-1", model="slow", prompt="a", max_tokens=8000))
    await asyncio.to_thread(wait_for, "it runs", lambda: in_flight(fay, gus))
    leaving.cancel()
    await asyncio.wait({leaving})
    await asyncio.to_thread(wait_for, "it has left", lambda: in_flight(fay, gus) is None)

    retried = asyncio.ensure_future(ask(eve, "retried-1", model="slow", prompt="a", max_tokens=500))
    first = await asyncio.to_thread(wait_for, "it runs", lambda: in_flight(fay, gus))
    await asyncio.to_thread(lambda: first.worker_of("tiny-30-layers").kill())
    answer = await retried
    assert answer.status == 200, "a plain request whose worker is killed is answered by the other node"
    assert answer.headers["x-mesh-attempts"] == "2"

    found = await asyncio.to_thread(by_client_id, gus, "retried-1")
    assert [(a["node"], a["outcome"]) for a in found["attempts"]] == [
        (first.name, "failed"),
        (found["node"], "ok"),
    ]
    assert found["node"] in names - {first.name, "eve"}
    assert "SIGKILL" in found["attempts"][0]["error"]
    assert found["served_model"] == "tiny-30-layers"
    assert found["outcome"] in ("ok", "resumed"), "begun anew, or gone on with, as far as it had come"
    assert (found["status"], found["completion_tokens"]) == (200, 500)

    expected = ["retried-1", "cancelled-1", "refused-1", "ok-2", "ok-1"]
    routes: list[dict[str, Any]] = []

    def all_told() -> bool:
        routes[:] = recorded(fay, 5)
        return [r["client_request_id"] for r in routes] == expected

    await asyncio.to_thread(wait_for, "all five are told in their order", all_told)
    assert [r["outcome"] for r in routes] == [found["outcome"], "cancelled", "refused", "ok", "ok"]
    assert [r["edge"] for r in routes] == ["eve", "eve", "gus", "fay", "eve"], "each edge keeps its own"
    assert {r["coordinator"] for r in routes if r["decision"]} == {"eve"}
    assert [r["stream"] for r in routes] == [False, False, False, True, False]
    assert routes[2]["status"] == 404
    assert [r["completion_tokens"] for r in routes[3:]] == [5, 5]
    for route in routes:
        check(route, names)
    await asyncio.to_thread(fay.wait_models)
    await asyncio.to_thread(gus.wait_models)


async def test_why_for_a_person_and_as_json(pair: tuple[Node, Node, Node]) -> None:
    eve, fay, gus = pair
    answer = await ask(gus, "why-1", model="quick", prompt="one two three", max_tokens=4)
    id_ = answer.headers["x-request-id"]
    await asyncio.to_thread(by_client_id, fay, "why-1")
    for asked in pair:
        whole = await asyncio.to_thread(asked.json, "mesh", "routes", "--why", id_)
        assert whole["id"] == id_
        check(whole, {"eve", "fay", "gus"})
    assert await asyncio.to_thread(eve.json, "mesh", "routes", "--why", "why-1") == whole, "the client's own id works"
    assert await asyncio.to_thread(eve.json, "mesh", "routes", "--why", id_[:16]) == whole, "and a unique start"
    candidates = {c["node"]: c for c in whole["decision"]["candidates"]}
    assert set(candidates) == {"eve", "fay", "gus"}
    assert candidates["eve"]["excluded"]
    text = (await asyncio.to_thread(fay.cli, "mesh", "routes", "--why", id_)).stdout
    for part in (
        id_,
        "why-1",
        "came to    gus",
        "placed by  eve, the coordinator",
        "fay",
        "slots",
        "prefill",
        f"> {whole['decision']['chosen']}",
    ):
        assert part in text
    table = (await asyncio.to_thread(fay.cli, "mesh", "routes", "--last", "1")).stdout
    assert id_ in table
    unknown = await asyncio.to_thread(fay.cli, "mesh", "routes", "--why", "req-nothing", "--json", code=1)
    assert unknown.stdout == ""
    assert "req-nothing" in unknown.stderr


async def test_routes_are_followed_as_they_end(pair: tuple[Node, Node, Node]) -> None:
    eve, *_ = pair
    following = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mesh.cli", "mesh", "routes", "--follow", "--json"),
        env=eve.environment,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert following.stdout is not None
        line = asyncio.ensure_future(following.stdout.readline())
        async with asyncio.timeout(120):
            while not line.done():  # until the follower listens
                await ask(eve, "followed", model="quick", prompt="a", max_tokens=2)
        assert set(json.loads(line.result())) == ROUTE
    finally:
        following.kill()
        await following.wait()


async def test_a_worker_killed_while_it_streams_does_not_end_the_stream(pair: tuple[Node, Node, Node]) -> None:
    eve, fay, gus = pair
    async with eve.async_openai() as client:
        stream = await client.completions.create(model="slow", prompt="a", max_tokens=600, stream=True)
        runs = await asyncio.to_thread(wait_for, "it runs", lambda: in_flight(fay, gus))
        await asyncio.to_thread(lambda: runs.worker_of("tiny-30-layers").kill())
        finishes = [chunk.choices[0].finish_reason async for chunk in stream if chunk.choices]
    assert finishes[-1] == "length"
    assert set(finishes[:-1]) == {None}
    (route,) = await asyncio.to_thread(recorded, eve, 1)
    assert (route["outcome"], route["completion_tokens"]) == ("resumed", 600)
    await asyncio.to_thread(fay.wait_models)
    await asyncio.to_thread(gus.wait_models)


async def test_a_frozen_node_is_named_as_unreachable(pair: tuple[Node, Node, Node]) -> None:
    eve, fay, gus = pair
    await asyncio.to_thread(freeze, psutil.Process(gus.pid))
    try:
        at_once = await asyncio.to_thread(eve.json, "mesh", "routes", "--last", "3")
        assert at_once["unreachable"] == ["gus"]
        assert at_once["routes"]

        def gone() -> bool:
            seen = [n.state for one in (eve, fay) for n in one.client.mesh_status().nodes if n.name == "gus"]
            return seen == ["dead", "dead"]

        await asyncio.to_thread(wait_for, "the others miss gus", gone)
        for _ in range(3):
            assert (await ask(eve, "without-gus", model="quick", prompt="a", max_tokens=2)).status == 200
        assert (await asyncio.to_thread(fay.json, "mesh", "routes"))["unreachable"] == ["gus"]
        text = (await asyncio.to_thread(fay.cli, "mesh", "routes", "--last", "2")).stdout
        assert "gus" in text
    finally:
        gus.signal(signal.SIGCONT)
    await asyncio.to_thread(
        wait_for, "all are back", lambda: all(n.sees("eve", "fay", "gus", coordinator="eve") for n in pair)
    )
