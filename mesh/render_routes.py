"""Routes as people read them: `mesh routes`, and why one request ran where it did."""

from __future__ import annotations

from collections.abc import Mapping

from mesh import answers
from mesh.render import Block, Table, milliseconds

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
        f"{tokens} tokens" + (f", {tries} attempts" if tries not in ("0", "1") else "")
    )


def why(route: answers.Route, names: Mapping[str, str]) -> list[Block]:
    """`mesh routes --why ID`: why this request ran where it did. `names` gives people's names for node ids."""
    asked = route.model + (f", served as {route.served_model}" if route.served_model not in (None, route.model) else "")
    placed = f"placed by {route.coordinator}" if route.coordinator else f"placed by {route.edge} itself"
    streamed = "streamed" if route.stream else "in one piece"
    queue, first, total = map(milliseconds, (route.queue_ms, route.ttft_ms, route.total_ms))
    times = f"queue {queue}, first token {first}, total {total}"
    page: list[Block] = [
        f"Request {route.id}" + (f" (client's id {route.client_request_id})" if route.client_request_id else ""),
        f"  model    {asked}",
        f"  way      {route.at} in at {route.edge}, {placed}, answered by {route.node or 'nobody'}",
        f"  answer   {route.outcome}, status {route.status}, {streamed}",
        f"  times    {times}",
        f"  tokens   prompt {route.prompt_tokens} ({route.cached_tokens} cached), answer {route.completion_tokens}",
    ]
    if route.attempts:
        rows = tuple(
            (str(n), names.get(a.node, a.node), a.outcome, milliseconds(a.ms), a.error or "-")
            for n, a in enumerate(route.attempts, start=1)
        )
        page += ["", Table(("TRY>", "NODE", "OUTCOME", "TIME>", "ERROR"), rows, "Attempts")]
    if route.decision is None:
        return [*page, "", "No decision is kept for this request: it was answered before one was needed."]
    return [*page, "", *_decision(route.decision, names)]


def _decision(decision: answers.Decision, names: Mapping[str, str]) -> list[Block]:
    terms: dict[str, None] = {}
    for candidate in decision.candidates:
        terms.update(dict.fromkeys(term.name for term in candidate.terms))
    order = sorted(decision.candidates, key=lambda c: (c.total_s is None, c.total_s or 0.0))
    rows, reasons = [], []
    for candidate in order:
        name = names.get(candidate.node, candidate.node)
        mark = "> " if candidate.node == decision.chosen and candidate.total_s is not None else "  "
        seconds = {term.name: f"{term.seconds:.3f}" for term in candidate.terms}
        total = "-" if candidate.total_s is None else f"{candidate.total_s:.3f}"
        cells = [seconds.get(term, "-") for term in terms]
        rows.append((mark + name, candidate.model or "-", *cells, total, candidate.excluded or ""))
        if candidate.terms:
            reasons.append(f"{name}:")
            reasons += [f"  {t.name:<10} {t.seconds:8.3f} s  {t.why}" for t in candidate.terms]
    waited = f"; it had waited {milliseconds(decision.waited_ms)}" if decision.waited_ms else ""
    columns = ("NODE", "MODEL", *(f"{term}>" for term in terms), "total>", "EXCLUDED")
    page: list[Block] = [
        Table(columns, tuple(rows), f"Expected seconds of each candidate, the smallest total wins (>){waited}")
    ]
    if decision.request:
        known = ", ".join(
            f"{name} {_said(value)}" for name, value in decision.request.items() if value not in (None, [], "")
        )
        page.append(f"Decided on: {known}")
    return [*page, *(["", "Why each second:"] if reasons else []), *reasons]


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
