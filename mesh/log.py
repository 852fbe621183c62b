"""The daemon's log: one JSON object per line in logs/daemon.log, plain lines on a terminal. Never prompt text.

Writing happens in a thread: a slow disk must not delay a heartbeat.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from mesh.values import printable

WAITING_MAX = 10_000  # lines not yet written; more are dropped and counted
GATHERED = ("request", "call")  # lines of these events may wait for others, so long:
BATCH_S = 0.1
TRACE_FRAMES_MAX, TRACE_LINES_MAX = 30, 100  # of one exception, and with those that led to it
ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

F = TypeVar("F")


def utc(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 UTC with ms, as every time in this program is written."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def event(log: logging.Logger, level: int, name: str, message: str, **fields: Any) -> None:
    """One line: `message` for people, `name` and `fields` for programs."""
    log.log(level, "%s", message, extra={"event": name, "fields": fields})


class Later(Generic[F]):
    """What a line says, of a fact that does not change any more: put together by the thread that writes it."""

    __slots__ = ("_fact", "_fields", "_text")

    def __init__(self, fact: F, text: Callable[[F], str], fields: Callable[[F], dict[str, Any]]) -> None:
        self._fact, self._text, self._fields = fact, text, fields

    def __str__(self) -> str:
        """For people."""
        return self._text(self._fact)

    def fields(self) -> dict[str, Any]:
        """For programs."""
        return self._fields(self._fact)


def later(log: logging.Logger, level: int, name: str, said: Later[Any]) -> None:
    """`event`, of something that happens with every request."""
    log.log(level, said, extra={"event": name})


class _Traces(logging.Formatter):
    """Of an exception: where it came from and what it is. What it says only if it is of our own making, or the system's
    about a file or a socket: others repeat what they could not read, which may be a prompt or a key."""

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 - logging's name
        error = ei[1]
        lines: list[str] = []
        while error is not None and len(lines) < TRACE_LINES_MAX:
            lines += (line.rstrip() for line in traceback.format_tb(error.__traceback__, -TRACE_FRAMES_MAX))
            lines.append(f"{type(error).__qualname__}{_words(error)}")
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "\n".join(lines)


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f": {error.strerror}"
    ours = type(error).__module__.partition(".")[0] in ("mesh", "node", "router", "election")
    return f": {error}" if ours else ""


class JsonLines(_Traces):
    """{"at", "level", "event", "message", ...fields}."""

    def format(self, record: logging.LogRecord) -> str:
        said = record.msg
        line: dict[str, Any] = {
            "at": utc(record.created),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            "message": record.getMessage(),
            **(said.fields() if isinstance(said, Later) else getattr(record, "fields", {})),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class TerminalLines(_Traces):
    """`12:31:05 warning  what happened`; information carries no level."""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"{clock} {level}{printable(record.getMessage())}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _Handover(logging.Handler):
    """Hands records to the writing thread, at once but for those of GATHERED: a busy node has a line for each request.
    Full means dropped, not waited for."""

    def __init__(self, sinks: Sequence[logging.StreamHandler[Any]]) -> None:
        super().__init__()
        self.dropped = 0
        self._sinks = sinks
        self._waiting: deque[logging.LogRecord] = deque()
        self._wake, self._now = threading.Event(), threading.Event()
        self._closing = False
        self._writes = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self.dropped += 1
            return
        try:
            if not isinstance(record.msg, Later):
                record.msg, record.args = record.getMessage(), None  # arguments may change before the thread reads them
        except Exception:  # noqa: BLE001 - whoever logs wrongly is told on stderr, as logging has it, and goes on
            self.handleError(record)
            return
        self._waiting.append(record)
        if getattr(record, "event", "") not in GATHERED:
            self._now.set()
        if not self._wake.is_set():
            self._wake.set()

    def write(self) -> None:
        """Writes what is waiting, now."""
        with self._writes:
            records: list[logging.LogRecord] = []
            while self._waiting:
                records.append(self._waiting.popleft())
            texts: dict[logging.Formatter | None, str] = {}
            for sink in self._sinks if records else ():
                if sink.formatter not in texts:
                    texts[sink.formatter] = "".join(f"{text}\n" for r in records if (text := _formatted(sink, r)))
                _append(sink, texts[sink.formatter], records[-1])

    def end(self) -> None:
        """Writes what is waiting and ends the thread. Idempotent."""
        self._closing = True
        self._now.set()
        self._wake.set()
        self._thread.join()
        self.write()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait()
            self._now.wait(BATCH_S)
            self._now.clear()
            self._wake.clear()
            self.write()


def _formatted(sink: logging.Handler, record: logging.LogRecord) -> str:
    try:
        return sink.format(record)
    except Exception:  # noqa: BLE001 - a line that cannot be written must not cost the others
        sink.handleError(record)
        return ""


def _append(sink: logging.StreamHandler[Any], text: str, last: logging.LogRecord) -> None:
    try:
        if isinstance(sink, logging.handlers.WatchedFileHandler):
            sink.reopenIfNeeded()  # rotation has moved it
        sink.stream.write(text)
        sink.flush()
    except Exception:  # noqa: BLE001 - a full disk is no reason to stop serving
        sink.handleError(last)


class DaemonLog:
    """Logging of this process from here on, until `close()`."""

    def __init__(self, path: Path, *, level: int = logging.INFO) -> None:
        """Writes to `path`, and to stderr unless that is the same file. Raises OSError if `path` cannot be written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        json_lines = JsonLines()
        file = logging.handlers.WatchedFileHandler(path, encoding="utf-8")
        file.setFormatter(json_lines)
        sinks: list[logging.StreamHandler[Any]] = [file]
        if not _is_file(sys.stderr.fileno(), path):
            shown = logging.StreamHandler(sys.stderr)
            shown.setFormatter(TerminalLines() if sys.stderr.isatty() else json_lines)
            sinks.append(shown)
        _say_less()
        self._handover = _Handover(sinks)
        self._sinks = sinks
        self._root = logging.getLogger()
        self._root.setLevel(level)
        self._root.addHandler(self._handover)

    @property
    def dropped(self) -> int:
        """Lines that did not fit the queue."""
        return self._handover.dropped

    def write(self) -> None:
        """Writes what is waiting, without waiting for a batch."""
        self._handover.write()

    def close(self) -> None:
        """Writes what is waiting. Idempotent."""
        self._root.removeHandler(self._handover)
        self._handover.end()
        for sink in self._sinks:
            sink.close()


def _say_less() -> None:
    """Nothing here writes who called, in which thread and process; finding out costs more than the line (the logging
    HOWTO, "Optimization")."""
    logging._srcfile = None  # noqa: SLF001 - the documented way
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.getLogger("aiohttp.server").addFilter(_is_of_this_node)


def _is_of_this_node(record: logging.LogRecord) -> bool:
    """A request that aiohttp cannot read is the client's fault, which was told 400: no line for each with its words,
    nor for one that left before it was told."""
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__module__ != "aiohttp.http_exceptions" and not isinstance(error, ConnectionError)


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
