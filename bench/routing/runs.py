"""One replay of the matrix, and the store of those that cannot have changed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from hashlib import blake2b
from pathlib import Path
from random import Random

import msgspec
from msgspec import Struct

from bench.report import OUT, ROOT
from bench.routing.clairvoyant import REFERENCES
from bench.routing.fleets import FLEETS, MIX, by_sequences
from bench.routing.peers import PEERS, THEORY
from bench.routing.traces import digest, load
from router.replay.result import Result, result
from router.replay.shipped import Knows, Shipped
from router.replay.trace import Trace, arrive, jobs_of
from router.replay.world import Policy, Slow, World
from router.settings import RouterSettings

OURS = "ours"
STORE = OUT / "routing_store.json"
CAPACITY = "late binding"  # the reference whose throughput with everything there at once is load 1.0


class Run(Struct, frozen=True, kw_only=True):
    """One replay: `load` as a share of the fleet's capacity for this trace; inf: all calls at once.

    `slow`: (part of the run, machine, factor). `seqs`: prompt caches of so many sequences. The rest is about ours.
    """

    fleet: str
    trace: str
    load: float
    policy: str
    calls: int
    slow: tuple[tuple[float, int, float], ...] = ()
    seqs: int = 0
    knows: Knows = Knows()
    seed: int = 1

    @property
    def key(self) -> str:
        return f"{self.fleet}/{self.trace}/{self.load:g}/{self.policy}/{self.calls}/{self.slow}/{self.seqs}"

    @property
    def ours(self) -> bool:
        return self.policy == OURS


def policy_of(run: Run) -> Policy:
    if run.ours:
        return Shipped(RouterSettings(), Random(run.seed), run.knows)
    made: Mapping[str, Callable[[], Policy]] = {**PEERS, **THEORY, **REFERENCES}
    return made[run.policy]()


@cache
def _trace(name: str) -> tuple[Trace, str]:
    trace = load((name,))[name]
    return trace, digest(trace)


def replay(run: Run, capacity: float) -> Result:
    """Does it. `capacity` calls/s are load 1.0."""
    trace, _ = _trace(run.trace)
    jobs = jobs_of(trace, MIX[run.fleet], run.calls, Random(5))
    rate = run.load * capacity
    arrive(trace, jobs, rate, Random(11), Random(3))
    machines = by_sequences(FLEETS[run.fleet], run.seqs) if run.seqs else FLEETS[run.fleet]
    slow = [Slow(part * run.calls / rate, machine, factor) for part, machine, factor in run.slow]
    return result(World(machines, jobs, policy_of(run), slow).run())


class Runs:
    """Does runs, `processes` side by side. Those of others are kept in bench/out until the code or the trace they
    depend on changes; ours never are."""

    def __init__(self, processes: int, *, fresh: bool = False) -> None:
        self._processes = processes
        self._code = _code_digest()
        self._store: dict[str, Result] = {} if fresh else _read_store()
        self.did = 0

    def do(self, runs: Iterable[Run]) -> dict[Run, Result]:
        wanted = list(dict.fromkeys(runs))
        bases = {run: _base(run) for run in wanted}
        capacities = {b: r.jobs / r.makespan_s for b, r in self._all(dict.fromkeys(bases.values(), 1.0)).items()}
        return self._all({run: capacities[bases[run]] for run in wanted})

    def _all(self, runs: Mapping[Run, float]) -> dict[Run, Result]:
        found = {run: self._store[self._key(run)] for run in runs if self._key(run) in self._store}
        missing = [run for run in runs if run not in found]
        missing.sort(key=lambda run: run.policy not in REFERENCES)  # The longest ones first.
        rates = [runs[run] for run in missing]
        if self._processes > 1 and len(missing) > 1:
            with ProcessPoolExecutor(self._processes) as pool:
                done = list(pool.map(replay, missing, rates))
        else:
            done = [replay(run, rate) for run, rate in zip(missing, rates, strict=True)]
        self.did += len(missing)
        found |= zip(missing, done, strict=True)
        kept = {self._key(run): r for run, r in zip(missing, done, strict=True) if not run.ours}
        if kept:
            self._store = _read_store() | self._store | kept
            STORE.parent.mkdir(parents=True, exist_ok=True)
            new = STORE.with_suffix(f".{os.getpid()}")
            new.write_bytes(msgspec.json.encode(self._store))
            new.replace(STORE)
        return found

    def _key(self, run: Run) -> str:
        return "" if run.ours else f"{self._code}/{_trace(run.trace)[1]}/{run.key}"


def _base(run: Run) -> Run:
    """The run that says what load 1.0 is there."""
    return Run(fleet=run.fleet, trace=run.trace, load=math.inf, policy=CAPACITY, calls=run.calls)


def _read_store() -> dict[str, Result]:
    try:
        return msgspec.json.decode(STORE.read_bytes(), type=dict[str, Result])
    except (OSError, msgspec.MsgspecError):
        return {}


def _code_digest() -> str:
    """Of all that can change what a peer or a reference does."""
    folders = (ROOT / "router" / "replay", Path(__file__).parent)
    ours = {"shipped.py", "figures.py", "timing.py", "traces.py", "__main__.py"}  # traces have a digest of their own
    files = sorted(file for folder in folders for file in folder.glob("*.py") if file.name not in ours)
    return blake2b(b"".join(file.read_bytes() for file in files), digest_size=8).hexdigest()
