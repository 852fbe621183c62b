"""Five nodes in network namespaces, and one random fault after the other on them, with one healthy replica always left.

mac1 to mac3 serve, mac4 and mac5 do not. With `edges` all five may be hit and may coordinate, and the clients are on a
sixth machine that goes by the mesh's name; else clients ask at mac4 and mac5, which never coordinate and are spared.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.audit_count import Fault, Held
from bench.exact_mesh import WHOLE_S, MeshError, comes, serve, worker_of
from bench.talk import Talker
from mesh.client import MeshClientError
from tests.lab.macs import Mac, agreed
from tests.lab.netlab import Lab
from tests.lab.told import monotonic

HOLD_S = (3.0, 9.0)  # a fault lasts so long; what takes longer is the coming back
URL, NAMED = "http://localhost:4000/v1", "http://mlx-mesh.local:4000/v1"
CLIENT = "mac6"
QUIET_S = 90.0  # until nothing is open any more
SLOTS = 4


@dataclass
class Five:
    """The mesh. `talkers` with the URL that their clients ask."""

    lab: Lab
    macs: list[Mac]
    talkers: list[tuple[Talker, str]]
    model: str
    edges: bool
    faults: list[Fault] = field(default_factory=list)
    skipped: int = 0
    _mending: set[asyncio.Task[None]] = field(default_factory=set)
    _hurt: set[str] = field(default_factory=set)  # names of those that are under a fault, or not yet back

    @property
    def replicas(self) -> list[Mac]:
        return [mac for mac in self.macs if mac.model]

    @property
    def targets(self) -> list[Mac]:
        return self.macs if self.edges else self.replicas

    @property
    def spared(self) -> list[Mac]:
        return [mac for mac in self.macs if mac not in self.targets]

    async def whole(self, limit_s: float = WHOLE_S) -> None:
        """Until all agree. Raises MeshError."""
        if not await comes(lambda: agreed(self.macs), limit_s):
            raise MeshError(f"the mesh is not whole within {limit_s:.0f} s")

    async def hit(self, rng: random.Random) -> None:
        """One fault, which is taken back by itself; none when nobody can be spared."""
        states = await self._healthy()
        coordinator = await self._coordinator()
        # Clients that go by the name have one edge, the coordinator: it is hit as often as anything else.
        kind = rng.choice([*FAULTS, *["coordinator"] * (len(FAULTS) if self.edges else 1)])
        left = [mac for mac in self.targets if self._may_lose(mac, states)]
        if kind == "coordinator":
            left = [mac for mac in left if mac.name == coordinator]
        elif kind in OF_REPLICAS:
            left = [mac for mac in left if mac.model]
        if not left:
            self.skipped += 1
            return
        mac = rng.choice(left)
        what = rng.choice(LETHAL) if kind == "coordinator" else kind
        fault = Fault(kind=what, node=mac.name, address=mac.ip, start=time.monotonic(),
                      coordinated=mac.name == coordinator)  # fmt: skip
        self.faults.append(fault)
        self._hurt.add(mac.name)
        task = asyncio.create_task(self._under(fault, mac, rng.uniform(*HOLD_S)))
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)

    async def mended(self) -> None:
        """Until every fault is taken back and the mesh is whole. Raises MeshError."""
        await asyncio.gather(*self._mending)
        await self.whole()

    def _may_lose(self, mac: Mac, healthy: set[str]) -> bool:
        """A healthy node that no fault lies on, beside which there is a healthy replica."""
        if mac.name in self._hurt or (mac.model and mac.name not in healthy):
            return False
        return any(other.name in healthy - self._hurt for other in self.replicas if other is not mac)

    async def _healthy(self) -> set[str]:
        """Replicas that some node calls well, and whose own daemon says that its model can answer."""
        found = set()
        for mac in self.replicas:
            status = await asyncio.to_thread(mac.status) if mac.name not in self._hurt else None
            own = [n for n in status.nodes if n.name == mac.name] if status else []
            if any(n.state == "ok" and all(m.state in ("ready", "busy") for m in n.models) for n in own):
                found.add(mac.name)
        return found

    async def _coordinator(self) -> str | None:
        """As somebody says who is well."""
        for mac in (*self.spared, *self.macs):
            status = await asyncio.to_thread(mac.status) if mac.name not in self._hurt else None
            if status is not None and status.mesh.coordinator:
                return status.mesh.coordinator
        return None

    async def _under(self, fault: Fault, mac: Mac, hold_s: float) -> None:
        """The fault, for so long; then it is taken back, and the node waited for."""
        begin, mend = FAULTS[fault.kind]
        with suppress(MeshError, MeshClientError):
            await asyncio.to_thread(begin, self, mac)
        await asyncio.sleep(hold_s)
        await comes(lambda: _done(mend, self, mac), WHOLE_S)
        await comes(lambda: _well(mac), WHOLE_S)
        fault.end = time.monotonic()
        self._hurt.discard(mac.name)

    def stalls(self, since: float) -> list[str]:
        """Each time that a daemon noticed that it had not run for seconds, though no fault lay on it: a machine too
        busy for a mesh of five, whose refusals say nothing of the mesh."""
        found = []
        for mac in self.macs:
            for line in mac.output.splitlines():
                if '"event":"woke"' in line and (at := monotonic(json.loads(line)["at"])) >= since:
                    mine = [f for f in self.faults if f.node == mac.name]
                    if not any(f.start <= at and (not f.end or at <= f.end) for f in mine):
                        found.append(f"{mac.name}: {json.loads(line)['message']}")
        return found

    # What daemons hold

    async def quiet(self, macs: list[Mac]) -> list[Held]:
        """Once they have nothing open; or what they hold then."""
        await comes(lambda: not any(_held(mac).open for mac in macs), QUIET_S)
        return [_held(mac) for mac in macs]


def _done(act: Act, mesh: Five, mac: Mac) -> bool:
    """Whether its daemon was there to do it."""
    try:
        act(mesh, mac)
    except MeshClientError:
        return False
    return True


def _held(mac: Mac) -> Held:
    assert mac.process is not None
    process, status = psutil.Process(mac.process.pid), mac.said()
    own = [model for node in status.nodes if node.name == mac.name for model in node.models]
    return Held(
        process.num_fds(),
        process.num_threads(),
        process.memory_full_info().pss,
        status.mesh.in_flight + status.mesh.queue_depth + sum(model.in_flight for model in own),
    )


def _well(mac: Mac) -> bool:
    """It is back: follows somebody, and its model can answer."""
    status = mac.status()
    own = [n for n in status.nodes if n.name == mac.name] if status else []
    return bool(status and status.mesh.coordinator) and all(
        n.state == "ok" and all(m.state in ("ready", "busy") for m in n.models) and bool(n.models) == bool(mac.model)
        for n in own
    )


# The faults: how each begins, and how it is taken back. MeshClientError: it shall be tried again.


def _kill_worker(_: Five, mac: Mac) -> None:
    worker_of(mac).send_signal(signal.SIGKILL)


def _load(mesh: Five, mac: Mac) -> None:
    """What the operator of a node does whose worker dies too often; for one that comes back by itself nothing."""
    mac.client.load(mesh.model)


def _kill(_: Five, mac: Mac) -> None:
    mac.kill()


def _start(_: Five, mac: Mac) -> None:
    mac.start()


def _cut(mesh: Five, mac: Mac) -> None:
    mesh.lab.cut(mac.name)


def _restore(mesh: Five, mac: Mac) -> None:
    mesh.lab.restore(mac.name)


def _freeze(_: Five, mac: Mac) -> None:
    mac.freeze()


def _thaw(_: Five, mac: Mac) -> None:
    mac.thaw()


def _drain(_: Five, mac: Mac) -> None:
    mac.client.drain(mac.name)


def _drain_now(_: Five, mac: Mac) -> None:
    mac.client.drain(mac.name, now=True)


def _undrain(_: Five, mac: Mac) -> None:
    mac.client.undrain(mac.name)


Act = Callable[[Five, Mac], None]
FAULTS: dict[str, tuple[Act, Act]] = {
    "worker killed": (_kill_worker, _load),
    "daemon killed": (_kill, _start),
    "link cut": (_cut, _restore),
    "daemon frozen": (_freeze, _thaw),
    "drained": (_drain, _undrain),
    "drained at once": (_drain_now, _undrain),
}
OF_REPLICAS = ("worker killed", "drained", "drained at once")
LETHAL = ("daemon killed", "link cut", "daemon frozen")  # what befalls a coordinator


@asynccontextmanager
async def five(folder: Path, model: Path, *, edges: bool, timeout_s: int) -> AsyncIterator[Five]:
    """The mesh, whole. Everything is gone at the end."""
    async with AsyncExitStack() as stack:
        lab = stack.enter_context(Lab(6 if edges else 5, name=f"a{os.getpid()}"))
        macs = []
        for number in range(1, 6):
            own = model if number < 4 else None
            priority = 100 if own or edges else 0
            mac = Mac(lab, f"mac{number}", folder, model=own, mesh_priority=priority, request_timeout=timeout_s)
            if own:
                serve(mac, own, SLOTS)
            macs.append(mac)
        if edges:
            lab.avahi(CLIENT)
        for mac in macs:
            if edges:  # a node takes the name only where a router answers
                lab.run(mac.name, ["ip", "route", "add", "default", "via", lab.ip(CLIENT)], check=True)
            mac.start()
        places = [(CLIENT, NAMED)] if edges else [(mac.name, URL) for mac in macs[3:]]
        talkers = [(await stack.enter_async_context(Talker(lab, name)), url) for name, url in places]
        mesh = Five(lab, macs, talkers, model.name, edges)
        await mesh.whole()
        yield mesh
