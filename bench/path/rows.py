"""Goals and figures: medians over rounds of ratios to nginx, each taken within one round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeAlias

from msgspec import Struct

from bench.path.measures import FIRST_RATE, Run
from bench.report import Figure, within

Reading: TypeAlias = Callable[[Run], float | None]
TWO_MOST = 2.2


class Row(Struct, frozen=True):
    """One figure; `goal` 0: none. `added`: what the engine alone takes is subtracted from both. `least` instead of
    `most` where more is better."""

    measure: str
    name: str
    unit: str
    reading: Reading
    goal: float
    floor: float
    added: bool = False
    least: bool = False


ROWS = (
    Row("requests", "requests/s, 350 B", "req/s", lambda r: r.rate, 0.60, 0.40, least=True),
    Row("requests", "CPU per request, 350 B", "us", lambda r: r.cpu_us, 1 / 0.60, 1 / 0.40),
    Row("long", "CPU per request, 32 KB prompt", "us", lambda r: r.cpu_us, 1.8, 2.4),
    Row("paced", "open loop: added p50", "us", lambda r: r.load.answer.p50, 1.25, 1.6, added=True),
    Row("paced", "open loop: added p99", "us", lambda r: r.load.answer.p99, 1.5, 2.5, added=True),
    Row("first", "added first chunk p50", "us", lambda r: r.load.first.p50, 1.6, 2.5, added=True),
    Row("hop", "added hop p50, 16 streams", "us", lambda r: r.load.hop.p50, 1.2, 1.5, added=True),
    Row("hop", "added hop p99, 16 streams", "us", lambda r: r.load.hop.p99, 0, 0, added=True),
    Row("crowd", "CPU per unbatched chunk", "us", lambda r: r.chunk_cpu_us, 1.25, 1.6),
    Row("paced", "open loop: CPU per request", "us", lambda r: r.cpu_us, 0, 0),
    Row("burst", "CPU per chunk, 16 streams at 0 ms", "us", lambda r: r.chunk_cpu_us, 0, 0),
    Row("burst", "chunks/s, 16 streams at 0 ms", "chunks/s", lambda r: r.chunk_rate, 0.95, 0.8, least=True),
)


class Bench(Struct, frozen=True):
    """All runs of one bench, and the load that was within everybody's reach."""

    runs: Sequence[Run]
    rate: float
    streams: int

    def of(self, measure: str, subject: str) -> dict[int, Run]:
        """By round."""
        return {r.round: r for r in self.runs if r.measure == measure and r.subject == subject}

    def value(self, row: Row, subject: str) -> float | None:
        """The median over rounds; an added time without what the engine alone takes."""
        return _median([self._reading(row, run) for run in self.of(row.measure, subject).values()])

    def ratio(self, row: Row, subject: str, to: str) -> float | None:
        """The median over rounds of the ratio within each."""
        tops, bases = self.of(row.measure, subject), self.of(row.measure, to)
        ratios = []
        for number in tops.keys() & bases.keys():
            top, base = self._reading(row, tops[number]), self._reading(row, bases[number])
            if top is not None and base is not None and base > 0:
                ratios.append(top / base)
        return _median(ratios)

    def _reading(self, row: Row, run: Run) -> float | None:
        value = row.reading(run)
        if not row.added or value is None:
            return value
        direct = self.of(row.measure, "direct").get(run.round)
        base = None if direct is None else row.reading(direct)
        return None if base is None else value - base

    def names(self) -> list[str]:
        """Of the subjects, in the order they came."""
        return list(dict.fromkeys(r.subject for r in self.runs))


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return median(known) if known else None


def figures(bench: Bench) -> list[Figure]:
    """Those with a goal first, then what they come from."""
    names, measured = bench.names(), {r.measure for r in bench.runs}
    rows = [row for row in ROWS if row.measure in measured]
    return [
        *(f for row in rows if "ours" in names and "nginx" in names for f in _held(bench, row)),
        *(f for row in rows if "two" in names and "ours" in names and row.goal for f in _two(bench, row)),
        *_first_p99(bench),
        *_whole(bench),
        *(
            within(f"{row.name}: {name}", bench.value(row, name), row.unit, None, None)
            for row in rows
            for name in names
        ),
        *_told(bench),
    ]


def _held(bench: Bench, row: Row) -> list[Figure]:
    ratio = bench.ratio(row, "ours", "nginx")
    return [_judged(f"{_loaded(bench, row)} / nginx", ratio, row)] if row.goal else []


def _judged(name: str, value: float | None, row: Row) -> Figure:
    """Against the goal; the floor is said beside it, and whether the figure is below that too."""
    figure = within(name, value, "x", row.goal if row.least else None, None if row.least else row.goal)
    past = value is not None and (value < row.floor if row.least else value > row.floor)
    goal = f"{figure.goal}, floor {row.floor:.3g}{' (missed)' if past else ''}"
    return Figure(figure.name, figure.value, figure.unit, goal, figure.holds)


def _loaded(bench: Bench, row: Row) -> str:
    if row.measure == "paced":
        return f"{row.name} at {bench.rate:g} req/s"
    return f"{row.name}, {bench.streams} streams" if row.measure == "crowd" else row.name


def _two(bench: Bench, row: Row) -> list[Figure]:
    ratio = bench.ratio(row, "two", "ours")
    if row.least:
        return [within(f"two nodes / one: {row.name}", ratio, "x", 1 / TWO_MOST, None)]
    return [within(f"two nodes / one: {_loaded(bench, row)}", ratio, "x", None, TWO_MOST)]


def _first_p99(bench: Bench) -> list[Figure]:
    found = []
    for name in bench.names():
        goal = 0.5 if name == "ours" else None
        p99 = _median([r.load.first.p99 / 1000 for r in bench.of("first", name).values()])
        if p99 is not None:
            found.append(within(f"first chunk p99, {FIRST_RATE} streams/s: {name}", p99, "ms", None, goal))
    return found


def _whole(bench: Bench) -> list[Figure]:
    """Every answer, also outside of the windows."""
    found = []
    for name in bench.names():
        bad = sum(r.load.wrong + r.load.lost for r in bench.runs if r.subject == name)
        good = sum(r.load.good for r in bench.runs if r.subject == name)
        found.append(within(f"answers wrong or lost of {good + bad}: {name}", bad, "", None, 0))
    return found


def _told(bench: Bench) -> list[Figure]:
    """Under what conditions."""
    others = [100 * r.others for r in bench.runs]
    full = [r.cpu_s / r.load.seconds for r in bench.of("crowd", "ours").values()]
    return [
        within("rounds", len({r.round for r in bench.runs}), "", None, None),
        within("open loop: rate (goal is for 1000)", bench.rate, "req/s", None, None),
        within("crowd: streams of 50 chunks/s (goal is for 400)", bench.streams, "", None, None),
        within("crowd: share of a core that ours took", _median(full), "", None, None),
        within("machine: taken by others, median", _median(others), "%", None, None),
        within("machine: taken by others, most", max(others, default=0.0), "%", None, None),
    ]
