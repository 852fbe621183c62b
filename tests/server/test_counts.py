"""What `mesh status` counts is a partition: each open request is in exactly one number, whoever is asked."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest

from mesh.answers import MeshStatus
from tests.server.daemons import Node, wait_for

pytestmark = pytest.mark.server

OPEN = 20
LOOKS = 60


def counted(status: MeshStatus) -> tuple[int, int, int]:
    """(all as the mesh says, all as the nodes say, waiting at the coordinator)."""
    mesh = status.mesh
    by_node = sum(n.in_flight + n.queue_depth for n in status.nodes)
    return mesh.queue_depth + mesh.in_flight, mesh.queue_depth + by_node, mesh.queue_depth


def look(node: Node, *, cli: bool = False) -> tuple[int, int, int]:
    """One look, as the command line prints it or as the admin API answers it."""
    return counted(msgspec.convert(node.json("mesh", "status"), MeshStatus) if cli else node.client.mesh_status())


async def test_twenty_open_requests_add_up_at_every_look_from_every_node(trio: tuple[Node, Node, Node]) -> None:
    ada, bob, cyd = trio
    clients = [n.async_openai() for n in trio]

    async def hold(number: int) -> None:
        client = clients[number % 3]
        stream = await client.completions.create(model="slow", prompt=f"{number}", max_tokens=8000, stream=True)
        async for _ in stream:
            pass

    asking = [asyncio.ensure_future(hold(number)) for number in range(OPEN)]
    try:
        looks: list[tuple[int, int, int]] = []
        await asyncio.to_thread(wait_for, "all are open", lambda: look(ada)[0] == OPEN)
        for number in range(LOOKS):
            asked = (ada, cyd, bob)[number % 3]
            looks.append(await asyncio.to_thread(look, asked, cli=number % 10 == 0))
            await asyncio.sleep(0.05)
            if any(task.done() for task in asking):
                break
        assert not any(task.done() for task in asking), f"the generations were too short: {looks}"
        assert Counter((mesh, nodes) for mesh, nodes, _ in looks) == {(OPEN, OPEN): LOOKS}
        assert all(waiting == OPEN - 8 for *_, waiting in looks), "two nodes with four slots each run eight"
        own = await asyncio.to_thread(bob.own)
        assert (own.in_flight, own.queue_depth) == (4, 0)
        assert sum(m.in_flight for m in own.models) == 4
    finally:
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        for client in clients:
            await client.close()
    for one in trio:
        await asyncio.to_thread(wait_for, "nothing is open", lambda one=one: look(one) == (0, 0, 0))
