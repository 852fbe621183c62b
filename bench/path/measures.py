"""One window of load on one subject, and the seven kinds of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Final

import msgspec
from msgspec import Struct

from bench.path.native import built
from bench.path.subjects import LOAD_CORE, MODEL, Subject, on_core
from bench.path.usage import cpu_s, machine_s, set_realtime, tree

SHORT_BYTES: Final = 350
LONG_BYTES: Final = 33_000
ANSWER_TEXT: Final = 400  # with the JSON about it 600 bytes
CHUNK_TEXT: Final = 57  # with the JSON about it 190 bytes
PACE_US: Final = 20_000
FIRST_RATE: Final = 100
OUT_OF_TIME_S: Final = 120.0


class Spread(Struct, frozen=True):
    """Microseconds."""

    n: int
    p50: float
    p99: float
    max: float


class Loaded(Struct, frozen=True):
    """What bench/path/load.c says at its end."""

    answers: int
    good: int
    wrong: int
    lost: int
    chunks: int
    seconds: float
    peak: int
    answer: Spread
    first: Spread
    hop: Spread


class Run(Struct, frozen=True):
    """One window. `cpu_s` of the subject's processes in it, `others` the share of the machine that was not ours."""

    subject: str
    measure: str
    round: int
    load: Loaded
    cpu_s: float
    others: float

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.load.answers / self.load.seconds

    @property
    def cpu_us(self) -> float | None:
        """Per answer."""
        return 1e6 * self.cpu_s / self.load.answers if self.load.answers else None

    @property
    def chunk_rate(self) -> float:
        """Chunks per second."""
        return self.load.chunks / self.load.seconds

    @property
    def chunk_cpu_us(self) -> float | None:
        """Per chunk, requests included."""
        return 1e6 * self.cpu_s / self.load.chunks if self.load.chunks else None


class Measure(Struct, frozen=True, kw_only=True):
    """How the loader is started (bench/path/load.c) and what the engine is asked."""

    name: str
    mode: str
    streamed: bool = False
    body_bytes: int = SHORT_BYTES
    chunks: int = 1
    text: int = CHUNK_TEXT
    pace_us: int = 0
    conns: int = 32
    rate: float = 0.0
    gap_us: float = 0.0
    warm_s: float = 0.5
    limit_s: float = 10.0

    @property
    def fills(self) -> bool:
        """It takes all that it gets of both cores."""
        return self.mode == "closed" and not self.pace_us

    def body(self) -> bytes:
        """Of the request, `body_bytes` long."""
        request: dict[str, object] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": ""}],
            "max_tokens": self.chunks,
            "stream": self.streamed,
            "user": f"pace={self.pace_us},text={self.text}",
        }
        bare = len(json.dumps(request, separators=(",", ":")))
        request["messages"] = [
            {"role": "user", "content": ("word " * (self.body_bytes // 5))[: self.body_bytes - bare]}
        ]
        return json.dumps(request, separators=(",", ":")).encode()

    def words(self, seconds: float) -> list[str]:
        """Of the loader's command line, after its body."""
        told = {"conns": self.conns, "rate": self.rate, "gap_us": self.gap_us, "warm": self.warm_s, "seconds": seconds}
        told |= {"chunks": self.chunks, "text": self.text, "limit": self.limit_s}
        return [self.mode, *(f"{name}={value:g}" for name, value in told.items())]


def held(
    name: str, streams: int, seconds: float, *, pace_us: int = PACE_US, gap_us: float = 5050.0, spare_s: float = 1.0
) -> Measure:
    """Streams that all run during the window; they begin so far apart that no two chunks are due together. Each lasts
    `spare_s` longer than it would have to if all began in time."""
    lasts_s = streams * gap_us / 1e6 + seconds + 0.5 + spare_s
    return Measure(
        name=name,
        mode="hold",
        streamed=True,
        chunks=int(lasts_s / (pace_us / 1e6)) + 1,
        pace_us=pace_us,
        conns=streams,
        gap_us=gap_us,
        limit_s=15.0,
    )


def measures(seconds: float, rate: float, streams: int) -> dict[str, Measure]:
    """All, for a machine on which every subject can do `rate` requests/s and `streams` streams of 50 chunks/s."""
    found = (
        Measure(name="requests", mode="closed", text=ANSWER_TEXT),
        Measure(name="long", mode="closed", text=ANSWER_TEXT, body_bytes=LONG_BYTES),
        Measure(name="paced", mode="open", text=ANSWER_TEXT, rate=rate),
        Measure(name="first", mode="open", streamed=True, chunks=8, pace_us=PACE_US, rate=FIRST_RATE),
        Measure(
            name="hop",
            mode="closed",
            streamed=True,
            chunks=64,
            pace_us=PACE_US,
            conns=16,
            gap_us=PACE_US / 16,
            warm_s=0.3,
        ),
        held("crowd", streams, seconds),
        Measure(name="burst", mode="closed", streamed=True, chunks=64, conns=16),
    )
    return {m.name: m for m in found}


def measured(
    measure: Measure,
    subject: Subject,
    engine: Subject,
    folder: Path,
    seconds: float,
    round_number: int = 0,
    realtime: bool = False,
    during: Callable[[], None] = lambda: None,
) -> Run:
    """One window; `during` is called in the middle of it. `realtime`: whoever takes part goes before all
    others, unless it fills the cores. Raises RuntimeError when the loader fails."""
    file = folder / f"{measure.name}-{subject.name}.json"
    file.write_bytes(measure.body())
    command = [str(built("load")), str(subject.port), str(file), *measure.words(seconds)]
    pids = tree(subject.pids)
    with on_core(LOAD_CORE), subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as loader:
        assert loader.stdout is not None
        assert loader.stderr is not None
        mine = [*tree(engine.pids), loader.pid, os.getpid()]
        set_realtime([*pids, *mine[:-1]], realtime and not measure.fills)

        def spent() -> tuple[float, float, float]:
            return cpu_s(pids), cpu_s(mine), machine_s()

        patience = Timer(OUT_OF_TIME_S, loader.kill)
        patience.start()
        try:
            began = loader.stdout.readline()
            before = spent()
            during()
            loader.stdout.readline()
            after = spent()
            told, complained = loader.stdout.read(), loader.stderr.read()
        finally:
            patience.cancel()
    if not (began and told):
        raise RuntimeError(f"{measure.name} of {subject.name}: the loader ended: {complained[-500:]!r}")
    if complained:
        print(f"{measure.name} of {subject.name}: {complained.decode(errors='replace')[:600]}")
    load = msgspec.json.decode(told, type=Loaded)
    theirs, ours, machine = (b - a for a, b in zip(before, after, strict=True))
    both = theirs if subject.pids != engine.pids else 0.0
    others = min(1.0, max(0.0, machine - both - ours) / (load.seconds * (os.cpu_count() or 1)))
    return Run(subject.name, measure.name, round_number, load, theirs, others)
