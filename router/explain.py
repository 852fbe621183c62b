"""Why: the Decision of a grant or of a refusal, from what was known then; and one as a line of ASCII for a header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from node.types import NodeId
from router.cost import Held, explain, why_not_now
from router.errors import Refusal
from router.events import Candidate, Decision, Request
from router.fleet import Options
from router.settings import RouterSettings
from router.walk import Choice

OTHER_WEIGHTS = "this conversation began with other weights of that name"
Facts = dict[str, str | int | float | list[str] | None]


class Case(NamedTuple):
    """A request as it was when it was decided on. `held`: what it had waited for, if anything."""

    request: Request
    waited_s: float
    held: Held | None
    options: Options


def granted(case: Case, choice: Choice, settings: RouterSettings) -> Decision:
    """Why it goes where it goes: everyone who was looked at, cheapest first, then everyone who cannot."""
    facts = _facts(case, choice)
    if choice.idle_s is not None:
        text = f"it stood idle for {choice.idle_s:.0f} s while requests it can serve waited for a better node"
        facts["idle"] = text
    return _decision(facts, choice.best.lane.status.node, case.waited_s, _candidates(case, choice, settings))


def refused(case: Case, choice: Choice | None, refusal: Refusal, settings: RouterSettings) -> Decision:
    """Why it goes nowhere. `choice`: what it would cost by now; None: nobody can serve it."""
    facts: Facts = {"refused": refusal.message, **_facts(case, choice)}
    return _decision(facts, None, case.waited_s, _candidates(case, choice, settings))


def refused_unasked(refusal: Refusal, request: str, model: str, excluded: Mapping[NodeId, str]) -> Decision:
    """Its edge refused it by itself. `excluded`: why not, of each node that matters."""
    facts: Facts = {"refused": refusal.message, "id": request, "models": [model] if model else []}
    return _decision(facts, None, 0.0, tuple(Candidate(n, model, excluded=why) for n, why in excluded.items()))


def _decision(facts: Facts, chosen: NodeId | None, waited_s: float, candidates: tuple[Candidate, ...]) -> Decision:
    return Decision(request=facts, chosen=chosen, waited_ms=max(0.0, waited_s) * 1000, candidates=candidates)


def _facts(case: Case, choice: Choice | None) -> Facts:
    """What was assumed."""
    request, options, held = case.request, case.options, case.held
    return {
        "id": request.id,
        "models": list(request.models),
        "model": options.name or None,
        "fallback": options.note,
        "idle": None,
        "waited_for": _waited_for(held) if held is not None else None,
        "prompt_tokens": request.prompt_tokens,
        "cached_tokens": choice.best.cached if choice is not None else None,
        "max_tokens": request.max_tokens,
        "expected_tokens": round(choice.best.output) if choice is not None else None,
        "priority": request.priority,
        "excluded": list(request.excluded),
    }


def _candidates(case: Case, choice: Choice | None, settings: RouterSettings) -> tuple[Candidate, ...]:
    if choice is None:
        return tuple(case.options.unfit)
    priced = [explain(p, case.request, settings) for p in choice.prices]
    priced.sort(key=lambda c: (c.total_s or 0.0, c.node))
    others = [Candidate(o.status.node, o.model.name, excluded=OTHER_WEIGHTS) for o in choice.others]
    return (*priced, *others, *case.options.unfit)


def _waited_for(held: Held) -> str:
    """What kept it, when it was first looked at."""
    text = f"when it came, {held.why}"
    if held.best is not None:
        status, free = held.best.lane.status, held.free
        text = f"when it came, its best place was {status.name or status.node}: {why_not_now(held.best)}"
        if free is not None:
            other = free.lane.status
            text += f"; {other.name or other.node} was free, but would have cost {free.total:.1f} s, not"
            text += f" {held.best.total:.1f} s"
    before = f"; {held.ahead} stood before it in the queue" if held.ahead else ""
    return text + before


def compact(decision: Decision, limit_bytes: int) -> str:
    """At most `limit_bytes`. Candidates stand cheapest first, then the excluded: as many from the end as do not fit are
    left off, and `left_off` says how many. Terms are never cut, so they add up; should one candidate be too much,
    what is known of the request goes too."""
    whole: dict[str, Any] = msgspec.to_builtins(decision)
    candidates = whole["candidates"]
    text = _line(whole)
    if len(text) <= limit_bytes:
        return text
    sizes = [len(_line(candidate)) + 1 for candidate in candidates]
    room = limit_bytes - len(_line({**whole, "candidates": [], "left_off": len(candidates)}))
    count = 0
    while count < len(sizes) and sizes[count] <= room:
        room -= sizes[count]
        count += 1
    if room >= 0:
        return _line({**whole, "candidates": candidates[:count], "left_off": len(candidates) - count})
    return _line({"chosen": decision.chosen, "waited_ms": decision.waited_ms, "left_off": len(candidates)})


def _line(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
