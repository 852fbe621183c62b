"""The loader and the engine of `make bench-path` say the truth: against each other and through a daemon.

No time is judged: that is the bench's, on a machine with nothing else to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bench.path.measures import FIRST_RATE, Loaded, Measure, Run, Spread, held, measured, measures
from bench.path.native import missing
from bench.path.profile import summary
from bench.path.rows import Bench, figures
from bench.path.subjects import Subject, engine, subject

pytestmark = [pytest.mark.server, pytest.mark.skipif(bool(missing("gcc")), reason=missing("gcc") or "-")]
ALL = measures(1.0, rate=50.0, streams=10)
STREAMED = Measure(name="streamed", mode="closed", streamed=True, chunks=5, pace_us=1000, conns=4)


@pytest.fixture(scope="module")
def fake() -> Iterator[Subject]:
    with engine() as found:
        yield found


def whole(run: Run) -> Loaded:
    """Every answer was right."""
    assert (run.load.wrong, run.load.lost) == (0, 0)
    assert run.load.good > 0
    return run.load


@pytest.mark.parametrize("kind", [*ALL.values(), STREAMED], ids=lambda kind: kind.name)
def test_the_loader_gets_every_answer_of_the_engine(kind: Measure, fake: Subject, tmp_path: Path) -> None:
    load = whole(measured(kind, fake, fake, tmp_path, 1.0))
    assert load.chunks > 0
    assert load.peak == kind.conns or kind.mode == "open" or not kind.streamed
    assert load.first.n <= load.chunks


def test_what_the_engine_did_not_say_is_counted_as_wrong(fake: Subject, tmp_path: Path) -> None:
    class Deaf(Measure, frozen=True):
        def words(self, seconds: float) -> list[str]:
            return [*super().words(seconds)[:1], "text=58", *super().words(seconds)[1:]]

    run = measured(Deaf(name="deaf", mode="closed", conns=1), fake, fake, tmp_path, 0.3)
    assert run.load.good == 0
    assert run.load.wrong > 0


def test_nothing_is_lost_on_its_way_through_a_daemon(fake: Subject, short_folder: Path, tmp_path: Path) -> None:
    with subject("ours", fake.port, short_folder / "ours") as ours:
        for kind in (ALL["requests"], ALL["long"], ALL["first"], STREAMED, held("crowd", 20, 1.0)):
            run = measured(kind, ours, fake, tmp_path, 1.0)
            whole(run)
            assert run.cpu_s > 0


def test_a_body_is_as_long_as_it_is_said_to_be() -> None:
    assert [len(ALL[name].body()) for name in ("requests", "long")] == [350, 33_000]


SPREAD = Spread(n=100, p50=100.0, p99=200.0, max=300.0)
LOAD = Loaded(
    answers=1000, good=1000, wrong=0, lost=0, chunks=1000, seconds=1.0, peak=1, answer=SPREAD, first=SPREAD, hop=SPREAD
)


def run_of(name: str, kind: str, number: int, *, cpu_s: float = 0.01, p50: float = 100.0) -> Run:
    spread = msgspec.structs.replace(SPREAD, p50=p50)
    load = msgspec.structs.replace(LOAD, answer=spread, first=spread)
    return Run(name, kind, number, load, cpu_s, others=0.1)


def test_a_ratio_is_taken_within_its_round_and_what_the_engine_takes_is_no_fault_of_the_subjects() -> None:
    runs = []
    for number, busy in enumerate((1.0, 5.0, 1.0)):  # in the second all take five times as long
        runs += [
            run_of("direct", "paced", number, p50=50 * busy),
            run_of("nginx", "paced", number, p50=100 * busy),
            run_of("ours", "paced", number, p50=150 * busy),
            run_of("nginx", "requests", number, cpu_s=0.01 * busy),
            run_of("ours", "requests", number, cpu_s=0.03 * busy),
        ]
    found = {figure.name: figure for figure in figures(Bench(runs, rate=FIRST_RATE, streams=25))}
    assert found["open loop: added p50 at 100 req/s / nginx"].value == 2.0
    cpu = found["CPU per request, 350 B / nginx"]
    assert cpu.value == 3.0
    assert not cpu.holds
    assert cpu.goal == "<= 1.66667, floor 2.5 (missed)"
    assert found["requests/s, 350 B / nginx"].holds
    assert found["open loop: rate (goal is for 1000)"].value == FIRST_RATE


def test_a_profile_is_summed_up_by_function_of_the_thread_that_serves() -> None:
    main, other = "thread (0x1): MainThread", "thread (0x2): writer"
    said = summary(
        f"{main};run (a.py:1);serve (b.py:2) 3\n{main};run (a.py:9);serve (b.py:7);read (c.py:4) 1\n"
        f"{other};wait (d.py:1) 9\nnonsense\n"
    )
    assert "4 samples" in said
    assert " 100.0  run (a.py)" in said
    assert "  75.0  serve (b.py)" in said
    assert "wait" not in said
