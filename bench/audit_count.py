"""What an audit's requests came to, one by one and in rows (bench/audit.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from bench.report import Figure, within
from bench.talk import Answer
from mesh.answers import Route
from router.errors import ErrorCode

# More than these at the end than at the start is a leak. Connections to peers that came back, asyncio's pool of threads
# that is filled as it is needed, and the routes of an hour are not.
FDS_MOST, THREADS_MOST, PSS_MOST_MIB = 4, 4, 10.0
REFUSED = set(ErrorCode) - {ErrorCode.STREAM_LOST}
DEADLY = ("daemon killed", "link cut", "daemon frozen")  # to a client of that node itself

Kind = Literal["ok", "retried", "resumed", "refused", "lost", "silent", "hung", "wrong", "unnamed"]
GOOD: tuple[Kind, ...] = ("ok", "retried", "resumed", "refused")


class Fault(Struct, kw_only=True):
    """What was done to a node. `end` (monotonic): when it was taken back and the node was well again; 0: not yet.
    `coordinated`: clients that go by the name were its clients."""

    kind: str
    node: str
    address: str
    start: float
    end: float = 0.0
    coordinated: bool = False

    def over(self, answer: Answer) -> bool:
        """It was there while this request was open."""
        return self.start <= answer.end and (not self.end or self.end >= answer.start)


class Ended(Struct, frozen=True):
    """One request. `why` of all that are not good; `how` an answer that broke off went on."""

    kind: Kind
    answer: Answer
    why: str = ""
    how: str = ""


class Held(Struct, frozen=True):
    """What one daemon holds."""

    fds: int
    threads: int
    pss_bytes: int
    open: int  # requests in flight or waiting, as it says itself


def ended(answer: Answer, route: Route | None, how: str, wrong: str) -> Ended:
    """`wrong`: in what it differs from the undisturbed answer."""
    if answer.code == "hung":
        return Ended("hung", answer, answer.error)
    if answer.code in REFUSED:
        return Ended("refused", answer, answer.code)
    if answer.code == ErrorCode.STREAM_LOST:
        return Ended("lost", answer, (route.lost if route and route.lost else answer.error))
    if answer.error:
        return Ended("unnamed", answer, answer.error)
    if answer.silent:
        return Ended("silent", answer, "no [DONE] and no error")
    if wrong:
        return Ended("wrong", answer, wrong, how)
    attempts = route.attempts if route else ()
    if any(attempt.cut for attempt in attempts):
        return Ended("resumed", answer, how=how)
    return Ended("retried" if any(a.outcome == "failed" for a in attempts) else "ok", answer)


def blamed(one: Ended, faults: Sequence[Fault]) -> Fault | None:
    """The fault of the edge whose client this was: the one at the other end of its connection, or, since a client that
    cannot connect knows no address, the one that the name led to."""
    edges = [f for f in faults if f.kind in DEADLY and f.over(one.answer)]
    mine = (f for f in edges if f.address == one.answer.edge)
    return next(mine, None) or next((f for f in edges if f.coordinated), None)


def rows(name: str, all_ended: Sequence[Ended], faults: Sequence[Fault], skipped: int, bound_s: float) -> list[Figure]:
    """Of a run whose edges get no fault."""
    counts = Counter(one.kind for one in all_ended)
    return [
        *_asked(name, all_ended, faults, skipped),
        within(f"{name}: failed", _bad(all_ended), "requests", None, 0),
        within(f"{name}: stream_lost", counts["lost"], "requests", None, 0),
        within(f"{name}: streams that ended in silence", counts["silent"], "streams", None, 0),
        within(f"{name}: answers unlike the undisturbed one", counts["wrong"], "requests", None, 0),
        within(f"{name}: hung past the bound", counts["hung"], "requests", None, 0),
        *_waits(name, all_ended, bound_s),
    ]


def edge_rows(
    name: str, all_ended: Sequence[Ended], faults: Sequence[Fault], skipped: int, bound_s: float
) -> list[Figure]:
    """Of a run whose edges get faults too: failures by kind, and those that no dead edge explains."""
    failed = [one for one in all_ended if one.kind not in GOOD]
    kinds = Counter(f"{one.kind}, {'stream' if one.answer.stream else 'in one piece'}" for one in failed)
    alone = [one for one in failed if blamed(one, faults) is None]
    counts = Counter(one.kind for one in all_ended)
    return [
        *_asked(name, all_ended, faults, skipped),
        *(within(f"{name}: failed, {kind}", count, "requests", None, None) for kind, count in sorted(kinds.items())),
        within(f"{name}: failed, of an edge that lives", len(alone), "requests", None, 0),
        within(f"{name}: answers unlike the undisturbed one", counts["wrong"], "requests", None, 0),
        *_waits(name, all_ended, bound_s),
    ]


def _asked(name: str, all_ended: Sequence[Ended], faults: Sequence[Fault], skipped: int) -> list[Figure]:
    counts = Counter(one.kind for one in all_ended)
    ways = Counter(one.how for one in all_ended if one.kind == "resumed")
    kinds = Counter(fault.kind for fault in faults)
    codes = Counter(one.why for one in all_ended if one.kind == "refused")
    return [
        within(f"{name}: requests", len(all_ended), "requests", 1, None),
        within(f"{name}: streamed", sum(one.answer.stream for one in all_ended), "requests", 1, None),
        within(f"{name}: faults", len(faults), "faults", 1, None),
        *(within(f"{name}: faults, {kind}", count, "faults", None, None) for kind, count in sorted(kinds.items())),
        within(f"{name}: turns without a fault, nobody could be spared", skipped, "turns", None, None),
        within(f"{name}: ok at once", counts["ok"], "requests", 1, None),
        within(f"{name}: ok, begun again before the first byte", counts["retried"], "requests", None, None),
        within(f"{name}: ok, resumed after it", counts["resumed"], "requests", 1, None),
        *(within(f"{name}: resumed, {way}", count, "requests", None, None) for way, count in sorted(ways.items())),
        within(f"{name}: refused by name", counts["refused"], "requests", None, None),
        *(within(f"{name}: refused, {code}", count, "requests", None, None) for code, count in sorted(codes.items())),
    ]


def _waits(name: str, all_ended: Sequence[Ended], bound_s: float) -> list[Figure]:
    longest = max((one.answer.end - one.answer.start for one in all_ended), default=None)
    silence = max((one.answer.gap_s for one in all_ended), default=None)
    return [
        within(f"{name}: longest wait for an end", longest, "s", None, bound_s),
        within(f"{name}: longest silence within a stream", silence, "s", None, None),
    ]


def _bad(all_ended: Sequence[Ended]) -> int:
    return sum(one.kind not in GOOD for one in all_ended)


def held_rows(name: str, start: Sequence[Held], end: Sequence[Held]) -> list[Figure]:
    """The edges before the first fault and after the last, both idle and after the same load."""
    pairs = list(zip(start, end, strict=False))
    most_mib = max((after.pss_bytes / 2**20 for _, after in pairs), default=None)
    mib = [(after.pss_bytes - before.pss_bytes) / 2**20 for before, after in pairs]
    return [
        within(f"{name}: fds more at the end, most of an edge", max((a.fds - b.fds for b, a in pairs), default=None),
               "fds", None, FDS_MOST),
        within(f"{name}: threads more at the end, most of an edge",
               max((a.threads - b.threads for b, a in pairs), default=None), "threads", None, THREADS_MOST),
        within(f"{name}: requests still open at the end", sum(a.open for _, a in pairs) if pairs else None,
               "requests", None, 0),
        within(f"{name}: memory more at the end, most of an edge", max(mib, default=None), "MiB", None, PSS_MOST_MIB),
        within(f"{name}: memory of an edge at the end, most", most_mib, "MiB", None, None),
    ]  # fmt: skip
