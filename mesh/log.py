"""The daemon's log: one JSON object per line in logs/daemon.log, plain lines on a terminal. Never prompt text.

Writing happens in a thread: a slow disk must not delay a heartbeat.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

WAITING_MAX = 10_000  # lines not yet written; more are dropped and counted


def utc(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 UTC with ms, as every time in this program is written."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def event(log: logging.Logger, level: int, name: str, message: str, **fields: Any) -> None:
    """One line: `message` for people, `name` and `fields` for programs."""
    log.log(level, "%s", message, extra={"event": name, "fields": fields})


class JsonLines(logging.Formatter):
    """{"at", "level", "event", "message", ...fields}."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": utc(record.created),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class TerminalLines(logging.Formatter):
    """`12:31:05 warning  what happened`; information carries no level."""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"{clock} {level}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _Handover(logging.handlers.QueueHandler):
    """Hands records to the writing thread; full means dropped, not waited for."""

    def __init__(self, waiting: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(waiting)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record.msg, record.args = record.getMessage(), None  # arguments may change before the thread reads them
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class DaemonLog:
    """Logging of this process from here on, until `close()`."""

    def __init__(self, path: Path, *, level: int = logging.INFO) -> None:
        """Writes to `path`, and to stderr unless that is the same file. Raises OSError if `path` cannot be written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.handlers.WatchedFileHandler(path, encoding="utf-8")
        file.setFormatter(JsonLines())
        handlers: list[logging.Handler] = [file]
        if not _is_file(sys.stderr.fileno(), path):
            shown = logging.StreamHandler(sys.stderr)
            shown.setFormatter(TerminalLines() if sys.stderr.isatty() else JsonLines())
            handlers.append(shown)
        waiting: queue.Queue[logging.LogRecord] = queue.Queue(WAITING_MAX)
        self._handover = _Handover(waiting)
        self._files = handlers
        self._listener = logging.handlers.QueueListener(waiting, *handlers)
        self._listener.start()
        self._root = logging.getLogger()
        self._root.setLevel(level)
        self._root.addHandler(self._handover)

    @property
    def dropped(self) -> int:
        """Lines that did not fit the queue."""
        return self._handover.dropped

    def close(self) -> None:
        """Writes what is waiting. Idempotent."""
        self._root.removeHandler(self._handover)
        if self._listener._thread is not None:  # noqa: SLF001 - 3.11's stop() fails when called twice
            self._listener.stop()
        for handler in self._files:
            handler.close()


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
