"""A share of `make fuzz`: every target for a moment, from seeds and from what was kept, what once failed among it.

MLX_STACK_FUZZ_S is the time for each target in seconds; the long run is `make fuzz`.
"""

from __future__ import annotations

import os
import time
from random import Random

import pytest

from bench.fuzz.corpus import FOLDER, bytes_line, kept, line_bytes
from bench.fuzz.judge import Judge
from bench.fuzz.loop import by_mutation, corpus_of, memory
from bench.fuzz.mutate import Mutator
from bench.fuzz.target import Defect, Run, Target
from bench.fuzz.targets import TARGETS

SECONDS = float(os.environ.get("MLX_STACK_FUZZ_S", "1.5"))
GROWN_MAX = 256 * 1024  # bytes that stay of all inputs: caches that are not full yet
PEAK_MAX = 80 * 2**20  # the weights' tokenizer may be 64 MiB, and room for it is made at once
SHARE_MAX = 100  # inputs whose memory is looked at


@pytest.fixture(params=TARGETS.values(), ids=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    assert isinstance(request.param, Target)
    return request.param


def test_nothing_comes_of_any_input_but_what_is_documented(target: Target) -> None:
    seed = int(time.time())
    with target.opened() as run:
        judge = Judge(run)
        by_mutation(target, judge, SECONDS, Random(seed))
    assert judge.runs >= len(corpus_of(target))
    found = [f"{f.kind} at {f.where}: {f.what}\n{bytes_line(f.data)}\n{f.trace}" for f in judge.findings.values()]
    assert not found, f"seed {seed}; `{target.name}` in bench/fuzz/targets:\n" + "\n".join(found)


def test_no_input_takes_much_memory_and_none_keeps_any(target: Target) -> None:
    corpus = corpus_of(target)
    mutator = Mutator(target, Random(1))
    corpus += [mutator.of(corpus) for _ in range(max(0, SHARE_MAX - len(corpus)))]
    with target.opened() as run:
        judge = Judge(run)
        for data in corpus[:SHARE_MAX]:
            judge(data)
        assert judge.findings == {}
        for _ in range(3):  # what keeps something of its inputs does so each time; a cache fills once
            found = memory(run, corpus[:SHARE_MAX], rounds=1)
            if found.grown_bytes * SHARE_MAX < GROWN_MAX:
                break
    assert found.peak_bytes < PEAK_MAX, bytes_line(found.peak_of)
    assert found.grown_bytes * SHARE_MAX < GROWN_MAX


def test_the_kept_corpus_is_read_as_it_was_written() -> None:
    for data in (b"", b"#", b"'\"\\", b"a\r\n\0\xff", bytes(range(256))):
        assert line_bytes(bytes_line(data)) == data
        assert "\n" not in bytes_line(data)
    assert {file.stem for file in FOLDER.glob("*.txt")} <= set(TARGETS)
    assert all(len(data) <= TARGETS[name].size_max for name in TARGETS for data in kept(name))


# The fuzzer itself


def _raises(data: bytes) -> str:
    if data.startswith(b"c"):
        raise KeyError(data)
    if data.startswith(b"w"):
        raise Defect("not so")
    while data.startswith(b"h"):
        pass
    return "ok"


def test_a_judge_finds_what_is_raised_what_is_not_so_and_what_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.fuzz.judge.HANG_S", 0.2)
    made = Judge(_raises)
    assert [made(data) for data in (b"", b"c", b"c2", b"w", b"h")] == ["ok", "", "", "", ""]
    assert (
        sorted(finding.kind for finding in made.findings.values()) == ["crash", "crash", "hang"][: len(made.findings)]
    )
    assert (made.runs, made.outcomes) == (5, {"ok": 1})


def test_a_leak_and_a_burst_are_seen() -> None:
    leaked: list[bytes] = []

    def leaks(data: bytes) -> str:
        leaked.append(bytes(1000))
        return str(len(bytes(100_000))) if data else ""

    run: Run = leaks
    found = memory(run, [b"", b"x"], rounds=10)
    assert found.grown_bytes > 900
    assert (found.peak_bytes > 100_000, found.peak_of) == (True, b"x")
