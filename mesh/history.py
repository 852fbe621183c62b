"""A bounded table in a SQLite file of its own, for what happened here (the only sqlite3 import).

Facts are handed over without waiting and written in batches by a thread of its own; reads may come from any thread and
see all that was handed over before.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from mesh.files import move_aside

F = TypeVar("F")
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Table(Struct, Generic[F], frozen=True, kw_only=True):
    """What is kept of facts of type F, one row each: `row` gives `columns`. Every table has `seq INTEGER PRIMARY KEY`
    beside them, and among them `at` (RFC 3339 UTC) and `body`, which `read` reads: raises ValueError or zlib.error.

    Migration N brings a file of version N to N + 1 (PRAGMA user_version). Only ever append.
    """

    name: str
    migrations: tuple[str, ...]
    columns: tuple[str, ...]
    row: Callable[[F], tuple[Any, ...]]
    read: Callable[[bytes], dict[str, Any]]


class HistorySettings(Struct, frozen=True, kw_only=True):
    """Bounds of a history. What is waiting beyond `pending_max` is dropped, oldest first, and counted."""

    rows_max: int
    days_max: int = 30
    batch_s: float = 0.25
    pending_max: int = 10_000
    prune_every_rows: int = 1_000
    prune_every_s: float = 3600.0
    busy_s: float = 5.0


def packed(body: object) -> bytes:
    """JSON, compressed, for most of it are repeated words."""
    return zlib.compress(msgspec.json.encode(body), 1)


def unpacked(body: bytes) -> dict[str, Any]:
    """What was `packed`."""
    found: dict[str, Any] = msgspec.json.decode(zlib.decompress(body))
    return found


class _ForeignFileError(sqlite3.DatabaseError):
    """A database, but not one of ours, or of a later version."""


def _is_broken(error: Exception) -> bool:
    """Will this file never be of use again? A full disk or a busy file may be."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in _BROKEN or isinstance(error, _ForeignFileError | zlib.error | ValueError)


class History(Generic[F]):
    """One table of one home. `tell` gets one sentence when something about the file is wrong; it never raises for
    that: what happened is worth keeping, but not worth failing a request."""

    def __init__(self, table: Table[F], path: Path, tell: Callable[[str], None], settings: HistorySettings) -> None:
        self._table, self._path, self._tell, self._settings = table, path, tell, settings
        self._insert = (
            f"INSERT OR REPLACE INTO {table.name} ({', '.join(table.columns)}) "  # noqa: S608 - names of our own
            f"VALUES ({', '.join('?' * len(table.columns))})"
        )
        self._pending: deque[F] = deque()
        self._lock = threading.RLock()  # the connection; `_pending` is handed over by atomic appends and pops
        self._wake = threading.Event()
        self._closing = False
        self._since_prune = self._settings.prune_every_rows  # so that the first batch prunes
        self._pruned_at = 0.0
        self._complained = ""
        self.dropped = 0
        self._database: sqlite3.Connection | None = self._open()
        self._writer = threading.Thread(target=self._write_batches, name=path.name, daemon=True)
        self._writer.start()

    def add(self, fact: F) -> None:
        """Hands one fact over; never waits."""
        if len(self._pending) >= self._settings.pending_max:
            self._pending.popleft()
            self.dropped += 1
        self._pending.append(fact)
        if not self._wake.is_set():  # which takes a hundredth of the time
            self._wake.set()

    def close(self) -> None:
        """Writes what is waiting and closes the file. Idempotent; waits for the disk."""
        self._closing = True
        self._wake.set()
        self._writer.join()
        with self._lock:
            self._flush()
            if self._database is not None:
                self._database.close()
                self._database = None

    def _read(self, tail: str, arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
        """The bodies of the rows that `tail` selects. Waits for the disk."""
        with self._lock:
            self._flush()
            if self._database is None:
                return []
            try:
                rows = self._database.execute(f"SELECT body FROM {self._table.name} {tail}", arguments).fetchall()  # noqa: S608 - texts of our own
                return [self._table.read(body) for (body,) in rows]
            except (sqlite3.Error, zlib.error, ValueError) as error:
                self._trouble(error)
                return []

    def _write_batches(self) -> None:
        while not self._closing:
            self._wake.wait()
            if not self._closing:
                time.sleep(self._settings.batch_s)  # lets a batch gather; nobody waits for this thread
            self._wake.clear()
            with self._lock:
                self._flush()

    def _flush(self) -> None:
        """Writes all that is waiting as one transaction. The lock is held."""
        batch: list[F] = []
        while self._pending:
            batch.append(self._pending.popleft())
        if not batch or self._database is None:
            return
        try:
            with self._database:
                self._database.executemany(self._insert, [self._table.row(fact) for fact in batch])
                self._prune(len(batch))
            self._complained = ""
        except sqlite3.Error as error:
            self.dropped += len(batch)
            self._trouble(error)

    def _prune(self, written: int) -> None:
        self._since_prune += written
        now = time.monotonic()
        if self._since_prune < self._settings.prune_every_rows and now - self._pruned_at < self._settings.prune_every_s:
            return
        self._since_prune, self._pruned_at = 0, now
        assert self._database is not None
        oldest = (datetime.now(UTC) - timedelta(days=self._settings.days_max)).strftime("%Y-%m-%dT%H:%M:%S")
        name = self._table.name
        self._database.execute(f"DELETE FROM {name} WHERE at < ?", (oldest,))  # noqa: S608 - a name of our own
        self._database.execute(
            f"DELETE FROM {name} WHERE seq <= (SELECT seq FROM {name} ORDER BY seq DESC LIMIT 1 OFFSET ?)",  # noqa: S608 - likewise
            (self._settings.rows_max,),
        )

    def _trouble(self, error: Exception) -> None:
        """A broken file is moved aside and begun again; anything else (disk full) is said once and waited out."""
        if _is_broken(error):
            if self._database is not None:
                self._database.close()
            self._database = self._begin_again(str(error))
        elif str(error) != self._complained:
            self._complained = str(error)
            self._tell(f"{self._path} cannot be used now ({error}); {self._table.name} are not kept until it can")

    def _open(self) -> sqlite3.Connection | None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return self._connect()
        except (sqlite3.Error, OSError) as error:
            if _is_broken(error):
                return self._begin_again(str(error))
            self._tell(f"{self._path} cannot be opened ({error}); {self._table.name} are not kept")
            return None

    def _begin_again(self, why: str) -> sqlite3.Connection | None:
        try:
            kept = move_aside(self._path)
            for tail in ("-wal", "-shm"):
                self._path.with_name(self._path.name + tail).unlink(missing_ok=True)
            database = self._connect()
        except (sqlite3.Error, OSError) as error:
            name = self._table.name
            self._tell(f"{self._path} is damaged ({why}) and cannot be begun again ({error}); {name} are not kept")
            return None
        self._tell(f"{self._path} is damaged ({why}); moved to {kept.name}, the history begins again")
        return database

    def _connect(self) -> sqlite3.Connection:
        """Opens the file and brings it to this version. Raises sqlite3.Error."""
        with suppress(OSError):  # files that SQLite makes beside it get its mode; what is wrong, SQLite says below
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._path.chmod(0o600)
        database = sqlite3.connect(self._path, timeout=self._settings.busy_s, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last batch, never the file
            (version,) = database.execute("PRAGMA user_version").fetchone()
            migrations = self._table.migrations
            if version > len(migrations):
                raise _ForeignFileError(f"it has version {version}, this mlx-stack knows {len(migrations)}")
            try:
                for number, script in enumerate(migrations[version:], start=version + 1):
                    database.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")
                newest = f"SELECT body FROM {self._table.name} ORDER BY at DESC LIMIT 1"  # noqa: S608 - a name of our own
                database.execute(newest).fetchone()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # tables of another program
                    raise _ForeignFileError(str(error)) from error
                raise
        except BaseException:
            database.close()
            raise
        return database
