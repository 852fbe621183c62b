"""What cut streams came to: each compared with the undisturbed answer, and all of them in a table (bench/exact.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct

from bench.report import Figure, within
from bench.talk import Answer, differing
from mesh.answers import Route

REPLACEMENT = "\ufffd"  # what a half character decodes to

Outcome = Literal["exact", "differs", "lost", "failed", "late"]


class Cut(Struct, frozen=True, kw_only=True):
    """One stream. `late`: it had ended before the cut came, so that it shows nothing. `lost`: it ended with
    `stream_lost`; `failed`: with any other error, or none at all. `why`: of all but exact ones. `how`: the engines'
    ways to go on that it took, "begun again" for none of its answer sent, "" for nothing."""

    kind: str
    question: str
    node: str
    entry: str
    outcome: Outcome
    how: str = ""
    why: str = ""
    gap_s: float = 0.0


class Tally(Struct, kw_only=True):
    """`asked`: questions asked twice undisturbed; `noisy`: those whose two answers differ; `unshown`: whose answer
    lacks what they are there for."""

    cuts: list[Cut] = []
    asked: int = 0
    noisy: list[str] = []
    unshown: list[str] = []
    broken: list[str] = []  # what ended the run, or a part of it, before its time

    def hit(self) -> list[Cut]:
        return [cut for cut in self.cuts if cut.outcome != "late"]

    def count(self, outcome: Outcome) -> int:
        return sum(cut.outcome == outcome for cut in self.cuts)


def judged(answer: Answer, route: Route | None, wrong: str) -> tuple[Outcome, str, str]:
    """(outcome, how, why) of a stream. `wrong`: in what its answer is not what it should be, "" for nothing."""
    attempts = route.attempts if route else ()
    how = went_on(route)
    if answer.code == "stream_lost":
        return "lost", how, (route.lost if route and route.lost else answer.error)
    if answer.error:
        return "failed", how, f"{answer.code}: {answer.error}"
    if answer.silent:
        return "failed", how, "the stream ended without [DONE] and without an error"
    if answer.stream and answer.ids != 1:
        wrong = wrong or f"its chunks have {answer.ids} ids"
    if wrong:
        return "differs", how, wrong
    if not any(a.outcome == "failed" or a.cut for a in attempts):
        return "late", "", ""
    return "exact", how, ""


def went_on(route: Route | None) -> str:
    """How an answer that broke off went on."""
    if route is None or len(route.attempts) < 2:
        return ""
    modes = {attempt.mode for attempt in route.attempts[1:]} - {"start"}
    words = {"continue": "continued", "replay": "replayed"}
    return " and ".join(sorted(words.get(mode, mode) for mode in modes)) or "begun again"


def seam(answer: Answer, decode: Callable[[Sequence[int]], str]) -> str:
    """What is wrong with a drawn answer, whose right text nobody knows: its tokens have to decode to its text."""
    if not answer.tokens:
        return "" if answer.error else "its tokens are not named"
    if len(answer.tokens) != answer.usage[1]:
        return f"{len(answer.tokens)} tokens, of which usage counts {answer.usage[1]}"
    whole = decode(answer.tokens).rstrip(REPLACEMENT)
    ours, theirs = answer.text.rstrip(REPLACEMENT).removeprefix(" "), whole.removeprefix(" ")
    return "" if ours == theirs else f"text {ours[-60:]!r} for {theirs[-60:]!r}"


def against(answer: Answer, reference: Answer) -> str:
    """What differs from the undisturbed answer."""
    return "" if answer.error else differing(answer, reference)


def table(cuts: Sequence[Cut]) -> str:
    """For people: outcomes by kind of cut."""
    columns = ("cuts", "exact", "continued", "replayed", "begun again", "differs", "lost", "failed", "late")
    rows = [f"{'':20}" + "".join(f"{name:>13}" for name in columns)]
    for kind in (*sorted({cut.kind for cut in cuts}), "all"):
        mine = [cut for cut in cuts if kind in ("all", cut.kind)]
        hit = [cut for cut in mine if cut.outcome != "late"]
        ends: Counter[str] = Counter(cut.outcome for cut in mine)
        ways = Counter(cut.how for cut in hit)
        both: dict[str, int] = {"cuts": len(hit), **ends}
        both |= {word: sum(n for how, n in ways.items() if word in how) for word in columns[2:5]}
        rows.append(f"{kind:20}" + "".join(f"{both.get(name, 0):>13}" for name in columns))
    reasons = Counter(f"{cut.outcome}: {cut.why}" for cut in cuts if cut.why)
    return "\n".join([*rows, *(f"{count:6} x {why}" for why, count in reasons.most_common(12))])


def certain_rows(tally: Tally, streams: int) -> list[Figure]:
    """Of the reciter: everything has to be equal."""
    name, hit = "exact, float32, one at a time", tally.hit()
    rows = [
        within(f"{name}: questions whose two undisturbed answers differ", len(tally.noisy), "questions", None, 0),
        within(f"{name}: questions that show what they are for", tally.asked - len(tally.unshown), "questions",
               tally.asked or 1, None),
        within(f"{name}: streams cut", len(hit), "streams", streams, None),
        within(f"{name}: not exact", len(hit) - tally.count("exact") if hit else None, "streams", None, 0),
    ]  # fmt: skip
    return [*rows, *_ends(name, tally)]


def batched_rows(tally: Tally) -> list[Figure]:
    """Of the real model at temperature 0: beside the noise."""
    name, hit = "exact, 4-bit SmolLM2, batched", tally.hit()
    noise = len(tally.noisy) / tally.asked if tally.asked else None
    differing_ = tally.count("differs") / len(hit) if hit else None
    return [
        within(f"{name}: noise, questions whose two undisturbed answers differ", noise, "", None, None),
        within(f"{name}: streams cut", len(hit), "streams", 1, None),
        within(f"{name}: of them unlike the undisturbed answer", differing_, "", None, None),
        *_ends(name, tally),
    ]


def drawn_rows(tally: Tally) -> list[Figure]:
    """Of the real model at temperature 0.8: of one piece."""
    name, hit = "exact, 4-bit SmolLM2, temperature 0.8", tally.hit()
    return [
        within(f"{name}: streams cut", len(hit), "streams", 1, None),
        within(
            f"{name}: text that its tokens do not make", tally.count("differs") if hit else None, "streams", None, 0
        ),
        *_ends(name, tally),
    ]


def _ends(name: str, tally: Tally) -> list[Figure]:
    hit = tally.hit()
    ways = {way: sum(way in cut.how for cut in hit) for way in ("continued", "replayed", "begun again")}
    lost = Counter(cut.why for cut in hit if cut.outcome == "lost")
    return [
        *(within(f"{name}: {way}", count, "streams", None, None) for way, count in ways.items()),
        within(f"{name}: stream_lost", sum(lost.values()), "streams", None, 0),
        *(
            within(f"{name}: stream_lost, {why[:80]}", count, "streams", None, None)
            for why, count in sorted(lost.items())
        ),
        within(f"{name}: failed otherwise", tally.count("failed"), "streams", None, 0),
        within(f"{name}: cuts that came too late, made again", tally.count("late"), "streams", None, None),
        within(f"{name}: longest silence", max((c.gap_s for c in hit), default=None), "s", None, None),
        within(f"{name}: parts that broke off", len(tally.broken), "", None, 0),
    ]
