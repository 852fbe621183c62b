"""Whatever clients, workers and operators do, and whenever: the host's counts are exact and nothing leaks."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from node.errors import NodeError
from node.io.engine import ModelSpec
from node.types import ModelState
from tests.mesh.waiting import until
from tests.node.fakes import FAST, GIB, Rig, call, running
from tests.node.models import model_directory
from tests.node.scripted import served

bodies = st.sampled_from([b"", b"gated", b"gated", b"cut", b"bad", b"flood"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("call"), bodies),
        st.tuples(
            st.sampled_from(["leave", "leave", "cancel", "crash", "load", "unload", "open", "turn", "edit"]),
            st.just(b""),
        ),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that takes 1.05 GiB: 0.5 fixed and 0.5 x 1.1 of KV."""
    return str(model_directory(tmp_path_factory.mktemp("m"), layers=32, heads=8, head_dim=64, context=8192))


class Watched:
    """Two models in memory for one, and a crowd of clients; `check` holds after every turn of the loop."""

    def __init__(self, rig: Rig, rng: random.Random, weights: str) -> None:
        self.rig, self.rng, self.weights = rig, rng, weights
        self.clients: list[asyncio.Task[str]] = []
        self.others: list[asyncio.Task[None]] = []
        self.admitted = 0
        self.slots = 2

    def specs(self) -> list[ModelSpec]:
        return [ModelSpec(name=name, path=self.weights, slots=self.slots) for name in "ab"]

    async def client(self, number: int, body: bytes, patience: int) -> str:
        """Reads to the end, or closes its stream after `patience` blocks."""
        stream = served(self.rig.host, call(f"r{number}", self.rng.choice("aaab"), body))
        blocks = 0
        try:
            async for _ in stream:
                self.admitted += blocks == 0
                blocks += 1
                if blocks > patience:
                    return "left"
        except NodeError as error:
            return error.code
        finally:
            await stream.aclose()
        return "ok"

    async def act(self, what: str, body: bytes, number: int) -> None:
        host, engine = self.rig.host, self.rig.engine
        match what:
            case "call":
                patience = self.rng.choice([0, 1, 2, 3, 10**6])
                self.clients.append(asyncio.create_task(self.client(number, body, patience)))
            case "leave" | "cancel" if self.clients:
                self.rng.choice(self.clients).cancel()
            case "crash" if engine.living():
                worker = self.rng.choice(engine.living())
                if not worker.crash.done():
                    worker.crash.set_result("killed by signal 9")
            case "load" | "unload":
                self.others.append(asyncio.create_task(self.operate(what, self.rng.choice("ab"))))
            case "edit":
                self.slots = 3 if self.slots == 2 else 2
                self.others.append(asyncio.create_task(host.apply(self.specs())))
            case "open":
                engine.gate.set()
                engine.gate = asyncio.Event()
            case _:
                pass
        for _ in range(self.rng.choice([0, 1, 2, 5])):
            await asyncio.sleep(0)  # one turn of the loop
            self.check()

    async def operate(self, what: str, name: str) -> None:
        with suppress(NodeError):  # Its worker crashed meanwhile, or it was unloaded again.
            await (self.rig.host.load(name) if what == "load" else self.rig.host.unload(name))

    def check(self) -> None:
        host, everyone = self.rig.host, self.rig.host._roster.everyone()
        opened = sum(len(m.calls) for m in everyone)
        assert len(host.running()) == opened == sum(m.queue.in_flight + m.queue.queue_depth for m in everyone)
        assert sum(r.started for r in host.running()) == sum(m.queue.in_flight for m in everyone)
        for m in everyone:  # started - finished = in flight, one by one
            assert m.queue.in_flight == sum(c.started_at is not None for c in m.calls.values()) <= m.queue.slots
            assert m.queue.in_flight + m.queue.queue_depth <= 2 * m.queue.slots
        memory = host.memory()
        kept = host._keeper.rail._models
        assert memory.used_bytes == sum(m.size_bytes for m in kept.values() if m.reserved)
        assert all(kept[w.spec.name].reserved for w in self.rig.engine.living())
        assert all(m.lifecycle.has_worker for m in everyone if m.held)
        assert memory.used_bytes <= memory.budget_bytes
        assert len(self.rig.engine.living()) <= 1

    async def settle(self) -> None:
        """Everybody goes home; then nothing may be left."""
        self.rig.engine.gate.set()
        results = await asyncio.gather(*self.clients, *self.others, return_exceptions=True)
        assert all(not isinstance(r, Exception) for r in results), results
        self.check()
        assert self.rig.host.running() == ()
        assert all(w.streams == 0 for w in self.rig.engine.workers)
        assert len(self.rig.ended()) >= self.admitted
        assert len({(f.id, f.attempt) for f in self.rig.ended()}) == len(self.rig.ended())  # each ends once
        await until(lambda: not any(w.crash.done() for w in self.rig.engine.living()))
        await self.rig.host.unload("b")
        await self.rig.host.load("a")
        assert self.rig.model().state is ModelState.READY
        assert (await self.rig.answer(call("last")))[-1] == b"data: [DONE]\n\n"


@settings(max_examples=60, deadline=None)
@given(script=steps, seed=st.integers(0, 2**32))
def test_counts_are_exact_and_nothing_leaks(weights: str, script: list[tuple[str, bytes]], seed: int) -> None:
    async def scenario() -> None:
        rig = Rig(structs.replace(FAST, memory_budget_bytes=3 * GIB // 2))
        watched = Watched(rig, random.Random(seed), weights)
        async with running(rig, *watched.specs()):
            for number, (what, body) in enumerate(script):
                await watched.act(what, body, number)
                watched.check()
            await watched.settle()

    asyncio.run(asyncio.wait_for(scenario(), 60))
