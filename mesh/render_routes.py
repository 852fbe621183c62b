"""Routes as people read them: `mesh routes`, and why one request ran where it did."""

from __future__ import annotations

from collections.abc import Mapping

from mesh import answers
from mesh.render import Block, Table, duration, milliseconds

_ROUTE_COLUMNS = ("ID", "AT", "MODEL", "NODE", "OUTCOME", "TRIES>", "QUEUE>", "FIRST TOKEN>", "TOTAL>", "TOKENS>")


def routes(found: answers.Routes) -> list[Block]:
    """`mlx-stack mesh routes`."""
    page: list[Block] = [Table(_ROUTE_COLUMNS, tuple(_route_row(route) for route in found.routes))]
    if not found.routes:
        page = ["No requests yet."]
    if found.unreachable:
        page.append(f"Note: not reached, their routes are missing: {', '.join(found.unreachable)}")
    return page


def _route_row(route: answers.Route) -> tuple[str, ...]:
    return (
        route.id,
        route.at[5:19].replace("T", " "),
        route.model + (f" ({route.served_model})" if route.served_model not in (None, route.model) else ""),
        route.node or "-",
        f"{route.outcome} {route.status}",
        str(len(route.attempts)),
        milliseconds(route.queue_ms),
        milliseconds(route.ttft_ms),
        milliseconds(route.total_ms),
        f"{route.prompt_tokens}+{route.completion_tokens}",
    )


def route_line(route: answers.Route) -> str:
    """One route as it ends (`mesh routes --follow`)."""
    id_, at, model_name, node, outcome, tries, queue, first, total, tokens = _route_row(route)
    return (
        f"{at}  {id_}  {model_name} -> {node}  {outcome}  queue {queue}, first token {first}, total {total}, "
        f"{tokens} tokens" + (f", {tries} attempts" if tries not in ("0", "1") else "") + _broke_off(route)
    )


def _broke_off(route: answers.Route) -> str:
    """On whom, when some of the answer had come from there."""
    cut = [a.node for a in route.attempts if a.cut]
    return f", broke off on {', '.join(cut)}" if cut else ""


# Why one request ran where it did, in words for who does not know the code. The names of terms are docs/scoring.md's.

_TERMS = {
    "wait": "until it can begin",
    "load": "until the model is in memory",
    "prefill": "reading the prompt",
    "decode": "writing the answer",
    "network": "the way to it",
    "hurt": "what others there lose",
    "guard": "what that machine's own model loses",
    "headroom": "so that memory stays free",
    "again": "what its next turn reads anew",
}
_LEAST_S = 0.0005  # less is shown as 0
_AT_ONCE_MS = 5.0
_TITLE = "Expected cost in seconds: until the first token, and part of what comes after it. The smallest total wins."


def why(route: answers.Route, names: Mapping[str, str]) -> list[Block]:
    """`mesh routes --why ID`. `names` gives people's names for node ids."""
    known_as = f" (its client calls it {route.client_request_id})" if route.client_request_id else ""
    known_as += f", with key '{route.key}'" if route.key else ""
    served = f", as {route.served_model}" if route.served_model not in (None, route.model) else ""
    answered = f", by {route.node}{served}" if route.node else ""
    cached = f" ({route.cached_tokens} of them from the cache)" if route.cached_tokens else ""
    page: list[Block] = [
        f"Request {route.id}{known_as}",
        f"  came to    {route.edge}, {route.at}",
        f"  asked for  {route.model or '-'}, {'as a stream' if route.stream else 'in one piece'}",
        f"  ended      {route.outcome} (HTTP status {route.status}){answered}",
        f"  placed by  {_placed_by(route)}",
        f"  times      {_times(route)}",
    ]
    if route.prompt_tokens or route.completion_tokens:
        page.append(
            f"  tokens     {route.prompt_tokens} in the prompt{cached}, {route.completion_tokens} in the answer"
        )
    page += [f"  {'cut' if n == 0 else '':<9}  {line}" for n, line in enumerate(_handed_over(route, names))]
    if len(route.attempts) > 1 or any(a.error for a in route.attempts):
        page += ["", _attempts(route, names)]
    if route.decision is None:
        return [*page, "", "Nothing was decided about it: it ended before it had a place."]
    return [*page, "", *_decision(route.decision, names)]


_WENT_ON = {"continue": "went on where it stopped", "replay": "ran it again, behind what had been sent"}
_TRIED = {"start": "began", "continue": "went on", "replay": "ran it again"}
_LOST = {
    "not_kept": "what had been sent was not kept: it was too much (docs/api.md, Bounds)",
    "not_understood": "what had been sent is not understood",
    "engine": "no engine of the mesh can go on with it, nor run it again",
    "mismatch": "run again, it said something else",
    "nobody": "nobody was there in time to go on with it",
    "failures": "too many tries to go on with it failed",
    "cuts": "it had broken off too often",
}


def _handed_over(route: answers.Route, names: Mapping[str, str]) -> list[str]:
    """What became of an answer that broke off, cut by cut."""
    lines = []
    for n, attempt in enumerate(route.attempts):
        if not attempt.cut:
            continue
        broke = f"{names.get(attempt.node, attempt.node)} broke off in the middle of the answer"
        later = next((a for a in route.attempts[n + 1 :] if a.cut or a.outcome == "ok"), None)
        if later is None:
            lines.append(f"{broke}; it could not go on: {_LOST.get(route.lost or '', 'it ended before it could')}")
        else:
            went_on = _WENT_ON.get(later.mode, "gave it anew: nothing had been sent")
            lines.append(f"{broke}; {names.get(later.node, later.node)} {went_on}")
    return lines


def _attempts(route: answers.Route, names: Mapping[str, str]) -> Table:
    """Every try. How each one began is shown only where it says something."""
    went_on = any(a.mode != "start" for a in route.attempts)
    rows = []
    for n, a in enumerate(route.attempts, start=1):
        outcome = "cut" if a.cut else a.outcome
        how = (_TRIED.get(a.mode, a.mode),) if went_on else ()
        rows.append((str(n), names.get(a.node, a.node), *how, outcome, milliseconds(a.ms), a.error or "-"))
    return Table(("TRY>", "NODE", *(("HOW",) if went_on else ()), "OUTCOME", "TIME>", "ERROR"), tuple(rows), "Attempts")


def _placed_by(route: answers.Route) -> str:
    if route.decision is not None and not route.decision.chosen and "prompt_tokens" not in route.decision.request:
        return f"nobody: {route.edge} refused it without asking"
    if route.coordinator is None:
        return f"{route.edge} itself"
    return f"{route.coordinator}, the coordinator"


def _times(route: answers.Route) -> str:
    parts = []
    if route.node is not None:
        at_once = route.queue_ms < _AT_ONCE_MS
        parts.append("placed at once" if at_once else f"placed after {_time(route.queue_ms)}")
    if route.ttft_ms is not None:
        parts.append(f"first token after {_time(route.ttft_ms)}")
    return ", ".join([*parts, f"{_time(route.total_ms)} in all"])


def _decision(decision: answers.Decision, names: Mapping[str, str]) -> list[Block]:
    priced = sorted((c for c in decision.candidates if c.total_s is not None), key=lambda c: c.total_s or 0.0)
    priced.sort(key=lambda c: c.node != decision.chosen)  # what was chosen comes first, even when it is not cheapest
    page: list[Block] = [*_verdict(decision, priced, names)]
    page += [f"  {names.get(c.node, c.node)} could not: {c.excluded}" for c in decision.candidates if c.total_s is None]
    if assumed := _assumed(decision.request):
        page.append(f"  Assumed: {assumed}.")
    if priced:
        page += ["", _table(decision, priced, names)]
    for candidate in priced:
        page += ["", f"{names.get(candidate.node, candidate.node)}: {_s(candidate.total_s)} s"]
        page += [f"  {_s(t.seconds):>7}  {t.name:<8}  {_said(t)}" for t in candidate.terms]
    return page


def _verdict(decision: answers.Decision, priced: list[answers.Candidate], names: Mapping[str, str]) -> list[str]:
    """The answer in a few sentences."""
    request = decision.request
    lines = []
    if request.get("waited_for") or decision.waited_ms >= _AT_ONCE_MS:
        lines.append(f"  It waited {_time(decision.waited_ms)}.")
    if request.get("waited_for"):
        lines[-1] += f" {_sentence(str(request['waited_for']))}"
    if decision.chosen is None:
        told = f"  Its client was told: {request.get('refused') or 'no node could serve it'}"
        left = ["  What it would have cost by then is below."] if priced else []
        return ["Why it was refused", told, *lines, *left]
    chosen = names.get(decision.chosen, decision.chosen)
    lines.insert(0, f"Why {chosen}")
    lines += [f"  {_sentence(str(request[key]))}" for key in ("fallback", "idle") if request.get(key)]
    best = next((c for c in priced if c.node == decision.chosen), None)
    if best is None:
        return lines
    if len(priced) == 1:
        lines.append(f"  {chosen} was the only one that could serve it.")
    else:
        lines += _compared(best, next(c for c in priced if c is not best), names)
    load = next((t for t in best.terms if t.name == "load" and t.seconds >= _LEAST_S), None)
    return [*lines, *([f"  It had to wait for its model there: {load.why}."] if load is not None else [])]


def _compared(best: answers.Candidate, other: answers.Candidate, names: Mapping[str, str]) -> list[str]:
    """What made the difference to the next best."""
    here, there = names.get(best.node, best.node), names.get(other.node, other.node)
    more = (other.total_s or 0.0) - (best.total_s or 0.0)
    if more < _LEAST_S:
        end = "; of equals the lower id goes first." if more >= 0 else ", but was not chosen."
        return [f"  {here} was expected to cost {_s(best.total_s)} s, {there} {_s(other.total_s)} s{end}"]
    first = f"  {here} was expected to cost least: {_s(best.total_s)} s. {there} was next with {_s(other.total_s)} s."
    mine = {t.name: t for t in best.terms}
    none = answers.Term(name="", seconds=0.0)
    decided = max(other.terms, key=lambda t: t.seconds - mine.get(t.name, none).seconds, default=None)
    if decided is None:
        return [first]
    own = mine.get(decided.name, none)
    return [
        first,
        f"  What decided is {decided.name}, {_TERMS.get(decided.name, 'a part of the cost')}:",
        f"    {_s(own.seconds)} s on {here} ({own.why})",
        f"    {_s(decided.seconds)} s on {there} ({decided.why})",
    ]


def _table(decision: answers.Decision, priced: list[answers.Candidate], names: Mapping[str, str]) -> Table:
    """Every node that could, and the terms that are not 0 everywhere."""
    terms = dict.fromkeys(t.name for c in priced for t in c.terms if abs(t.seconds) >= _LEAST_S)
    order = [t for t in _TERMS if t in terms] + [t for t in terms if t not in _TERMS]
    rows = []
    for candidate in priced:
        mark = "> " if candidate.node == decision.chosen else "  "
        seconds = {t.name: _s(t.seconds) for t in candidate.terms}
        cells = [seconds.get(term, "-") for term in order]
        rows.append((mark + names.get(candidate.node, candidate.node), candidate.model, *cells, _s(candidate.total_s)))
    return Table(("  NODE", "MODEL", *(f"{t}>" for t in order), "total>"), tuple(rows), _TITLE)


def _assumed(request: Mapping[str, object]) -> str:
    known = []
    if "prompt_tokens" in request:
        known.append(f"a prompt of about {request['prompt_tokens']} tokens")
    if request.get("expected_tokens") is not None:
        limit = f" (its client allows {request['max_tokens']})" if request.get("max_tokens") else ""
        known.append(f"an answer of about {request['expected_tokens']}{limit}")
    if request.get("priority") == "low":
        known.append("low priority: it stands behind others")
    return ", ".join(known)


def _said(term: answers.Term) -> str:
    words = _TERMS.get(term.name)
    return f"{words}: {term.why}" if words else term.why


def _time(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else duration(ms / 1e3)


def _s(seconds: float | None) -> str:
    if seconds is None or abs(seconds) < _LEAST_S:
        return "0"
    return f"{seconds:.3f}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
