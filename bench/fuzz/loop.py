"""One target for a while: guided by coverage under atheris (Linux), else by mutation alone; then what it keeps."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Sequence
from random import Random

from msgspec import Struct

from bench.fuzz.corpus import kept
from bench.fuzz.judge import Judge
from bench.fuzz.mutate import Mutator
from bench.fuzz.target import Run, Target

_CORPUS_MAX = 2000


class Memory(Struct, frozen=True):
    """What a corpus did: bytes that stayed per input, and the most that one input took while it ran."""

    grown_bytes: float
    peak_bytes: int
    peak_of: bytes


def corpus_of(target: Target) -> list[bytes]:
    """Its seeds and what was kept, each once."""
    return list(dict.fromkeys(data[: target.size_max] for data in (*target.seeds(), *kept(target.name))))


def by_mutation(target: Target, judge: Judge, seconds: float, rng: Random) -> list[bytes]:
    """The corpus first, then inputs made of it; each that comes to something new joins it. What it is at the end."""
    corpus = corpus_of(target)
    for data in corpus:
        judge(data)
    mutator = Mutator(target, rng)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutator.of(corpus)
        known = len(judge.outcomes)
        judge(data)
        if len(judge.outcomes) > known and len(corpus) < _CORPUS_MAX:
            corpus.append(data)
    return corpus


def memory(run: Run, corpus: Sequence[bytes], rounds: int = 3) -> Memory:
    """Runs the whole corpus so that caches are full, looking at what each input takes, then `rounds` times. Its inputs
    raise nothing: that was seen before."""
    for data in corpus:
        run(data)
    gc.collect()
    tracemalloc.start()
    try:
        peak, peak_of = 0, b""
        for data in corpus:
            tracemalloc.reset_peak()
            start = tracemalloc.get_traced_memory()[0]
            run(data)
            took = tracemalloc.get_traced_memory()[1] - start
            if took > peak:
                peak, peak_of = took, data
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(rounds):
            for data in corpus:
                run(data)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    return Memory(grown / max(1, rounds * len(corpus)), peak, peak_of)
