"""The daemon's log lines, and the log files: last lines, following, rotation."""

from __future__ import annotations

import gzip
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp.http_exceptions import BadHttpMessage

from mesh import logfiles
from mesh.errors import MeshError
from mesh.log import DaemonLog, JsonLines, Later, TerminalLines, event, later

PROMPT = "my {}".format("secret")  # not as a line of this file has it, which a trace shows


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("mesh.x", logging.WARNING, __file__, 1, "%s", (message,), None)
    made.created = 1_700_000_000.1239
    made.__dict__.update({"event": "link", "fields": fields})
    return made


def test_a_line_is_one_json_object() -> None:
    line = json.loads(JsonLines().format(record('a "b"\nc', peer="mac", path=Path("/x"))))
    assert line == {
        "at": "2023-11-14T22:13:20.123Z",
        "level": "warning",
        "event": "link",
        "message": 'a "b"\nc',
        "peer": "mac",
        "path": "/x",
    }


def test_a_line_for_a_terminal_says_when_how_bad_and_what() -> None:
    assert TerminalLines().format(record("gone"))[8:] == " warning: gone"


def test_what_others_say_begins_no_line_of_its_own_and_tells_the_terminal_nothing() -> None:
    line = TerminalLines().format(record("mini\x1b[2J left: \r\n12:00:00 all is well\u2028\x9b1m"))
    assert line[9:] == "warning: mini?[2J left: ??12:00:00 all is well??1m"


@pytest.fixture
def daemon_log(tmp_path: Path) -> Iterator[DaemonLog]:
    log = DaemonLog(tmp_path / "logs" / "daemon.log")
    yield log
    log.close()
    log.close()


def test_the_daemons_log_has_events_and_exceptions(daemon_log: DaemonLog, tmp_path: Path) -> None:
    log = logging.getLogger("mesh.test_log")
    event(log, logging.INFO, "coordinator", "mac coordinates", term=3)
    try:
        raise ValueError("wrong")
    except ValueError:
        log.exception("unexpected %s", "end")
    log.debug("not asked for")
    daemon_log.close()
    lines = [json.loads(line) for line in (tmp_path / "logs" / "daemon.log").read_text().splitlines()]
    ours = [line for line in lines if line["event"] in ("coordinator", "mesh.test_log")]
    assert (ours[0]["message"], ours[0]["term"], ours[0]["level"]) == ("mac coordinates", 3, "info")
    assert ours[1]["message"] == "unexpected end"
    assert ours[1]["exception"].endswith("\nValueError")
    assert len(ours) == 2


def test_an_exception_is_logged_without_words_that_may_be_a_clients(daemon_log: DaemonLog, tmp_path: Path) -> None:
    log = logging.getLogger("mesh.test_log")
    causes: list[Exception] = [ValueError(PROMPT), KeyError(PROMPT), MeshError("code", "our words")]
    causes.append(FileNotFoundError(2, "No such file", PROMPT))
    for cause in causes:
        try:
            try:
                raise cause
            except Exception as error:
                raise RuntimeError(PROMPT) from error
        except RuntimeError:
            log.exception("failed")
    daemon_log.close()
    text = (tmp_path / "logs" / "daemon.log").read_text()
    assert PROMPT not in text
    assert "MeshError: our words" in text
    assert "FileNotFoundError: No such file" in text
    assert text.count("test_log.py") == 2 * len(causes)


def test_what_a_client_writes_wrongly_is_no_line_of_the_log(daemon_log: DaemonLog, tmp_path: Path) -> None:
    log = logging.getLogger("aiohttp.server")
    for error in (BadHttpMessage("Authorization: Bearer x"), ConnectionResetError(), RuntimeError("ours")):
        try:
            raise error
        except (BadHttpMessage, ConnectionResetError, RuntimeError):
            log.exception("Error handling request")
    daemon_log.close()
    (line,) = (tmp_path / "logs" / "daemon.log").read_text().splitlines()
    assert "RuntimeError" in line


def test_writing_goes_on_after_rotation(daemon_log: DaemonLog, tmp_path: Path) -> None:
    path = tmp_path / "logs" / "daemon.log"
    log = logging.getLogger("mesh.test_log")
    event(log, logging.WARNING, "one", "first")
    daemon_log.write()
    assert logfiles.rotate(path, keep=2)
    event(log, logging.WARNING, "two", "second")
    daemon_log.close()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["two"]
    with gzip.open(tmp_path / "logs" / "daemon.log.1.gz", "rt") as packed:
        assert json.loads(packed.readline())["event"] == "one"


def test_lines_are_written_without_being_asked_for(daemon_log: DaemonLog, tmp_path: Path) -> None:
    path, found = tmp_path / "logs" / "daemon.log", ""
    for name in ("one", "request", "two"):  # those of requests gather, and are written all the same
        event(logging.getLogger("mesh.test_log"), logging.WARNING, name, "a line")
        deadline = time.monotonic() + 30
        while f'"event":"{name}"' not in found:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            found = path.read_text()


def test_what_a_request_says_is_put_together_by_the_thread_that_writes_it(
    daemon_log: DaemonLog, tmp_path: Path
) -> None:
    threads: list[str] = []

    def fields(fact: int) -> dict[str, object]:
        threads.append(threading.current_thread().name)
        return {"id": fact}

    later(logging.getLogger("t"), logging.INFO, "request", Later(7, lambda fact: f"request {fact}", fields))
    limit = time.monotonic() + 10
    while not threads and time.monotonic() < limit:
        time.sleep(0.01)
    daemon_log.close()
    (line,) = map(json.loads, (tmp_path / "logs" / "daemon.log").read_text(encoding="utf-8").splitlines())
    assert (line["event"], line["message"], line["id"]) == ("request", "request 7", 7)
    assert threads == ["log"]


def test_a_line_that_cannot_be_written_costs_no_other(daemon_log: DaemonLog, tmp_path: Path) -> None:
    log = logging.getLogger("mesh.test_log")
    for value in ("good", {("no", "key"): {1: object}}, "better"):
        event(log, logging.WARNING, "value", "a line", value=value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "raiseExceptions", False)
        daemon_log.close()
    lines = [json.loads(line) for line in (tmp_path / "logs" / "daemon.log").read_text().splitlines()]
    assert {"good", "better"} <= {line["value"] for line in lines if isinstance(line.get("value"), str)}


def test_who_logs_wrongly_goes_on(daemon_log: DaemonLog, tmp_path: Path) -> None:
    log = logging.getLogger("mesh.test_log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "raiseExceptions", False)
        log.warning("%d wrong", "is")
    log.warning("right")
    daemon_log.close()
    lines = [json.loads(line) for line in (tmp_path / "logs" / "daemon.log").read_text().splitlines()]
    assert [line["message"] for line in lines] == ["right"]


def test_what_waits_is_bounded(daemon_log: DaemonLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.log.WAITING_MAX", 0)
    event(logging.getLogger("mesh.test_log"), logging.WARNING, "one", "first")
    assert daemon_log.dropped == 1


@pytest.mark.parametrize("lines", [0, 1, 3, 99])
@pytest.mark.parametrize("content", ["", "a\n", "a\nb\nc\nd", "x" * 200_000 + "\nlast\n", "ä\n" * 100_000])
def test_the_last_lines_are_those_a_whole_read_gives(tmp_path: Path, content: str, lines: int) -> None:
    path = tmp_path / "a.log"
    path.write_text(content)
    assert logfiles.tail(path, lines) == (content.splitlines()[-lines:] if lines else [])


def test_rotation_keeps_so_many_and_all_of_it_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "m.log"
    writer = path.open("a")  # a worker: it never opens its log again
    for number in range(5):
        writer.write(f"line {number}\n")
        writer.flush()
        if number < 4:
            assert logfiles.rotate(path, keep=3)
    (log,) = [log for log in logfiles.find(tmp_path) if log.name == "m"]
    assert [archive.name for archive in log.archives] == ["m.log.3.gz", "m.log.2.gz", "m.log.1.gz"]
    assert list(logfiles.whole(log)) == ["line 1", "line 2", "line 3", "line 4"]
    writer.close()


def test_only_large_logs_are_rotated(tmp_path: Path) -> None:
    (tmp_path / "small.log").write_text("x")
    (tmp_path / "large.log").write_text("x" * 100)
    assert logfiles.rotate_all(tmp_path, max_bytes=100, keep=1) == ["large"]
    assert not logfiles.rotate(tmp_path / "large.log", keep=1)


def test_following_sees_what_is_added_also_after_truncation(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("old\n")
    seen: list[str] = []
    reading, more = threading.Event(), threading.Event()

    def follow() -> None:
        for line in logfiles.follow(path, poll_s=0.001):
            seen.append(line)
            more.set()
            if line == "end":
                return

    real_stat = Path.stat

    def stat(self: Path, **kwargs: bool) -> object:
        result = real_stat(self, **kwargs)
        if self == path and threading.current_thread() is thread:
            reading.set()
        return result

    thread = threading.Thread(target=follow)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        thread.start()
        assert reading.wait(10)
        with path.open("a") as file:
            file.write("one\ntw")
            file.flush()
            assert more.wait(10)
            file.write("o\n")
        path.write_text("")
        with path.open("a") as file:
            file.write("end\n")
        thread.join(10)
    assert seen[0] == "one"
    assert seen[-1] == "end"
    assert not thread.is_alive()
