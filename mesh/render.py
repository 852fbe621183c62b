"""What people read: answers of the admin API as lines and tables. Rich on a terminal, else plain aligned columns."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Literal

import click
import msgspec
from msgspec import Struct

from mesh import answers
from mesh.values import GIB

STATE_STYLES = {
    **dict.fromkeys(("ok", "ready", "healthy", "resumed"), "green"),
    **dict.fromkeys(("busy", "loading", "downloading", "waiting", "suspect", "draining", "skipped"), "yellow"),
    **dict.fromkeys(("dead", "failed", "incompatible", "refused"), "red"),
}


class Table(Struct, frozen=True):
    """Rows of text under columns. A column whose name ends in `>` is aligned to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


Block = str | Table


def show(blocks: Sequence[Block]) -> None:
    """Prints a page to stdout."""
    if sys.stdout.isatty():
        _show_rich(blocks)
    else:
        click.echo(plain(blocks), nl=False)


def show_json(answer: object, *, lines: bool = False) -> None:
    """Prints data as JSON, indented or as one line."""
    data = msgspec.json.encode(answer)
    click.echo(data if lines else msgspec.json.format(data, indent=2))


def plain(blocks: Sequence[Block]) -> str:
    """A page as text: columns padded with spaces, two between them."""
    lines: list[str] = []
    for block in blocks:
        if isinstance(block, str):
            lines.append(block)
            continue
        if block.title:
            lines.append(block.title)
        heads = tuple(column.removesuffix(">") for column in block.columns)
        widths = [max(map(len, cells)) for cells in zip(heads, *block.rows, strict=True)]
        for row in (heads, *block.rows):
            cells = [
                cell.rjust(width) if column.endswith(">") else cell.ljust(width)
                for cell, width, column in zip(row, widths, block.columns, strict=True)
            ]
            lines.append("  ".join(cells).rstrip())
    return "".join(line + "\n" for line in lines)


def _show_rich(blocks: Sequence[Block]) -> None:
    # Loaded only when a person looks: it takes longer than the whole command otherwise does.
    from rich import box  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table as RichTable  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False)
    for block in blocks:
        if isinstance(block, str):
            console.print(Text(block), soft_wrap=True)
            continue
        if block.title:
            console.print(Text(block.title, style="bold"), soft_wrap=True)
        widths = _widths(block, console.width)
        if widths is None:
            console.print("\n".join(_records(block)), soft_wrap=True, markup=False)
            continue
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
        for column, width in zip(block.columns, widths, strict=True):
            justify: Literal["left", "right"] = "right" if column.endswith(">") else "left"
            table.add_column(column.removesuffix(">"), justify=justify, width=width)
        for row in block.rows:
            table.add_row(*(Text(cell, style=STATE_STYLES.get(cell.split(" ")[0], "")) for cell in row))
        console.print(table)


def _widths(table: Table, window: int) -> list[int] | None:
    """A width for each column, so that the table fits and no word is broken; None when that cannot be."""
    columns = [(column.removesuffix(">"), *cells) for column, *cells in zip(table.columns, *table.rows, strict=True)]
    widths = [max(map(len, cells)) for cells in columns]
    words = [max(len(word) for cell in cells for word in cell.split(" ")) for cells in columns]
    room = window - 2 * (len(columns) - 1)
    while sum(widths) > room:
        slack, column = max(
            (width - word, number) for number, (width, word) in enumerate(zip(widths, words, strict=True))
        )
        if slack == 0:
            return None
        widths[column] -= 1
    return widths


def _records(table: Table) -> list[str]:
    """A table that is too wide for the window, a few lines per row."""
    first, *others = (column.removesuffix(">") for column in table.columns)
    lines = []
    for name, *cells in table.rows:
        pairs = [
            f"{head.lower()} {cell.strip()}" for head, cell in zip(others, cells, strict=True) if cell not in ("", "-")
        ]
        lines += [f"{first} {name.strip()}", f"  {', '.join(pairs)}"]
    return lines


# How figures are written


def size(count: int) -> str:
    """Bytes, in the GB and MB (2^30, 2^20) memory is sold in."""
    if count >= GIB:
        return f"{count / GIB:.1f} GB"
    if count >= 1 << 20:
        return f"{count / (1 << 20):.1f} MB"
    return f"{count / 1024:.0f} KB" if count >= 1024 else f"{count} B" if count else "0"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that matter."""
    whole = int(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 120:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 120:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{days} d {hours % 24} h"


def milliseconds(ms: float | None) -> str:
    """A measured time, as precise as it is worth reading."""
    if ms is None:
        return "-"
    return f"{ms:.0f} ms" if ms < 10_000 else duration(ms / 1e3)


def _rate(tps: float | None) -> str:
    return "-" if tps is None else f"{tps:.0f}" if tps >= 10 else f"{tps:.1f}"


# Pages


def status(found: answers.Status) -> list[Block]:
    """`mlx-stack status`."""
    page: list[Block] = [
        f"mlx-stack {found.version} runs here: pid {found.pid}, up {duration(found.uptime_s)}, home {found.home}",
        f"API:   {found.url or f'http://localhost:{found.port}/v1'}",
    ]
    if found.mesh is not None:
        page.append(_mesh_line(found.mesh))
    if found.node is not None:
        page.append(_node_line(found.node))
        if found.node.models:
            page += ["", *models(found.node.models)]
    if found.message:
        page.append(f"Note: {found.message}")
    page += [f"Note: {warning}" for warning in found.warnings]
    if found.node is not None and not found.node.models:
        page.append("`mlx-stack models add DIRECTORY` adds a model here.")
    return page


def _node_line(node: answers.Node) -> str:
    memory = node.memory
    return (
        f"Node:  {node.name}, {node.hardware.chip}, {size(node.hardware.memory_bytes)} memory; models take "
        f"{size(memory.used_bytes)} of {size(memory.budget_bytes)}, pressure {memory.pressure}"
    )


def _mesh_line(found: answers.MeshStatus) -> str:
    mesh = found.mesh
    if not mesh.enabled:
        return "Mesh:  off. `mlx-stack mesh enable` joins the other Macs here"
    who = "this node" if mesh.coordinator == found.self_name else mesh.coordinator or "nobody"
    return (
        f"Mesh:  {mesh.name}, coordinator {who}, term {mesh.term}, {len(found.nodes)} "
        f"node{'s' * (len(found.nodes) != 1)}, {mesh.in_flight} in flight, {mesh.queue_depth} waiting"
    )


def mesh_status(found: answers.MeshStatus) -> list[Block]:
    """`mlx-stack mesh status`."""
    page: list[Block] = [_mesh_line(found)]
    if found.mesh.url:
        page.append(f"URL:   {found.mesh.url}")
    page += ["", *nodes(found)]
    if found.mesh.enabled and found.mesh.alone:
        page.append("Note: no other node is heard; this one works alone")
    page += [f"Note: {note}" for note in found.notes]
    return page


def nodes(found: answers.MeshStatus) -> list[Block]:
    """One row per node, the coordinator marked with a star; below, why any of them is not well."""
    columns = ("NODE", "STATE", "MODELS", "HEADROOM>", "IN FLIGHT>", "QUEUE>", "UP>", "VERSION")
    rows = []
    for node in found.nodes:
        mark = "*" if node.coordinator else " "
        name = f"{mark}{node.name}" + (" (this)" if node.name == found.self_name else "")
        rows.append(
            (
                name,
                node.state,
                ", ".join(f"{m.name} {m.state}" for m in node.models) or "-",
                size(node.memory.headroom_bytes),
                str(node.in_flight),
                str(node.queue_depth),
                duration(node.uptime_s),
                node.version + (" far" if node.far else ""),
            )
        )
    reasons = [f"{node.name} is {node.state}: {node.reason}" for node in found.nodes if node.reason]
    errors = [
        f"{model.name} on {node.name}: {model.error}" for node in found.nodes for model in node.models if model.error
    ]
    return [Table(columns, tuple(rows)), *reasons, *errors]


def models(found: Sequence[answers.Model]) -> list[Block]:
    """One row per model; below, what is wrong with any of them."""
    columns = (
        "MODEL",
        "STATE",
        "ALSO CALLED",
        "ENGINE",
        "SIZE>",
        "IN FLIGHT>",
        "QUEUE>",
        "READS/S>",
        "WRITES/S>",
        "RESUME",
    )
    rows = tuple(
        (
            model.name,
            model.state,
            ", ".join(model.aliases) or "-",
            model.engine,
            size(model.size_bytes) if model.size_bytes else "-",
            f"{model.in_flight}/{model.slots}" if model.slots else str(model.in_flight),
            str(model.queue_depth),
            _rate(model.prefill_tps),
            _rate(model.decode_tps),
            model.resume,
        )
        for model in found
    )
    return [Table(columns, rows), *(f"{model.name}: {model.error}" for model in found if model.error)]


def model(found: answers.Model) -> list[Block]:
    """`mlx-stack models show`."""
    rows = (
        ("state", found.state),
        ("also called", ", ".join(found.aliases) or "-"),
        ("source", found.source or "-"),
        ("engine", found.engine),
        ("fingerprint", found.fingerprint or "-"),
        ("size", size(found.size_bytes) if found.size_bytes else "-"),
        ("in flight", f"{found.in_flight} of {found.slots} slots"),
        ("waiting", str(found.queue_depth)),
        ("reads", f"{_rate(found.prefill_tps)} tokens/s"),
        ("writes", f"{_rate(found.decode_tps)} tokens/s"),
        (
            "a cut answer",
            {"continue": "goes on where it stopped", "replay": "is run again"}.get(found.resume, "is lost"),
        ),
        *((("error", found.error),) if found.error else ()),
    )
    return [found.name, *(f"  {name:<13} {value}" for name, value in rows)]


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
