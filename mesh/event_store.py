"""events.db: what happened to this node and its models, for `mlx-stack logs --events`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mesh.history import History, HistorySettings, Table, packed, unpacked
from mesh.node_events import NodeEvent

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        kind TEXT NOT NULL,
        model TEXT NOT NULL,
        body BLOB NOT NULL
    );
    CREATE INDEX events_at ON events (at);
    """,
)


class EventSettings(HistorySettings, frozen=True, kw_only=True):
    """Bounds of events.db: some 100 bytes each."""

    rows_max: int = 20_000
    days_max: int = 90  # a node is left alone for a month: its story must be longer than that


class EventStore(History[NodeEvent]):
    """The events of one home."""

    def __init__(self, path: Path, tell: Callable[[str], None], settings: EventSettings | None = None) -> None:
        super().__init__(_TABLE, path, tell, settings or EventSettings())

    def last(self, count: int, model: str = "") -> list[dict[str, Any]]:
        """The newest `count` events (of one model), oldest first, as a log is read. Waits for the disk."""
        return self._read("WHERE ? IN ('', model) ORDER BY seq DESC LIMIT ?", (model, max(0, count)))[::-1]


def _row(event: NodeEvent) -> tuple[Any, ...]:
    return event.at, event.kind, event.model, packed(msgspec.to_builtins(event))


_TABLE = Table(name="events", migrations=MIGRATIONS, columns=("at", "kind", "model", "body"), row=_row, read=unpacked)
