"""`python -m bench.path.life`: what one request costs our daemon apart from its sockets, in microseconds of CPU.

The real edge, dispatch, scheduler, host and observer in this process, with a log and a routes.db in a temporary folder;
the request stands ready in memory, and so does the answer of its model server. Its parts by themselves, too: placing
(asked, granted, taken, first, done) and telling (log, metrics, row). `--profile` names the functions.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import logging
import os
import pstats
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvloop
from msgspec import Struct, structs

from mesh.log import DaemonLog
from mesh.metrics import Metrics
from mesh.observe import Observer
from mesh.process import spare_collector
from mesh.store import RouteStore
from node.http_request import Head
from node.io.engine import ModelSpec, WorkerStats
from node.io.flow import Sink
from node.io.host import Host
from node.io.http_client import HttpClient
from node.io.probe import Probe
from node.io.turn import Incoming, Outgoing
from node.settings import NodeSettings
from node.types import ModelReport, ModelState, NodeId, NodeReport, RequestId, Resume, Usage, status_of
from router.events import Request
from router.facts import RouteFact
from router.frames import CoordinatorFrame
from router.guard import Guard
from router.io.dispatch import Dispatch
from router.io.edge import Edge
from router.settings import EdgeSettings, RouterSettings
from router.view import NodeView, View

ME, MODEL, SLOTS = NodeId("0" * 16), "fake", 1024
SHORT_BYTES, LONG_BYTES = 350, 33_000
AT_ONCE = 1  # requests that are open together
FAR_RTT_S = 0.05  # of the other nodes: what is asked here stays here
FUNCTIONS = 45


class Case(Struct, frozen=True):
    """What is asked, how many times, and of how many nodes."""

    name: str
    nodes: int = 1
    body_bytes: int = SHORT_BYTES
    part: str = "life"  # | "placing" | "telling"


CASES = (
    Case("life, 1 node"),
    Case("life, 8 nodes", nodes=8),
    Case("life, 32 KB prompt", body_bytes=LONG_BYTES),
    Case("placing alone, 1 node", part="placing"),
    Case("placing alone, 8 nodes", nodes=8, part="placing"),
    Case("telling alone, 1 node", part="telling"),
    Case("telling alone, 8 nodes", nodes=8, part="telling"),
)


def _block(**more: Any) -> bytes:
    said = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, **more}
    return b"data: " + json.dumps(said, separators=(",", ":")).encode() + b"\n\n"


ANSWER = (
    _block(choices=[{"index": 0, "delta": {"role": "assistant", "content": "x" * 400}, "finish_reason": "stop"}]),
    _block(choices=[], usage={"prompt_tokens": 60, "completion_tokens": 100, "total_tokens": 160}),
)


class MemoryWorker:
    """A model server that answers in the next turn of the loop."""

    log_name, resume, pid = "fake", Resume.REPLAY, None

    async def start(self) -> None:
        """It is there."""

    def pour(self, *_: object, sink: Sink, **_more: object) -> MemoryWorker:
        asyncio.get_running_loop().call_soon(_answer, sink)
        return self

    def pause(self) -> None:
        """All of it is said at once."""

    def close(self) -> None:
        """Likewise."""

    async def stats(self) -> WorkerStats:
        return WorkerStats()

    async def probe(self) -> None:
        """It answers."""

    async def stop(self, grace_s: float) -> None:
        """Nothing runs."""

    async def exited(self) -> str:
        await asyncio.get_running_loop().create_future()
        return ""


def _answer(sink: Sink) -> None:
    for block in ANSWER:
        sink.block(block)
    sink.done(None)


class MemoryEngine:
    default_slots, resume = SLOTS, Resume.REPLAY

    def worker(self, *_: object) -> Any:
        return MemoryWorker()


class Line:
    """A client that takes everything."""

    full, keeping = False, True

    def write(self, data: bytes, *, more: bool = True) -> None:
        pass

    def when_room(self, call: Callable[[], None]) -> None:
        call()

    async def drained(self) -> None:
        pass

    def answered(self) -> None:
        pass

    def last(self) -> None:
        pass

    def abort(self) -> None:
        raise AssertionError("an answer failed")


class Site:
    """One daemon without its sockets."""

    def __init__(self, case: Case, folder: Path, http: HttpClient) -> None:
        self.case = case
        metrics = Metrics()
        self.store = RouteStore(folder / "routes.db", print)
        self.observer = Observer(metrics=metrics, store=self.store)
        self.host = Host(
            settings=NodeSettings(),
            engines={"external": MemoryEngine()},
            report=self.observer.report,
            changed=lambda: None,
            probe=Probe(),
        )
        self.dispatch = Dispatch(
            self_id=ME, settings=RouterSettings(), rng=random.Random(1), send=lambda _node, _frame: True
        )
        self.view = _view(case.nodes)
        self.facts: list[RouteFact] = []
        self.keeping = True
        self.edge = Edge(
            view=lambda: self.view,
            dispatch=self.dispatch,
            host=self.host,
            http=http,
            tls=lambda _: None,
            settings=EdgeSettings(),
            report=self._report,
            count_bytes=metrics.count_bytes,
            metrics=metrics.text,
            guard=Guard(names=("localhost",)),
        )
        for node in self.view.nodes:
            self.dispatch.node_up(status_of(node.report, node.rtt_s or 0.0))
        self.dispatch.follow(ME, 1, ruling=True)
        self.numbers = iter(range(10**9))

    def _report(self, fact: RouteFact) -> None:
        if self.keeping:
            self.facts.append(fact)
        self.observer.report(fact)

    async def ask(self, body: bytes) -> None:
        """One request through the edge."""
        fields = {"host": "localhost:4000", "content-type": "application/json", "user-agent": "bench"}
        head = Head("POST", "/v1/chat/completions", fields, len(body), True, 1, False)
        incoming = Incoming(head, "127.0.0.1", lambda _: None)
        incoming.feed(body)
        incoming.end()
        outgoing = Outgoing(Line(), head)
        await self.edge.answer(incoming, outgoing)
        assert outgoing.status == 200, outgoing.status

    async def place(self, blocks: tuple[int, ...]) -> None:
        """One request through dispatch alone."""
        granted: asyncio.Future[CoordinatorFrame] = asyncio.get_running_loop().create_future()
        dispatch, request = self.dispatch, RequestId(f"req-{next(self.numbers)}")
        asked = Request(
            id=request, models=(MODEL,), prompt_tokens=60, blocks=blocks, block_tokens=64, client="127.0.0.1",
            deadline=600.0, whole=next(self.numbers),
        )  # fmt: skip
        dispatch.ask(asked, 1, 0.0, None, granted.set_result)
        await granted
        dispatch.taken(request, 1)
        dispatch.first(request, 1, 0)
        dispatch.done(request, 1, "ok", Usage(prompt=60, cached=0, completion=100))


def _view(count: int) -> View:
    model = ModelReport(name=MODEL, engine="external", state=ModelState.READY, slots=SLOTS)
    nodes = []
    for n in range(count):
        report = NodeReport(
            id=NodeId(f"{n:016x}"), boot="b", name=f"node-{n}", version="1", protocol=1, priority=100, uptime_s=1.0,
            models=(model,), port=4000, peer_port=4001,
        )  # fmt: skip
        nodes.append(NodeView(report=report, rtt_s=FAR_RTT_S if n else 0.0))
    return View(self_id=ME, enabled=True, coordinator=ME, alone=count == 1, nodes=tuple(nodes))


def body_of(size: int) -> bytes:
    """A chat of about so many bytes."""
    system = "You are a helpful assistant that answers in one short sentence. " * 2
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "x"}]
    empty = len(json.dumps({"model": MODEL, "messages": messages}))
    messages[1]["content"] = ("How much is it? " * (size // 16))[: max(1, size - empty)]
    return json.dumps({"model": MODEL, "messages": messages}).encode()


@asynccontextmanager
async def running(case: Case) -> AsyncIterator[Site]:
    """A site whose model is ready, and which logs into a file."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlx-l-")))
        site = Site(case, folder, await stack.enter_async_context(HttpClient()))
        tasks = [asyncio.create_task(part) for part in (site.host.run(), site.dispatch.run())]
        try:
            spec = ModelSpec(name=MODEL, engine="external", url="http://127.0.0.1:1/v1", slots=SLOTS)
            await site.host.apply([spec])
            await site.host.load(MODEL)
            yield site
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            site.store.close()


def work(site: Site) -> Callable[[], Coroutine[Any, Any, None]]:
    """One of what the case is about."""
    case = site.case
    if case.part == "placing":
        return lambda: site.place(())
    body = body_of(case.body_bytes)
    return lambda: site.ask(body)


async def measure(case: Case, count: int, profile: cProfile.Profile | None) -> tuple[float, float]:
    """Microseconds of CPU a request: of the loop's thread, and of all others."""
    async with running(case) as site:
        one = work(site)

        async def some(times: int) -> None:
            for _ in range(times):
                await one()

        async def all_of(times: int) -> None:
            await asyncio.gather(*(some(times // AT_ONCE) for _ in range(AT_ONCE)))

        await all_of(max(AT_ONCE, count // 10))
        tell = case.part == "telling"
        if tell:
            site.facts.clear()
            await all_of(count)
        site.keeping = False
        facts = [structs.replace(fact) for fact in site.facts] if tell else []
        await _settled(site)
        if profile is not None:
            profile.enable()
        cpu, mine = time.process_time(), time.thread_time()
        if tell:
            for fact in facts:
                site.observer.report(fact)
        else:
            await all_of(count)
        mine = time.thread_time() - mine
        if profile is not None:
            profile.disable()
        await _settled(site)
        return 1e6 * mine / count, 1e6 * (time.process_time() - cpu - mine) / count


async def _settled(site: Site) -> None:
    """What other threads have to do is done."""
    await asyncio.to_thread(site.store.last, 1)
    for handler in logging.getLogger().handlers:
        with suppress(AttributeError):
            handler.write()  # type: ignore[attr-defined]  # the daemon's own


def main() -> None:
    """Prints a table: medians over rounds, in which all cases take turns."""
    parser = argparse.ArgumentParser(prog="bench.path.life", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--profile", action="store_true", help="of the loop's thread; slows everything down")
    options = parser.parse_args()
    spare_collector()
    cases = [c for c in CASES if options.only in c.name]
    found: dict[str, list[tuple[float, float]]] = {c.name: [] for c in cases}
    with tempfile.TemporaryDirectory(prefix="mlx-l-") as folder, Path(os.devnull).open("w") as nowhere:
        sys.stderr.flush()
        shown = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        log = DaemonLog(Path(folder) / "daemon.log")
        try:
            for _ in range(options.rounds):
                for case in cases:
                    found[case.name].append(uvloop.run(measure(case, options.requests, None)))
            profiles = [(c.name, cProfile.Profile()) for c in cases] if options.profile else []
            for case, (_, profile) in zip(cases, profiles, strict=False):
                uvloop.run(measure(case, options.requests, profile))
        finally:
            log.close()
            os.dup2(shown, 2)
    print(f"{'us of CPU a request, median (least)':44}{'loop':>16}{'other threads':>16}")
    for name, runs in found.items():
        loop, others = zip(*runs, strict=True)
        columns = (f"{statistics.median(c):.1f} ({min(c):.1f})" for c in (loop, others))
        print(f"{name:44}" + "".join(f"{c:>16}" for c in columns))
    for name, profile in profiles:
        print(f"\n== {name}, {options.requests} requests")
        pstats.Stats(profile).sort_stats("tottime").print_stats(FUNCTIONS)


if __name__ == "__main__":
    main()
