"""Whatever clients, workers and operators do, and whenever: the host's counts are exact and nothing leaks."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import NodeError
from node.types import ModelState
from tests.node.fakes import Rig, call, running, spec, until

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


class Watched:
    """A host and a crowd of clients; `check` holds after every turn of the loop."""

    def __init__(self, rig: Rig, rng: random.Random) -> None:
        self.rig, self.rng = rig, rng
        self.clients: list[asyncio.Task[str]] = []
        self.others: list[asyncio.Task[None]] = []
        self.admitted = 0
        self.slots = 2

    async def client(self, number: int, body: bytes, patience: int) -> str:
        """Reads to the end, or closes its stream after `patience` blocks."""
        stream = self.rig.host.serve(call(f"r{number}", body=body))
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
                self.others.append(asyncio.create_task(self.operate(what)))
            case "edit":
                self.slots = 3 if self.slots == 2 else 2
                self.others.append(asyncio.create_task(host.apply([spec(slots=self.slots)])))
            case "open":
                engine.gate.set()
                engine.gate = asyncio.Event()
            case _:
                pass
        for _ in range(self.rng.choice([0, 1, 2, 5])):
            await asyncio.sleep(0)
            self.check()

    async def operate(self, what: str) -> None:
        with suppress(NodeError):  # Its worker crashed meanwhile, or it was unloaded again.
            await (self.rig.host.load("a") if what == "load" else self.rig.host.unload("a"))

    def check(self) -> None:
        host, model = self.rig.host, self.rig.model()
        everyone = host._everyone()
        opened = sum(len(m.calls) for m in everyone)
        assert len(host.running()) == opened == sum(m.queue.in_flight + m.queue.queue_depth for m in everyone)
        assert sum(r.started for r in host.running()) == sum(m.queue.in_flight for m in everyone)
        assert model.in_flight <= model.slots
        assert model.in_flight + model.queue_depth <= 2 * model.slots
        for m in everyone:  # started - finished = in flight, one by one
            assert m.queue.in_flight == sum(c.started_at is not None for c in m.calls.values())
        assert len(self.rig.engine.living()) <= 1
        assert host.memory().used_bytes == 0  # external servers take none here

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
        await self.rig.host.load("a")
        await until(lambda: self.rig.model().state is ModelState.READY)
        assert (await self.rig.answer(call("last")))[-1] == b"data: [DONE]\n\n"


@settings(max_examples=1500, deadline=None)
@given(script=steps, seed=st.integers(0, 2**32))
def test_counts_are_exact_and_nothing_leaks(script: list[tuple[str, bytes]], seed: int) -> None:
    async def scenario() -> None:
        async with running(Rig(slots=2), spec(slots=2)) as rig:
            watched = Watched(rig, random.Random(seed))
            for number, (what, body) in enumerate(script):
                await watched.act(what, body, number)
                watched.check()
            await watched.settle()

    asyncio.run(asyncio.wait_for(scenario(), 60))
