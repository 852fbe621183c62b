"""What `mesh status` counts is a partition: each open request is in exactly one number, whoever is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import NamedTuple

import msgspec
import pytest

from mesh.answers import MeshStatus
from tests.server.daemons import Node, agree, wait_for

pytestmark = pytest.mark.server

OPEN = 20
WAITING = OPEN - 8  # two nodes with four slots each run eight
LOOKS = 60
TRIALS = 4  # a machine too busy to send a heartbeat in time makes the mesh lose a node: such a trial is void


class Look(NamedTuple):
    """One look at `mesh status`: what the mesh says is open, what its nodes say, and what waits at the coordinator."""

    mesh: int
    nodes: int
    waiting: int
    calm: tuple[int, bool]  # its term, and whether every node is there


def look(node: Node, *, cli: bool = False) -> Look:
    """As the command line prints it, or as the admin API answers it."""
    found = msgspec.convert(node.json("mesh", "status"), MeshStatus) if cli else node.client.mesh_status()
    mesh, by_node = found.mesh, sum(n.in_flight + n.queue_depth for n in found.nodes)
    states = all(n.state in ("ok", "suspect") for n in found.nodes)
    return Look(mesh.queue_depth + mesh.in_flight, mesh.queue_depth + by_node, mesh.queue_depth, (mesh.term, states))


async def trial(trio: tuple[Node, Node, Node]) -> list[Look] | None:
    """Looks while 20 requests are open, from each node in turn; None when the mesh was disturbed meanwhile."""
    ada, bob, cyd = trio
    clients = [n.async_openai() for n in trio]

    async def hold(number: int) -> None:
        client = clients[number % 3]
        stream = await client.completions.create(model="slow", prompt=f"{number}", max_tokens=8000, stream=True)
        async for _ in stream:
            pass

    asking = [asyncio.ensure_future(hold(number)) for number in range(OPEN)]
    try:
        calm = (await asyncio.to_thread(look, ada)).calm
        for one in trio:
            await asyncio.to_thread(
                wait_for, "all are open and placed", lambda one=one: look(one)[:3] == (OPEN, OPEN, WAITING)
            )
        looks: list[Look] = []
        for number in range(LOOKS + 1):
            asked = (ada, cyd, bob)[number % 3]
            looks.append(await asyncio.to_thread(look, asked, cli=number % 10 == 0))
            if looks[-1].calm != calm or any(task.done() for task in asking):
                return None
        return looks[:-1]  # the last one proved that the others were not disturbed
    finally:
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        for client in clients:
            await client.close()


async def test_twenty_open_requests_add_up_at_every_look_from_every_node(trio: tuple[Node, Node, Node]) -> None:
    for void in range(TRIALS):
        await asyncio.to_thread(agree, *trio)
        looks = await trial(trio)
        for one in trio:
            await asyncio.to_thread(wait_for, "nothing is open", lambda one=one: look(one)[:3] == (0, 0, 0))
        if looks is not None:
            break
        print(f"void: {void + 1}")
    else:
        pytest.fail(f"{TRIALS} trials, each disturbed: the machine is too busy, or nodes are lost without a reason")
    assert Counter((one.mesh, one.nodes) for one in looks) == {(OPEN, OPEN): LOOKS}
    assert {one.waiting for one in looks} == {WAITING}
