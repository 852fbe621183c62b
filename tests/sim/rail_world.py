"""One node with more models than memory: the production host on a simulated clock, workers that are coroutines.

Sizes, load times, lies about sizes, requests, crashes, budgets and operators come from one seed.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from msgspec import structs

from node.errors import NodeError, NodeErrorCode
from node.facts import NodeFact
from node.headroom import Taken
from node.io.calls import Call
from node.io.engine import ModelSpec, WorkerStats
from node.io.flow import Flow, Sink
from node.io.footprint import Footprint
from node.io.host import Host
from node.io.hosted import Hosted
from node.io.measured import Measured
from node.io.probe import Probe
from node.io.roster import Roster
from node.openai import DONE
from node.rail import Rail
from node.rail_events import RailEffect, RailEvent
from node.settings import NodeSettings
from node.types import Hardware, NodeId, Pressure, RequestId, Resume
from tests.node.scripted import Scripted, served
from tests.sim.rail_loop import VirtualLoop

MIB = 2**20
SERVICE_S, LOAD_S, STOP_S = 20.0, 15.0, 3.0  # the most that a request, a load, an end of a worker takes
ATTEMPTS = 5  # of one request that meets a full node


@dataclass(frozen=True)
class Shape:
    """What one model of the world is, in truth and as it is thought to be."""

    name: str
    guess_bytes: int
    true_bytes: int
    load_s: float
    slots: int
    pinned: bool
    keep_alive: float | None
    every_s: float  # between two requests for it


class SimFootprint(Footprint):
    """Knows its guess without files; corrected by what is measured, as the real one."""

    def __init__(self, settings: NodeSettings, guess_bytes: int) -> None:
        super().__init__(settings, Measured())
        self._guess_bytes = guess_bytes

    def look(self, spec: ModelSpec, budget_bytes: int) -> None:
        self.size = self._sized()

    def remember(self) -> None:
        pass

    def _sized(self) -> int:
        taken = self._taken or Taken(0)
        return max(taken.base_bytes, taken.peak_bytes) or self._guess_bytes


class SimWorker:
    """Takes its time to start, answers for as long as the request's body says, can crash and takes time to end."""

    resume = Resume.REPLAY

    def __init__(self, shape: Shape, world: World) -> None:
        self.shape, self._world = shape, world
        self.log_name, self.pid = shape.name, 1000 + world.spawned
        self.streams = 0
        self.crash = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        self._world.starting.add(self)
        try:
            await asyncio.wait({self.crash}, timeout=self.shape.load_s * self._world.rng.uniform(0.5, 1.0))
            if self.crash.done() or self._world.rng.random() < self._world.start_fails:
                raise NodeError(NodeErrorCode.MODEL_FAILED, "out of memory while it loaded")
        finally:
            self._world.starting.discard(self)

    def pour(self, path: str, body: bytes, *, model_name: str, sink: Sink) -> Flow:
        self.streams += 1
        return Scripted(self._stream(body), sink, over=self._left)

    def _left(self) -> None:
        self.streams -= 1

    async def _stream(self, body: bytes) -> AsyncIterator[bytes]:
        yield b'data: {"choices": [{}]}\n\n'
        await asyncio.wait({self.crash}, timeout=float(body))
        if self.crash.done():
            raise NodeError(NodeErrorCode.MODEL_FAILED, "the worker broke off")
        yield DONE

    async def post(self, path: str, body: bytes, content_type: str) -> tuple[int, str, bytes]:
        raise NodeError(NodeErrorCode.PATH_NOT_SERVED, "no")

    async def probe(self) -> None:
        pass

    async def stats(self) -> WorkerStats:
        return WorkerStats(signs=round(asyncio.get_running_loop().time()))

    async def stop(self, grace_s: float) -> None:
        if self in self._world.living:
            await asyncio.sleep(STOP_S * self._world.rng.random())
        if self in self._world.living:
            self._world.living.remove(self)

    async def exited(self) -> str:
        return str(await asyncio.shield(self.crash))


class SimEngine:
    resume = Resume.REPLAY
    default_slots = 2

    def __init__(self, world: World) -> None:
        self._world = world

    def worker(self, spec: ModelSpec, on_progress: Callable[[str], None]) -> SimWorker:
        worker = SimWorker(self._world.shapes[spec.name], self._world)
        self._world.spawned += 1
        self._world.living.append(worker)
        return worker


class SimProbe(Probe):
    """The machine knows what each worker takes in truth; some grow."""

    def __init__(self, world: World) -> None:
        super().__init__("sim")
        self._world = world

    def hardware(self) -> Hardware:
        return Hardware(chip="sim", memory_bytes=16 * 2**30)

    def working_set_bytes(self) -> int:
        return 0

    def pressure(self) -> Pressure:
        return Pressure.NORMAL

    def frozen(self, pid: int) -> bool:
        return False

    def worker_bytes(self, pid: int, *, children: bool = False) -> int:
        return next((w.shape.true_bytes for w in self._world.living if w.pid == pid), 0)


class SimRail(Rail):
    """The rail, with somebody who looks at each of its steps."""

    def __init__(self, settings: NodeSettings, world: World) -> None:
        super().__init__(settings)
        self._world = world

    def step(self, event: RailEvent, now: float) -> list[RailEffect]:
        before = self.used_bytes
        effects = super().step(event, now)
        self._world.stepped(event, effects, before, now)
        return effects


class SimRoster(Roster):
    world: World

    def _hosted(self, spec: ModelSpec) -> Hosted:
        footprint = SimFootprint(self._settings, self.world.shapes[spec.name].guess_bytes)
        return Hosted(spec, self._engines[spec.engine], self._settings, footprint)


class SimHost(Host):
    def __init__(self, world: World, settings: NodeSettings, report: Callable[[NodeFact], None]) -> None:
        engines = {"command": SimEngine(world)}
        super().__init__(
            settings=settings,
            engines=engines,
            report=report,
            changed=lambda: None,
            probe=SimProbe(world),
        )
        self._keeper.rail = SimRail(settings, world)
        self._roster = SimRoster(
            settings=settings,
            engines=engines,
            measured=Measured(),
            keeper=self._keeper,
            report=report,
            changed=self._changed,
        )
        self._roster.world = world

    @property
    def rail(self) -> Rail:
        return self._keeper.rail

    def everyone(self) -> list[Hosted]:
        return self._roster.everyone()


class World:
    """A seeded node and its troubles. `checker` is shown every step of the rail, and every turn of the loop."""

    def __init__(self, seed: int, *, narrate: bool = False) -> None:
        self.rng = rng = Random(seed)
        self.loop = VirtualLoop()
        self.transcript: list[str] | None = [] if narrate else None
        self.digest = 0
        self.outcomes: dict[str, int] = {}
        self.spawned = 0
        self.living: list[SimWorker] = []
        self.starting: set[SimWorker] = set()
        self.alone = rng.random() < 0.3
        self.start_fails = rng.choice((0.0, 0.0, 0.05))
        self.budget = MIB * rng.randint(8, 24)
        self.shapes = {s.name: s for s in self._make_shapes()}
        self.settings = NodeSettings(
            memory_budget_bytes=self.budget,
            request_gap_s=rng.choice((0.0, 5.0, 15.0)),
            idle_timeout_s=rng.choice((None, -1.0, 30.0, 60.0)),
            turn_s=rng.choice((10.0, 20.0)),
            stats_every_s=5.0,
            measure_every_s=5.0,
            probe_every_s=60.0,
            backoff_cap_s=10.0,
        )
        self.on_rail: Callable[[RailEvent, list[RailEffect], int, float], None] = lambda *_: None
        self.host = SimHost(self, self.settings, lambda _: None)

    def _make_shapes(self) -> list[Shape]:
        rng, shapes, pinned = self.rng, list[Shape](), 0
        for number in range(rng.randint(2, 6)):
            size = max(1, round(self.budget / MIB * rng.uniform(0.1, 0.8)))
            lie = rng.choice((1.0, 1.0, 1.0, 0.8, 1.15, 1.4))
            pin = rng.random() < 0.15 and pinned + size * lie <= self.budget / MIB / 3
            pinned += round(size * lie) if pin else 0
            shapes.append(
                Shape(
                    name=f"m{number}",
                    guess_bytes=size * MIB,
                    true_bytes=round(size * lie * MIB),
                    load_s=rng.uniform(0.5, LOAD_S),
                    slots=rng.randint(1, 4),
                    pinned=pin,
                    keep_alive=rng.choice((None, None, None, 0.0, 20.0, -1.0)),
                    every_s=rng.choice((2.0, 6.0, 20.0, 60.0)),
                )
            )
        return shapes

    def stepped(self, event: RailEvent, effects: list[RailEffect], before: int, now: float) -> None:
        line = f"{now:9.3f} {event} -> {effects}"
        self.digest = zlib.crc32(line.encode(), self.digest)
        if self.transcript is not None:
            self.transcript.append(line)
        self.on_rail(event, effects, before, now)

    def note(self, text: str) -> None:
        if self.transcript is not None:
            self.transcript.append(f"{self.loop.time():9.3f}   {text}")

    # Its troubles

    async def live(self, seconds: float) -> None:
        """So long everything happens at once; then all clients finish, and the node stops."""
        running = asyncio.create_task(self.host.run())
        try:
            specs = [
                ModelSpec(
                    name=s.name,
                    engine="command",
                    command=("serve",),
                    slots=s.slots,
                    pinned=s.pinned,
                    keep_alive=s.keep_alive,
                )
                for s in self.shapes.values()
            ]
            await self.host.apply(specs)
            async with asyncio.TaskGroup() as tasks:
                for shape in self.shapes.values():
                    tasks.create_task(self._clients(shape, seconds, tasks))
                tasks.create_task(self._troubles(seconds))
            await self.host.stop(60.0)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    async def _clients(self, shape: Shape, seconds: float, tasks: asyncio.TaskGroup) -> None:
        rng, number = Random(self.rng.random()), 0
        end = self.loop.time() + seconds
        while self.loop.time() < end:
            await asyncio.sleep(rng.expovariate(1 / shape.every_s))
            number += 1
            tasks.create_task(self._client(shape, number, Random(rng.random())))

    async def _client(self, shape: Shape, number: int, rng: Random) -> None:
        deadline_s = rng.choice((10.0, 60.0, 300.0))
        body = str(rng.uniform(0.1, SERVICE_S) ** rng.choice((0.3, 1.0))).encode()
        keep_alive = rng.choice((None, None, None, None, 0.0, 5.0, float("inf")))
        leaves = rng.random() < 0.05
        ends_at, outcome, attempt = self.loop.time() + deadline_s, "node_busy", 0
        while outcome == "node_busy" and (left_s := ends_at - self.loop.time()) > 1.0 and attempt < ATTEMPTS:
            attempt += 1
            call = Call(
                id=RequestId(f"{shape.name}-{number}"),
                attempt=attempt,
                edge=NodeId("e"),
                model=shape.name,
                path="chat/completions",
                body=body,
                deadline_s=left_s,
                keep_alive=keep_alive,
                alone=self.alone,
            )
            outcome = await self._ask(call, leaves)
            await asyncio.sleep(rng.uniform(0.1, 1.0))  # as the mesh does before it plans again
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    async def _ask(self, call: Call, leaves: bool) -> str:
        blocks = served(self.host, call)
        began = self.loop.time()
        outcome = "ok"
        try:
            async for block in blocks:
                if leaves and block != DONE:
                    outcome = "left"
                    break
        except NodeError as error:
            outcome = str(error.code)
        finally:
            await blocks.aclose()
        late_s = self.loop.time() - began - call.deadline_s
        if late_s > 1e-6:
            raise AssertionError(f"{call.id} ended {late_s:.3f} s after its deadline")
        return outcome

    async def _troubles(self, seconds: float) -> None:
        rng = Random(self.rng.random())
        end = self.loop.time() + seconds
        while self.loop.time() < end:
            await asyncio.sleep(rng.expovariate(1 / 20.0))
            match rng.choice(("crash", "crash", "budget", "operator", "gap", "calm")):
                case "crash":
                    if living := [w for w in self.living if not w.crash.done()]:
                        worker = rng.choice(living)
                        self.note(f"{worker.shape.name} crashes")
                        worker.crash.set_result("killed by signal 9")
                case "budget":
                    share = rng.choice((1.0, 1.0, 0.9, 0.7, 0.5))
                    self.settings = structs.replace(self.settings, memory_budget_bytes=round(self.budget * share))
                    self.host.retune(self.settings)
                case "gap":
                    self.settings = structs.replace(self.settings, request_gap_s=rng.choice((0.0, 5.0, 15.0)))
                    self.host.retune(self.settings)
                case "operator":
                    name = rng.choice(list(self.shapes))
                    self.note(f"operator: {name}")
                    with suppress(NodeError, TimeoutError):
                        async with asyncio.timeout(rng.choice((1.0, 100.0))):
                            await (self.host.load(name) if rng.random() < 0.5 else self.host.unload(name))
                case _:
                    pass
        self.settings = structs.replace(self.settings, memory_budget_bytes=self.budget)
        self.host.retune(self.settings)
