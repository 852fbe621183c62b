"""Two nodes that serve one model and an edge before them, in network namespaces; and the ways to cut a stream there.

mac1 is the edge and coordinates; mac2 and mac3 serve. What is cut comes back: `mended` gives the mesh whole again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from bench.talk import Talker
from mesh.answers import Route
from mesh.client import MeshClientError
from tests.lab.macs import Mac, agreed, revive
from tests.lab.netlab import Lab

WHOLE_S = 240.0  # until two nodes have loaded their model again, on a busy machine
ROUTE_S = 30.0
LOOK_S = 0.1
WORKER = "node.io.mlx_worker"


class MeshError(Exception):
    """The mesh does not become what the bench needs."""


async def comes(holds: Callable[[], object], limit_s: float) -> bool:
    """Whether it holds within that time; asked in a thread, again and again."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if await asyncio.to_thread(holds):
            return True
        await asyncio.sleep(LOOK_S)
    return False


@dataclass
class Pair:
    """The mesh of three."""

    lab: Lab
    macs: list[Mac]
    talkers: dict[str, Talker]
    model: str
    hurt: list[Mac] = field(default_factory=list)  # whose worker was killed or frozen
    drained: list[Mac] = field(default_factory=list)

    @property
    def edge(self) -> Mac:
        return self.macs[0]

    @property
    def serving(self) -> list[Mac]:
        return self.macs[1:]

    def mac(self, name: str) -> Mac:
        return next(mac for mac in self.macs if mac.name == name)

    async def whole(self, limit_s: float = WHOLE_S) -> None:
        """Until all agree and both can answer. Raises MeshError."""
        if not await comes(lambda: agreed(self.macs), limit_s):
            raise MeshError(f"the mesh is not whole within {limit_s:.0f} s: {self.macs[0].tail()}")

    async def mended(self) -> None:
        """Takes back what was done, and waits until nothing of it is to be seen. Raises MeshError."""
        await asyncio.to_thread(self.lab.rejoin)
        await asyncio.to_thread(revive, self.macs)
        for mac in self.hurt:  # its operator: the node itself would wait longer with each of its worker's deaths
            await asyncio.to_thread(_load, mac, self.model)
        for mac in self.drained:
            await asyncio.to_thread(mac.client.undrain, mac.name)
        self.hurt.clear()
        self.drained.clear()
        await self.whole()

    async def route(self, entry: Mac, request: str) -> Route | None:
        """What the edge wrote down of this request; None when it has nothing (its daemon was the one to die)."""
        end = time.monotonic() + ROUTE_S
        while request and time.monotonic() < end:
            with suppress(MeshClientError):
                return await asyncio.to_thread(entry.client.route, request)
            await asyncio.sleep(LOOK_S)
        return None

    async def runs_on(self, limit_s: float) -> Mac | None:
        """Who works on the one request that is open; None when nobody does in time."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            for mac in self.serving:
                status = await asyncio.to_thread(mac.status)
                own = [n for n in status.nodes if n.name == mac.name] if status else []
                if any(model.in_flight for node in own for model in node.models):
                    return mac
        return None


def _load(mac: Mac, model: str) -> None:
    end = time.monotonic() + WHOLE_S
    while time.monotonic() < end:
        try:
            mac.client.load(model)
        except MeshClientError:
            time.sleep(LOOK_S)
        else:
            return


@asynccontextmanager
async def pair(folder: Path, model: Path, *, slots: int, name: str = "") -> AsyncIterator[Pair]:
    """The mesh, whole. Everything is gone at the end."""
    async with AsyncExitStack() as stack:
        lab = stack.enter_context(Lab(3, name=f"x{os.getpid()}{name}"))
        macs = [Mac(lab, "mac1", folder, mesh_priority=200)]
        macs += [Mac(lab, f"mac{n}", folder, model=model, mesh_priority=100) for n in (2, 3)]
        for mac in macs:
            if mac.model:
                serve(mac, model, slots)
            mac.start()
        talkers = {mac.name: await stack.enter_async_context(Talker(lab, mac.name)) for mac in macs}
        mesh = Pair(lab, macs, talkers, model.name)
        await mesh.whole()
        yield mesh


def serve(mac: Mac, model: Path, slots: int) -> None:
    """Its stack file: the model, so many answers at a time (the worker's --decode-concurrency)."""
    tier = {"name": "only", "model": str(model), "slots": slots}
    stack = {"schema_version": 1, "name": "lab", "tiers": [tier]}
    (mac.home / "stacks" / "default.yaml").write_text(yaml.safe_dump(stack))


# The cuts


def worker_of(mac: Mac) -> psutil.Process:
    """Its model server. Raises MeshError."""
    for pid in mac.processes():
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if WORKER in process.cmdline():
                return process
    raise MeshError(f"{mac.name} has no worker")


def kill_worker(mesh: Pair, mac: Mac) -> None:
    mesh.hurt.append(mac)
    worker_of(mac).send_signal(signal.SIGKILL)


def freeze_worker(mesh: Pair, mac: Mac) -> None:
    mesh.hurt.append(mac)
    worker_of(mac).send_signal(signal.SIGSTOP)


def kill_daemon(_: Pair, mac: Mac) -> None:
    mac.kill()


def freeze_daemon(_: Pair, mac: Mac) -> None:
    mac.freeze()


def cut_link(mesh: Pair, mac: Mac) -> None:
    mesh.lab.cut(mac.name)


def drain_now(mesh: Pair, mac: Mac) -> None:
    mesh.drained.append(mac)
    mac.client.drain(mac.name, now=True)


CutOff = Callable[[Pair, Mac], None]
KINDS: dict[str, CutOff] = {
    "worker killed": kill_worker,
    "worker frozen": freeze_worker,
    "daemon killed": kill_daemon,
    "daemon frozen": freeze_daemon,
    "link cut": cut_link,
    "drained at once": drain_now,
}
AT_ITS_OWN = (
    "worker killed",
    "worker frozen",
    "drained at once",
)  # these leave the node's own edge alive: its clients may be hit too
