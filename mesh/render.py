"""What people read: answers of the admin API as lines and tables. Rich on a terminal, else plain aligned columns."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Literal

import click
import msgspec
from msgspec import Struct

from mesh import answers
from mesh.values import GIB, printable

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
    clean = [_clean(block) for block in blocks]
    if sys.stdout.isatty():
        _show_rich(clean)
    else:
        click.echo(plain(clean), nl=False)


def _clean(block: Block) -> Block:
    """Without what would tell the terminal something, whoever said it."""
    if isinstance(block, str):
        return printable(block, keep="\n")
    return Table(block.columns, tuple(tuple(map(printable, row)) for row in block.rows), printable(block.title))


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
    from rich import box  # noqa: PLC0415 - as said above
    from rich.console import Console  # noqa: PLC0415 - as said above
    from rich.table import Table as RichTable  # noqa: PLC0415 - as said above
    from rich.text import Text  # noqa: PLC0415 - as said above

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
        name = f"{mark}{node.name}" + (" (this)" if node.name == found.self_name else _far(node))
        rows.append(
            (
                name,
                node.state,
                ", ".join(f"{m.name} {m.state}" for m in node.models) or "-",
                size(node.memory.headroom_bytes),
                str(node.in_flight),
                str(node.queue_depth),
                duration(node.uptime_s),
                node.version,
            )
        )
    reasons = [f"{node.name} is {node.state}: {node.reason}" for node in found.nodes if node.reason]
    errors = [
        f"{model.name} on {node.name}: {model.error}" for node in found.nodes for model in node.models if model.error
    ]
    return [Table(columns, tuple(rows)), *reasons, *errors]


def _far(node: answers.Node) -> str:
    if not node.far:
        return ""
    return " (far)" if node.rtt_ms is None else f" (far, {milliseconds(node.rtt_ms)})"


def added(address: str, found: Mapping[str, object]) -> list[Block]:
    """`mesh add`: who it is, and how it stands."""
    far = f", far, found by {found.get('via')}" if found.get("far") else ""
    reason = f": {found['reason']}" if found.get("reason") else ""
    return [f"{found.get('name') or address}: {found.get('state', 'known')}{far}{reason}"]


def tailnet(status: answers.MeshStatus, running: Sequence[answers.Running]) -> list[Block]:
    """`mesh nodes --tailnet`, below the nodes: who else is there, and what to type."""
    lines: list[Block] = []
    for machine in running:
        what = f"{machine.name} (mlx-stack {machine.version})"
        if not machine.added and machine.mesh == status.mesh.name:
            lines.append(f"on your tailnet, not added: {what} -> mlx-stack mesh add {machine.name}")
        elif not machine.added:
            lines.append(f"on your tailnet, in mesh '{machine.mesh}': {what}")
    return lines or ["on your tailnet no further machine runs mlx-stack"]


def client_keys(found: answers.Keys) -> list[Block]:
    """`keys list`."""
    rows = tuple((key.name, key.id, key.created) for key in found.keys)
    return [Table(("NAME", "ID", "CREATED"), rows)]


def models(found: Sequence[answers.ModelDetails]) -> list[Block]:
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
            _state(model),
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
    waiting = (f"{model.name} waits: {model.waits_for}" for model in found if model.waits_for)
    return [Table(columns, rows), *waiting, *(f"{model.name}: {model.error}" for model in found if model.error)]


def _state(model: answers.ModelDetails) -> str:
    """Its state, and what a person wants to know beside it."""
    if model.progress is not None and model.state == "downloading":
        return f"downloading {100 * model.progress:.0f} %"
    if model.unloads_in_s is not None and model.state == "ready":
        return f"ready, unloads in {duration(model.unloads_in_s)}"
    return model.state


def model(found: answers.ModelDetails) -> list[Block]:
    """`mlx-stack models show`."""
    rows = (
        ("state", _state(found)),
        *((("waits", found.waits_for),) if found.waits_for else ()),
        ("also called", ", ".join(found.aliases) or "-"),
        ("source", found.source or "-"),
        ("engine", found.engine),
        ("fingerprint", found.fingerprint or "-"),
        ("needs", size(found.size_bytes) if found.size_bytes else "-"),
        ("reserved", size(found.reserved_bytes) if found.reserved_bytes else "-"),
        ("takes", f"{size(found.measured_bytes)}, measured" if found.measured_bytes else "-"),
        ("load time", f"{duration(found.load_s)}, expected" if found.load_s else "-"),
        ("in flight", f"{found.in_flight} of {found.slots} slots"),
        ("waiting", str(found.queue_depth)),
        ("reads", f"{_rate(found.prefill_tps)} tokens/s"),
        ("writes", f"{_rate(found.decode_tps)} tokens/s"),
        (
            "a cut answer",
            {"continue": "goes on where it stopped", "replay": "is run again"}.get(found.resume, "is lost"),
        ),
        *((("error", found.error),) if found.error else ()),
        *((("last error", found.last_error),) if found.last_error not in ("", found.error) else ()),
    )
    return [found.name, *(f"  {name:<13} {value}" for name, value in rows)]


def event_line(event: answers.Event) -> str:
    """One event (`logs --events`)."""
    who = event.model or "this node"
    return f"{event.at[:19].replace('T', ' ')}  {event.kind:<8}  {who}" + (f": {event.text}" if event.text else "")
