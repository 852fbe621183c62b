"""Why: the Decision of a grant or of a refusal, from what was known then; and one as a line of ASCII for a header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from node.types import NodeId
from router.cost import Held
from router.errors import Refusal
from router.events import Candidate, Decision, Facts, Request
from router.fleet import Options
from router.reasons import Reasons, Used, priced, why_not_now
from router.settings import RouterSettings
from router.shortcut import Found
from router.walk import Choice

OTHER_WEIGHTS = "this conversation began with other weights of that name"


class Case(NamedTuple):
    """A request as it was when it was decided on. `held`: what it had waited for, if anything."""

    request: Request
    waited_s: float
    held: Held | None
    options: Options


def granted(case: Case, choice: Choice, settings: RouterSettings) -> Reasons:
    """Why it goes where it goes."""
    facts = _facts(case, choice.best.cached, choice.best.output)
    if choice.idle_s is not None:
        text = f"it stood idle for {choice.idle_s:.0f} s while requests it can serve waited for a better node"
        facts["idle"] = text
    return _reasons(facts, choice.best.lane.status.node, case, choice, settings)


def granted_at_once(case: Case, found: Found, settings: RouterSettings) -> Reasons:
    """The same of one that nobody stood before."""
    prices = found.priced(case.request, settings)
    best = prices[found.best]
    facts = _facts(case, best.cached, best.output)
    return Reasons(facts, best.node, case.waited_s, Used.of(settings), prices, tuple(case.options.unfit))


def refused(case: Case, choice: Choice | None, refusal: Refusal, settings: RouterSettings) -> Decision:
    """Why it goes nowhere. `choice`: what it would cost by now; None: nobody can serve it."""
    best = choice.best if choice is not None else None
    said = _facts(case, best.cached, best.output) if best is not None else _facts(case, None, None)
    facts: Facts = {"refused": refusal.message, **said}
    return _reasons(facts, None, case, choice, settings).decision


def refused_unasked(refusal: Refusal, request: str, model: str, excluded: Mapping[NodeId, str]) -> Decision:
    """Its edge refused it by itself. `excluded`: why not, of each node that matters."""
    facts: Facts = {"refused": refusal.message, "id": request, "models": [model] if model else []}
    candidates = tuple(Candidate(n, model, excluded=why) for n, why in excluded.items())
    return Decision(request=facts, chosen=None, waited_ms=0.0, candidates=candidates)


def _facts(case: Case, cached: int | None, output: float | None) -> Facts:
    """What was assumed; of the place that it would have, if there is one."""
    request, options, held = case.request, case.options, case.held
    return {
        "id": request.id,
        "models": list(request.models),
        "model": options.name or None,
        "fallback": options.note,
        "idle": None,
        "waited_for": _waited_for(held) if held is not None else None,
        "prompt_tokens": request.prompt_tokens,
        "cached_tokens": cached,
        "max_tokens": request.max_tokens,
        "expected_tokens": round(output) if output is not None else None,
        "priority": request.priority,
        "excluded": list(request.excluded),
    }


def _reasons(
    facts: Facts, chosen: NodeId | None, case: Case, choice: Choice | None, settings: RouterSettings
) -> Reasons:
    others = [Candidate(o.status.node, o.model.name, excluded=OTHER_WEIGHTS) for o in choice.others] if choice else []
    prices = tuple(priced(p) for p in choice.prices) if choice is not None else ()
    return Reasons(facts, chosen, case.waited_s, Used.of(settings), prices, (*others, *case.options.unfit))


def _waited_for(held: Held) -> str:
    """What kept it, when it was first looked at."""
    text = f"when it came, {held.why}"
    if held.best is not None:
        status, free = held.best.lane.status, held.free
        text = f"when it came, its best place was {status.name or status.node}: {why_not_now(priced(held.best))}"
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
