"""Ten clients want three models of a node that holds one of them, while its workers are killed and frozen.

Every request has to end with the right answer or a named error within its deadline. `right` is what the same model
said to the same prompt at temperature 0 before anything was done to it. `python -m bench.chaos --seconds 300`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psutil
from msgspec import Struct, field
from openai import APIConnectionError, APIError, APIStatusError, AsyncOpenAI

from bench.daemon import alive, children, running
from bench.report import Figure, publish, within
from demo.model import build_tiny, default_cache
from mesh.client import MeshClient, MeshClientError
from node.headroom import GIB
from node.io.probe import Probe
from router.errors import ErrorCode

SIZES = {"small": (2, 32), "middle": (4, 384), "large": (4, 768)}  # name -> layers, width
BUDGET = int(1.1 * GIB)  # the two smallest together need more
BUDGET_FACTOR = 1.1  # what workers may take of it: estimates are corrected once they are measured
PROMPTS = ("a b", "the time of the year is", "once upon a time there was a")
RECOVERY_LIMIT_S = 180.0
CALM_LIMIT_S = 300.0  # for an answer before the storm
RETRY_CAP_S = 5.0  # a client waits at most so long before it asks for something else
WORKER = "node.io.mlx_worker"


class Plan(Struct, frozen=True, kw_only=True):
    """Who asks, for how long, and what is done to the workers meanwhile. Times in seconds."""

    seconds: float
    clients: int = 10
    tokens: tuple[int, ...] = (8, 24, 48)  # of one answer
    kill_every_s: float = 10.0
    freeze_every_s: float = 30.0
    deadline_s: float = 60.0
    grace_s: float = 5.0  # past its deadline a request has hung: this is what a busy machine may add
    request_gap_s: float = 1.0
    seed: int = 0


class Ask(Struct, frozen=True):
    """One request. Equal ones have equal answers."""

    model: str
    prompt: str
    tokens: int
    stream: bool


class Outcome(Struct, frozen=True):
    """How one request ended. `kind` is "ok", "wrong", "hung", "unnamed" or the code of the error."""

    model: str
    kind: str
    seconds: float
    why: str = ""  # of an error
    retry_s: float = 0.0  # Retry-After


class Seen(Struct):
    """What happened."""

    outcomes: list[Outcome] = field(default_factory=list)
    killed: int = 0
    frozen: int = 0
    recovery_s: float | None = None  # from the storm's end until every model has given the right answer; None: not
    reloaded: int = 0  # models whose worker failed too often: loaded again by hand, as their error says
    samples: int = 0
    workers_most: int = 0
    crowd: str = ""  # their pids and command lines then
    bytes_most: int = 0
    reserved_most: int = 0
    budget: int = 0
    zombies: list[int] = field(default_factory=list)  # pids that were zombies for two samples in a row
    orphans: list[int] = field(default_factory=list)  # workers that outlived the daemon

    def count(self) -> Counter[str]:
        return Counter(o.kind for o in self.outcomes)

    def bad(self) -> list[Outcome]:
        """Neither right nor refused by name in time."""
        return [o for o in self.outcomes if o.kind != "ok" and o.kind not in set(ErrorCode)]

    def table(self) -> str:
        """For people: outcomes by model."""
        rows = [f"{'':8}" + "".join(f"{kind:>22}" for kind in self.count())]
        for model in sorted({o.model for o in self.outcomes}):
            mine = Counter(o.kind for o in self.outcomes if o.model == model)
            rows.append(f"{model:8}" + "".join(f"{mine[kind]:>22}" for kind in self.count()))
        return "\n".join(rows)


class Target(Protocol):
    """A daemon: `bench.daemon.Daemon` is one."""

    @property
    def url(self) -> str:
        """Of its edge, without /v1."""

    @property
    def pid(self) -> int: ...

    @property
    def client(self) -> MeshClient: ...


class Chaos:
    """Asks `daemon` for `models` and ends its workers meanwhile."""

    def __init__(self, daemon: Target, models: Sequence[str], plan: Plan, budget: int) -> None:
        self._daemon, self._models, self._plan = daemon, models, plan
        self._right: dict[Ask, str] = {}
        self._random = random.Random(plan.seed)
        self._client = AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=CALM_LIMIT_S)
        self.seen = Seen(budget=budget)

    async def run(self) -> Seen:
        """References first, undisturbed; then the storm; returns when every request has ended and every model answers
        as before, or `RECOVERY_LIMIT_S` later."""
        async with self._client:
            for model in self._models:
                for prompt in PROMPTS:
                    for tokens in self._plan.tokens:
                        ask = Ask(model, prompt, tokens, False)
                        said = await self._said(ask)
                        self._right[ask] = self._right[Ask(model, prompt, tokens, True)] = said
            end = time.monotonic() + self._plan.seconds
            async with asyncio.TaskGroup() as tasks:
                asking = [tasks.create_task(self._ask_until(end, n)) for n in range(self._plan.clients)]
                harm = [
                    tasks.create_task(self._every(self._plan.kill_every_s, self._kill)),
                    tasks.create_task(self._every(self._plan.freeze_every_s, self._freeze)),
                ]
                watch = [
                    tasks.create_task(self._every(1.0, self._look)),
                    tasks.create_task(self._every(2.0, self._load_again)),
                ]
                await asyncio.wait(asking)
                for task in harm:
                    task.cancel()
                await self._recover()
                for task in watch:
                    task.cancel()
        return self.seen

    # The clients

    async def _ask_until(self, end: float, number: int) -> None:
        chance = random.Random(f"{self._plan.seed} {number}")
        asks = sorted(self._right, key=str)
        while time.monotonic() < end:
            outcome = await self._ask(chance.choice(asks))
            self.seen.outcomes.append(outcome)
            await asyncio.sleep(min(outcome.retry_s, RETRY_CAP_S))

    async def _recover(self) -> None:
        began = time.monotonic()
        missing = {ask.model: ask for ask in self._right}
        while missing and time.monotonic() < began + RECOVERY_LIMIT_S:
            for ask in tuple(missing.values()):
                outcome = await self._ask(ask)
                if outcome.kind == "ok":
                    del missing[ask.model]
                await asyncio.sleep(min(outcome.retry_s, RETRY_CAP_S))
        self.seen.recovery_s = None if missing else time.monotonic() - began

    async def _ask(self, ask: Ask) -> Outcome:
        began = time.monotonic()
        kind, why, retry_s = "ok", "", 0.0
        deadline_s = self._plan.deadline_s
        try:
            async with asyncio.timeout(deadline_s + self._plan.grace_s):
                said = await self._said(ask, {"x-mesh-deadline-ms": str(round(deadline_s * 1e3))})
            if said != self._right[ask]:
                kind, why = "wrong", f"{said!r} instead of {self._right[ask]!r}"
        except TimeoutError:
            kind = "hung"
        except APIConnectionError as error:
            kind, why = "unnamed", repr(error.__cause__ or error)
        except APIError as error:
            kind, why = str(error.code or "unnamed"), error.message
            if isinstance(error, APIStatusError):
                retry_s = float(error.response.headers.get("retry-after", 0.0))
        return Outcome(ask.model, kind, time.monotonic() - began, why, retry_s)

    async def _said(self, ask: Ask, headers: Mapping[str, str] | None = None) -> str:
        """The answer: why it ends, and its text. Raises openai.APIError."""
        options: dict[str, Any] = {"model": ask.model, "prompt": ask.prompt, "max_tokens": ask.tokens, "temperature": 0}
        options["extra_headers"] = headers
        if not ask.stream:
            whole = await self._client.completions.create(**options)
            return f"{whole.choices[0].finish_reason}: {whole.choices[0].text}"
        text, reason = "", None
        async for chunk in await self._client.completions.create(**options, stream=True):
            for choice in chunk.choices:
                text, reason = text + choice.text, choice.finish_reason or reason
        return f"{reason}: {text}"

    # What is done to the workers

    async def _every(self, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await act()

    def _workers(self) -> list[psutil.Process]:
        """Children of the daemon itself: what they start looks like them for a moment."""
        return [w for w in children(self._daemon.pid, deep=False) if alive(w) and WORKER in _words(w)]

    async def _kill(self) -> None:
        if workers := self._workers():
            self.seen.killed += _signal(self._random.choice(workers), signal.SIGKILL)

    async def _freeze(self) -> None:
        if workers := self._workers():
            self.seen.frozen += _signal(self._random.choice(workers), signal.SIGSTOP)

    async def _load_again(self) -> None:
        """The operator of the node: does what the error of a model says whose worker failed too often."""
        for model in await asyncio.to_thread(self._daemon.client.models):
            if model.state == "failed" and "`models load` tries again" in (model.error or ""):
                self.seen.reloaded += 1
                with suppress(MeshClientError):
                    await asyncio.to_thread(self._daemon.client.load, model.name)

    # What is seen meanwhile

    _half_dead: frozenset[int] = frozenset()

    async def _look(self) -> None:
        seen, probe = self.seen, Probe()
        dead = frozenset(c.pid for c in children(self._daemon.pid) if _zombie(c))
        seen.zombies += sorted(dead & self._half_dead)
        self._half_dead = dead
        workers = self._workers()
        taken = [await asyncio.to_thread(probe.worker_bytes, w.pid) for w in workers]
        memory = next(n.memory for n in (await asyncio.to_thread(self._daemon.client.mesh_status)).nodes)
        seen.samples += 1
        if len(workers) > seen.workers_most:
            seen.workers_most = len(workers)
            seen.crowd = "; ".join(f"{w.pid} {_words(w)}" for w in workers)
        seen.bytes_most = max(seen.bytes_most, sum(taken))
        seen.reserved_most = max(seen.reserved_most, memory.used_bytes)


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether it was there to get it."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def storm(folder: Path, models: Mapping[str, Path], plan: Plan, budget: int) -> Seen:
    """A daemon in `folder` that serves `models` and holds `budget` bytes of them, and all that is done to it."""
    tiers = [{"name": name, "model": str(path)} for name, path in models.items()]
    limits = {"memory_budget": budget, "request_gap": plan.request_gap_s}
    with running(folder, tiers, **limits) as daemon:
        seen = asyncio.run(Chaos(daemon, list(models), plan, budget).run())
        seen.orphans = daemon.stop()
    return seen


def figures(cache: Path, seconds: float) -> list[Figure]:
    """Rows for `make bench-node`."""
    plan = Plan(seconds=seconds)
    models = {
        name: build_tiny(cache / f"tiny-{layers}x{width}", layers=layers, width=width, seed=4, cache=cache)
        for name, (layers, width) in SIZES.items()
    }
    with tempfile.TemporaryDirectory(prefix="mlx-b-") as folder:
        seen = storm(Path(folder), models, plan, BUDGET)
    kinds = seen.count()
    print(f"{seconds:.0f} s, {seen.killed} workers killed, {seen.frozen} frozen, {seen.reloaded} loaded by hand")
    print(seen.table())
    if seen.workers_most > 1:
        print(f"at a time: {seen.crowd}")
    for outcome in seen.bad()[:5]:
        print(outcome)
    for (kind, why), times in Counter((o.kind, o.why) for o in seen.outcomes if o.why).most_common(12):
        print(f"{times:4} {kind}: {why}")
    named = sum(n for kind, n in kinds.items() if kind in set(ErrorCode))
    slowest = max((o.seconds for o in seen.outcomes), default=None)
    return [
        within("chaos: requests", len(seen.outcomes), "", 1, None),
        within("chaos: right answers", kinds["ok"], "", 1, None),
        within("chaos: named errors", named, "", None, None),
        within("chaos: wrong answers", kinds["wrong"], "", None, 0),
        within("chaos: unnamed errors", kinds["unnamed"], "", None, 0),
        within("chaos: past the deadline", kinds["hung"], "", None, 0),
        within("chaos: slowest request", slowest, "s", None, plan.deadline_s + plan.grace_s),
        within("chaos: memory of all workers / budget", seen.bytes_most / seen.budget, "x", None, BUDGET_FACTOR),
        within("chaos: most memory reserved / budget", seen.reserved_most / seen.budget, "x", None, BUDGET_FACTOR),
        within("chaos: most workers at a time", seen.workers_most, "", None, 1),
        within("chaos: until all models answer again", seen.recovery_s, "s", None, RECOVERY_LIMIT_S),
        within("chaos: zombies", len(seen.zombies), "", None, 0),
        within("chaos: orphans", len(seen.orphans), "", None, 0),
    ]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="bench.chaos", description=__doc__)
    parser.add_argument("--cache", type=Path, default=None, help="where demo models are kept")
    parser.add_argument("--seconds", type=float, default=300.0)
    options = parser.parse_args()
    print(publish("chaos", figures(options.cache or default_cache(), options.seconds)))


if __name__ == "__main__":
    main()
