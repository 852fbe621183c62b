"""`up` and `down`: what is started and ended, and how each tier is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mesh import cli_daemon
from mesh.home import Home
from tests.mesh.commands import REPOSITORY, run, weights

FAKE_DAEMON = """
import os, signal, sys, threading, time
sys.path.insert(0, {repository!r})
from mesh.home import Home
from tests.mesh.fakes import Admin, AdminServer
home = Home.of_environment()
admin = Admin(home)
model = {model!r}
admin.answer("GET /v1/models", {{"models": model}})
admin.answer("GET /v1/status", {{"pid": os.getpid(), "url": "http://localhost:4000/v1", "message": "hello"}})
admin.answer("POST /v1/stop", {{"stopping": True}})
signal.signal(signal.SIGTERM, signal.SIG_IGN if {stubborn} else signal.SIG_DFL)
with home.lock():
    server = AdminServer(home.prepare_socket(), admin)
    home.write_pid(home.socket)
    def watch():
        while {stubborn} or not any("stop" in call for call, _ in admin.asked):
            time.sleep(0.01)
        server.shutdown()
    threading.Thread(target=watch, daemon=True).start()
    server.serve_forever(poll_interval=0.01)
"""


@pytest.fixture
def fake(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`up` starts this instead of the daemon; what it started is gone afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def use(*models: dict[str, Any], stubborn: bool = False, script: str = FAKE_DAEMON) -> None:
        filled = script.format(repository=str(REPOSITORY), model=list(models), stubborn=stubborn)

        def spawn(place: Home, _: Sequence[str]) -> subprocess.Popen[bytes]:
            with place.daemon_log.open("ab") as log:
                started.append(subprocess.Popen([sys.executable, "-c", filled], stdout=log, stderr=log))
            return started[-1]

        monkeypatch.setattr(cli_daemon, "_spawn", spawn)

    yield use
    for process in started:
        process.kill()
        process.wait()


def test_up_waits_for_the_models_and_says_how_each_tier_is(home: Home, fake: Any) -> None:
    for name in ("good", "bad", "big"):
        weights(home.models / name)
        assert run("models", "add", name).exit_code == 0
    error = {"state": "failed", "error": "not enough memory"}
    fake({"name": "good", "state": "ready"}, {"name": "bad", **error}, {"name": "big", "state": "absent"})
    found = run("up")
    assert found.exit_code == 0, found.output
    rows = {line.split()[0]: line for line in found.stdout.splitlines()}
    assert rows["good"].split()[1] == "healthy"
    assert "failed" in rows["bad"]
    assert rows["bad:"] == "bad: not enough memory"
    assert "skipped" in rows["big"]
    assert "hello" in found.stdout
    assert "good: ready" in found.stderr
    pid = home.read_pid()
    assert pid is not None
    again = run("up")
    assert (again.exit_code, again.stdout) == (0, f"Already running (pid {pid.pid}). `mlx-stack status` shows more\n")
    found = run("down")
    assert (found.exit_code, found.stdout) == (0, f"Stopped (pid {pid.pid})\n")
    assert run("down").stdout == "Nothing to stop\n"


def test_up_fails_when_no_tier_came_up(home: Home, fake: Any) -> None:
    weights(home.models / "bad")
    run("models", "add", "bad")
    fake({"name": "bad", "state": "failed", "error": "broken"})
    found = run("up")
    assert found.exit_code == 1
    assert "broken" in found.stdout


def test_up_without_models_is_fine(home: Home, fake: Any) -> None:
    fake()
    found = run("up")
    assert found.exit_code == 0
    assert "requests are passed on" in found.stdout


def test_up_shows_the_last_words_of_a_daemon_that_did_not_start(home: Home, fake: Any) -> None:
    home.daemon_log.write_text("of an earlier run\n")
    line = '{"level": "info", "message": "starting"}'
    fake(
        script=f"raise SystemExit({line + chr(10) + 'port 4000 is held by pid 1'!r})".replace("{", "{{").replace(
            "}", "}}"
        )
    )
    found = run("up")
    assert found.exit_code == 1
    assert found.stderr == ("Error: the daemon did not start (exit code 1)\n  starting\n  port 4000 is held by pid 1\n")


@pytest.mark.parametrize(
    ("content", "said"), [("schema_version: 9", "schema_version 9"), ("schema_version: 1\ntiers: []", "no tier 'x'")]
)
def test_up_refuses_a_bad_stack_and_an_unknown_tier(home: Home, content: str, said: str) -> None:
    home.stack.write_text(content)
    found = run("up", "--tier", "x")
    assert (found.exit_code, found.stdout) == (1, "")
    assert said in found.stderr


def test_dry_run_shows_commands_without_secrets_and_starts_nothing(home: Home) -> None:
    weights(home.models / "m")
    command = [sys.executable, "--api-key", "s3cret", "--hf-token=s3cret", "{model}", "{port}"]
    tiers = [{"name": "t", "model": "m", "command": command}, {"name": "lost", "model": "lost"}]
    home.stack.write_text(json.dumps({"schema_version": 1, "tiers": tiers}))
    found = run("up", "--dry-run")
    assert found.exit_code == 0
    assert "s3cret" not in found.stdout
    assert "--api-key '***'" in found.stdout
    assert "no weights" in found.stdout
    assert home.running() is None


def test_foreground_is_this_process_and_refuses_twice(home: Home, admin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[Home, tuple[str, ...]]] = []

    def run_daemon(place: Home, tiers: tuple[str, ...]) -> int:
        served.append((place, tiers))
        place.lock()
        return 0

    monkeypatch.setattr("mesh.cli.run_daemon", run_daemon)
    found = run("up", "--foreground")
    assert found.exit_code == 1
    assert f"already runs in {home.root} (pid {os.getpid()})" in found.stderr
    assert served == [(home, ())]


def test_down_forces_a_daemon_that_does_not_stop(home: Home, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(stubborn=True)
    assert run("up").exit_code == 0
    monkeypatch.setattr(cli_daemon, "STOP_WITHIN_S", 0.2)
    monkeypatch.setattr(cli_daemon, "TERMINATE_WITHIN_S", 0.2)
    found = run("down")
    assert found.exit_code == 0
    assert "SIGTERM" in found.stderr
    assert "SIGKILL" in found.stderr
    assert home.running() is None
