"""routes.db: the last routes of this edge, for `mesh routes`."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mesh.history import History, HistorySettings, Table
from router.events import Why
from router.facts import RouteFact
from router.reasons import Reasons

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE routes (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        client_request_id TEXT,
        at TEXT NOT NULL,
        edge TEXT NOT NULL,
        node TEXT,
        model TEXT NOT NULL,
        outcome TEXT NOT NULL,
        status INTEGER NOT NULL,
        total_ms REAL NOT NULL,
        body BLOB NOT NULL
    );
    CREATE INDEX routes_at ON routes (at);
    CREATE INDEX routes_client ON routes (client_request_id) WHERE client_request_id IS NOT NULL;
    """,
    "/* From here on bodies may be msgpack, see `_kept`; those before it are read as ever. */",
)
_PACKED_FROM = 2048  # bytes: a shorter body is not worth compressing
_ZLIB = 0x78  # what a compressed body begins with, and no msgpack map


class StoreSettings(HistorySettings, frozen=True, kw_only=True):
    """Bounds of routes.db."""

    rows_max: int = 100_000


def route_json(fact: RouteFact) -> dict[str, Any]:
    """ROUTE of DESIGN section 4, and behind its fields those that tell of a hand-over."""
    route: dict[str, Any] = msgspec.to_builtins(fact, enc_hook=_in_words)
    del route["error"]
    return route


def _in_words(value: object) -> object:
    if not isinstance(value, Why):
        raise NotImplementedError(f"{type(value)} is in no route")
    return value.decision


def _in_numbers(value: object) -> object:
    if not isinstance(value, Why):
        raise NotImplementedError(f"{type(value)} is in no route")
    return value.grounds


_encode = msgspec.msgpack.Encoder(enc_hook=_in_numbers).encode


def _kept(fact: RouteFact) -> bytes:
    """What is kept of it: its decision as numbers, if that is what there is of it. Words are for who reads them."""
    body = _encode(fact)
    return body if len(body) < _PACKED_FROM else zlib.compress(body, 1)


def _read(body: bytes) -> dict[str, Any]:
    """ROUTE, of a body of today or of an older version."""
    plain = zlib.decompress(body) if body[:1] == bytes((_ZLIB,)) else body
    if plain[:1] == b"{":
        older: dict[str, Any] = msgspec.json.decode(plain)
        return older
    route: dict[str, Any] = msgspec.msgpack.decode(plain)
    del route["error"]
    if isinstance(route["decision"], list):
        route["decision"] = msgspec.to_builtins(msgspec.convert(route["decision"], Reasons).decision)
    return route


class RouteStore(History[RouteFact]):
    """The routes of one home."""

    def __init__(self, path: Path, tell: Callable[[str], None], settings: StoreSettings | None = None) -> None:
        super().__init__(_TABLE, path, tell, settings or StoreSettings())

    def last(self, count: int) -> list[dict[str, Any]]:
        """The newest `count` routes, newest first, as ROUTE. Waits for the disk: call it from a thread."""
        return self._read("ORDER BY at DESC, seq DESC LIMIT ?", (max(0, count),))

    def find(self, id_or_prefix: str) -> dict[str, Any] | None:
        """The route with this id, else the newest with this client_request_id, else the only one whose id starts so.
        None when there is none or the prefix is not unique. Waits for the disk."""
        if not id_or_prefix.isprintable():  # surrogates, too: SQLite takes no text that is not Unicode
            return None
        for where, limit in (("id = ?", 1), ("client_request_id = ? ORDER BY at DESC, seq DESC", 1)):
            rows = self._read(f"WHERE {where} LIMIT {limit}", (id_or_prefix,))
            if rows:
                return rows[0]
        if len(id_or_prefix) < 4 or not id_or_prefix.isascii():
            return None
        end = id_or_prefix[:-1] + chr(ord(id_or_prefix[-1]) + 1)
        rows = self._read("WHERE id >= ? AND id < ? LIMIT 2", (id_or_prefix, end))
        return rows[0] if len(rows) == 1 else None


def _row(fact: RouteFact) -> tuple[Any, ...]:
    return (
        *(fact.id, fact.client_request_id, fact.at, fact.edge, fact.node, fact.model),
        *(fact.outcome, fact.status, fact.total_ms, _kept(fact)),
    )


_TABLE = Table(
    name="routes",
    migrations=MIGRATIONS,
    columns=("id", "client_request_id", "at", "edge", "node", "model", "outcome", "status", "total_ms", "body"),
    row=_row,
    read=_read,
)
