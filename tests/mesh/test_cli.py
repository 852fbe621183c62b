"""Every command, against a real unix socket or a home without a daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from mesh import cli_daemon, clidoc, config
from mesh.cli import mesh, root
from mesh.event_store import EventStore
from mesh.home import Home
from mesh.node_events import NodeEvent

REPOSITORY = Path(__file__).parents[2]
MODEL = {"name": "smol", "aliases": ["fast"], "state": "ready", "engine": "mlx-lm", "slots": 4}
NODE = {"name": "a", "id": "1", "models": [MODEL]}
MESH = {
    "mesh": {"name": "default", "enabled": True, "coordinator": "a", "term": 1, "alone": False},
    "self": "a",
    "nodes": [NODE],
}
STATUS = {
    "version": "1",
    "pid": 7,
    "home": "/h",
    "port": 4000,
    "url": "http://localhost:4000/v1",
    "mesh": MESH,
    "node": NODE,
}
ROUTE = {
    "id": "req-1",
    "at": "2026-11-20T06:00:00.123Z",
    "edge": "a",
    "node": "a",
    "status": 200,
    "outcome": "ok",
    "model": "fast",
}


def run(*words: str, **extra: Any) -> Result:
    return CliRunner().invoke(root, words, prog_name="mlx-stack", **extra)


def weights(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


# The group itself


def test_bare_and_help_list_every_command() -> None:
    for words in ((), ("--help",)):
        found = run(*words)
        assert found.exit_code == 0
        for command in ("up", "down", "status", "models", "mesh", "config", "install", "uninstall", "logs"):
            assert f"\n  {command} " in found.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mesh", "stats"), "did you mean status"),
        (("confg",), "did you mean config"),
        (("xyzzy",), "no command 'xyzzy'"),
        (("mesh", "routes", "--lst", "3"), "--last"),
        (("mesh", "routes", "--last", "0"), "--last"),
        (("mesh", "add", "http://x"), "HOST:PORT"),
        (("mesh", "drain", "a", "--for", "soon"), "must be seconds"),
        (("mesh", "drain", "a", "--for", "0s"), "more than 0 s"),
        (("mesh", "drain", "a", "--for", "400d"), "at most 366 days"),
        (("mesh", "routes", "--why", "x", "--follow"), "exclude each other"),
        (("models", "--json", "add", "x"), "belongs behind the command"),
        (("config", "reset"), "--yes"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(home: Home, words: Sequence[str], said: str) -> None:
    found = run(*words)
    assert found.exit_code == 2
    assert found.stdout == ""
    assert said in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_the_mesh_group_mounts_in_another_root(home: Home) -> None:
    @click.group()
    def other() -> None:
        pass

    other.add_command(mesh)
    found = CliRunner().invoke(other, ["mesh", "status"])
    assert found.exit_code == 1
    assert "not running" in found.stderr


def test_help_does_not_load_what_it_does_not_need() -> None:
    script = "import sys; from mesh.cli import root; root(['--help'], standalone_mode=False); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(found.stdout.split())
    assert "click" in loaded
    assert not loaded & {
        "rich",
        "yaml",
        "aiohttp",
        "msgspec",
        "http.client",
        "mesh.daemon",
        "mesh.client",
        "importlib.metadata",
    }


def test_mesh_status_loads_neither_the_daemon_nor_its_libraries(home: Home) -> None:
    script = "import sys; from mesh.cli import root; root(['mesh', 'status'], standalone_mode=False)"
    script = f"import sys\ntry:\n    exec({script!r})\nexcept Exception as e:\n    print(e)\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "not running" in found.stdout
    assert not set(found.stdout.split()) & {"rich", "aiohttp", "zeroconf", "uvloop", "router", "mesh.daemon", "asyncio"}


def test_version() -> None:
    assert run("--version").stdout.startswith("mlx-stack ")


def test_the_documentation_is_fresh() -> None:
    written = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == clidoc.document(), "run: python -m mesh.clidoc > docs/cli.md"


# Without a daemon


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("mesh", "status"),
        ("mesh", "nodes"),
        ("mesh", "add", "h"),
        ("mesh", "remove", "a"),
        ("mesh", "routes"),
        ("mesh", "routes", "--why", "x"),
        ("mesh", "routes", "--follow"),
        ("mesh", "drain", "a"),
        ("mesh", "undrain", "a"),
        ("models", "load", "m"),
        ("models", "unload", "m"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_daemon_that_is_down_is_said(home: Home, words: Sequence[str], as_json: bool) -> None:
    found = run(*words, *(["--json"] if as_json else []))
    assert found.exit_code == 1
    assert found.stdout == ""
    assert found.stderr == "Error: mlx-stack is not running here: start it with `mlx-stack up`\n"


def test_the_mesh_can_be_switched_while_the_daemon_is_down(home: Home) -> None:
    found = run("mesh", "enable", "--priority", "0", "--name", "lab")
    assert "next `mlx-stack up`" in found.stdout
    now = config.load(home, {})
    assert (now.mesh_enabled, now.mesh_priority, now.mesh_name) == (True, 0, "lab")
    assert json.loads(run("mesh", "disable", "--json").stdout)["mesh"]["enabled"] is False
    assert config.load(home, {}).mesh_enabled is False
    found = run("mesh", "enable", env={"MLX_STACK_MESH_ENABLED": "no"})
    assert "counts instead of config.yaml" in found.stderr


def test_config_list_get_set_reset(home: Home) -> None:
    assert run("config", "set", "memory-budget", "2 GB").stdout == "memory-budget = 2147483648\n"
    assert run("config", "get", "memory-budget").stdout == "2147483648\n"
    assert run("config", "get", "mesh-peers").stdout == "\n"
    rows = json.loads(run("config", "list", "--json", env={"MLX_STACK_PORT": "4100"}).stdout)["config"]
    assert [row["key"] for row in rows] == [key.name for key in config.KEYS]
    by_key = {row["key"]: row for row in rows}
    assert by_key["port"] == {
        "key": "port",
        "value": 4100,
        "default": 4000,
        "source": "MLX_STACK_PORT",
        "ignored": False,
    }
    assert by_key["memory-budget"]["source"] == "config.yaml"
    run("config", "set", "openrouter-key", "sk-or-123456789")
    listed = run("config", "list")
    assert "sk-****789" in listed.stdout
    assert "123456" not in listed.stdout + listed.stderr
    assert "no effect here" in listed.stderr
    assert run("config", "reset", "--yes").exit_code == 0
    assert json.loads(run("config", "get", "memory-budget", "--json").stdout)["value"] is None


def test_config_refuses(home: Home) -> None:
    found = run("config", "set", "prot", "1")
    assert (found.exit_code, found.stderr) == (1, "Error: unknown key 'prot': did you mean 'port'?\n")
    assert run("config", "set", "port", "x").exit_code == 1
    (home.root / "config.yaml").write_text("quux: 1\nmesh-priority: high\n")
    found = run("config", "set", "node-name", "zed")
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr.startswith("Error: node-name is written, but unknown key 'quux' in ")
    assert "remove the line" in found.stderr
    home.config.write_text("a: [")
    found = run("config", "list", "--json")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "mlx-stack config reset --yes" in found.stderr


def test_models_of_a_node_that_is_down_come_from_its_stack_file(home: Home) -> None:
    assert "No models here" in run("models").stdout
    weights(home.models / "smol")
    found = run("models", "add", "smol", "--as", "fast", "--alias", "small")
    assert "next `mlx-stack up`" in found.stdout
    assert run("models", "add", "absent").exit_code == 1
    (model,) = json.loads(run("models", "--json").stdout)["models"]
    assert (model["name"], model["aliases"], model["state"]) == ("smol", ["fast", "small"], "absent")
    assert json.loads(run("models", "show", "small", "--json").stdout)["name"] == "smol"
    assert run("models", "show", "none").exit_code == 1
    assert "smol" in run("models").stdout
    assert json.loads(run("models", "remove", "fast", "--json").stdout)["removed"] == ["fast"]
    assert run("models", "remove", "fast").exit_code == 1


def test_logs(home: Home) -> None:
    assert run("logs").stdout == "No logs yet.\n"
    (home.logs / "daemon.log").write_text("".join(f"line {n}\n" for n in range(100)))
    (home.logs / "smol.log").write_text("")
    assert [log["name"] for log in json.loads(run("logs", "--json").stdout)["logs"]] == ["daemon", "smol"]
    assert run("logs", "daemon", "--tail", "2").stdout == "line 98\nline 99\n"
    assert len(run("logs", "daemon").stdout.splitlines()) == 50
    assert run("logs", "--rotate").stdout == "daemon: rotated\nsmol: empty, left as it is\n"
    assert run("logs", "daemon").stdout == ""
    assert len(run("logs", "daemon", "--all").stdout.splitlines()) == 100
    found = run("logs", "nobody")
    assert found.exit_code == 1
    assert "daemon, smol" in found.stderr


def test_events_of_a_node_that_is_down_are_read_from_its_file(home: Home) -> None:
    assert run("logs", "--events").stdout == "No events yet.\n"
    assert not home.events.exists()
    store = EventStore(home.events, pytest.fail)
    for number in range(60):
        store.add(NodeEvent(at=f"2026-11-20T06:00:{number:02}.000Z", kind="load", model=f"m{number % 2}"))
    store.close()
    assert len(run("logs", "--events").stdout.splitlines()) == 50
    assert len(run("logs", "--events", "--all").stdout.splitlines()) == 60
    last = run("logs", "m0", "--events", "--tail", "1").stdout
    assert last == "2026-11-20 06:00:58  load      m0\n"
    found = json.loads(run("logs", "--events", "--tail", "2", "--json").stdout)["events"]
    assert [event["model"] for event in found] == ["m0", "m1"]
    assert run("logs", "nobody", "--events").stdout == "No events of 'nobody'.\n"
    assert run("logs", "--events", "-f").exit_code == 1  # nothing will happen there
    assert run("logs", "--events", "--rotate").exit_code == 2


# With one


def test_what_a_running_daemon_says_is_printed(admin: Any) -> None:
    admin.answer("GET /v1/status", STATUS)
    admin.answer("GET /v1/mesh/status", MESH)
    admin.answer("GET /v1/models", {"models": [MODEL]})
    admin.answer("GET /v1/models/fast", MODEL)
    admin.answer("GET /v1/mesh/routes?last=5", {"routes": [ROUTE], "unreachable": []})
    admin.answer("GET /v1/mesh/routes/req-1", ROUTE)
    admin.answer("GET /v1/mesh/routes/follow", (json.dumps(ROUTE) + "\n").encode())
    event = {"at": "2026-11-20T06:00:00.123Z", "kind": "evict", "model": "smol"}
    admin.answer("GET /v1/events?last=5&model=", {"events": [event]})
    admin.answer("GET /v1/events/follow?last=50&model=fast", (json.dumps(event) + "\n").encode())
    for words, said in {
        ("status",): "pid 7",
        ("mesh", "status"): "smol ready",
        ("mesh", "nodes"): "smol ready",
        ("models",): "smol",
        ("models", "show", "fast"): "smol",
        ("mesh", "routes", "--last", "5"): "req-1",
        ("mesh", "routes", "--why", "req-1"): "Request req-1",
        ("mesh", "routes", "--follow"): "req-1",
        ("logs", "--events", "--tail", "5"): "evict",
        ("logs", "fast", "--events", "-f"): "evict",
    }.items():
        shown = run(*words)
        assert (shown.exit_code, shown.stderr) == (0, ""), words
        assert said in shown.stdout
        assert json.loads(run(*words, "--json").stdout)


def test_who_else_is_on_the_tailnet_is_looked_for_on_request(admin: Any) -> None:
    admin.answer("GET /v1/mesh/status", MESH)
    running = [
        {"name": "mini", "node": "mini", "id": "2", "mesh": "default", "version": "0.2", "address": "100.64.0.2"},
        {"name": "a", "node": "a", "id": "1", "mesh": "default", "version": "0.1", "added": True},
    ]
    admin.answer("GET /v1/mesh/tailnet", {"running": running})
    found = run("mesh", "nodes", "--tailnet")
    assert (
        found.stdout.splitlines()[-1] == "on your tailnet, not added: mini (mlx-stack 0.2) -> mlx-stack mesh add mini"
    )
    found = json.loads(run("mesh", "nodes", "--tailnet", "--json").stdout)
    assert ([n["name"] for n in found["nodes"]], [r["name"] for r in found["tailnet"]]) == (["a"], ["mini", "a"])
    admin.answer("GET /v1/mesh/tailnet", {"error": {"code": "tailscale_stopped", "message": "it is stopped"}}, 502)
    found = run("mesh", "nodes", "--tailnet", "--json")
    assert (found.exit_code, found.stdout, found.stderr) == (1, "", "Error: it is stopped\n")


def test_json_is_the_contracts(admin: Any) -> None:
    admin.answer("GET /v1/mesh/status", MESH)
    status = json.loads(run("mesh", "status", "--json").stdout)
    assert set(status) >= {"mesh", "self", "nodes"}
    wanted = "name id enabled coordinator term url alone "
    assert list(status["mesh"]) == (wanted + "queue_depth in_flight").split()
    nodes = json.loads(run("mesh", "nodes", "--json").stdout)
    assert nodes == status["nodes"]
    wanted = "name id state reason coordinator far priority uptime_s addresses version via rtt_ms hardware memory "
    assert list(nodes[0]) == (wanted + "queue_depth in_flight models").split()
    wanted = (
        "name aliases source engine fingerprint state size_bytes slots in_flight queue_depth prefill_tps decode_tps "
    )
    assert list(nodes[0]["models"][0]) == (wanted + "resume error").split()


def test_changes_go_to_the_daemon(admin: Any) -> None:
    admin.answer("POST /v1/mesh/enable", MESH)
    admin.answer("POST /v1/mesh/disable", MESH)
    admin.answer("POST /v1/mesh/peers", {"name": "b", "id": "2", "state": "ok"})
    admin.answer("DELETE /v1/mesh/nodes/b", {"removed": "b"})
    admin.answer("POST /v1/mesh/drain", {"node": "a", "draining": True})
    admin.answer("POST /v1/mesh/undrain", {"node": "a", "draining": False})
    admin.answer("POST /v1/models/fast/load", MODEL)
    admin.answer("POST /v1/models/fast/unload", MODEL)
    admin.answer("POST /v1/reload", {"changed": ["port"]})
    weights(admin.home.models / "smol")
    for words in (
        ("mesh", "enable", "--priority", "5"),
        ("mesh", "disable"),
        ("mesh", "add", "mac"),
        ("mesh", "remove", "b"),
        ("mesh", "drain", "a", "--for", "2m"),
        ("mesh", "undrain", "a"),
        ("models", "load", "fast"),
        ("models", "unload", "fast"),
        ("models", "add", "smol"),
        ("config", "set", "port", "4100"),
    ):
        found = run(*words)
        assert (found.exit_code, found.stderr) == (0, ""), words
    assert admin.asked == [
        ("POST /v1/mesh/enable", {"priority": 5}),
        ("POST /v1/mesh/disable", {}),
        ("POST /v1/mesh/peers", {"address": "mac:4000"}),
        ("DELETE /v1/mesh/nodes/b", None),
        ("POST /v1/mesh/drain", {"node": "a", "for_s": 120.0}),
        ("POST /v1/mesh/undrain", {"node": "a"}),
        ("POST /v1/models/fast/load", {}),
        ("POST /v1/models/fast/unload", {}),
        ("POST /v1/reload", {}),
        ("POST /v1/reload", {}),
    ]


def test_a_refusal_is_one_line_and_nothing_on_stdout(admin: Any) -> None:
    admin.answer(
        "POST /v1/mesh/peers", {"error": {"code": "not_a_node", "message": "mac:4000 answers, but is no node"}}, 400
    )
    found = run("mesh", "add", "mac", "--json")
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr == "Error: mac:4000 answers, but is no node\n"


# up and down

FAKE_DAEMON = """
import json, os, signal, sys, threading
sys.path[:0] = [{tests!r}, {repository!r}]
from conftest import Admin, _Handler, _Server
from mesh.home import Home
home = Home.of_environment()
admin = Admin(home)
model = {model!r}
admin.answer("GET /v1/models", {{"models": model}})
admin.answer("GET /v1/status", {{"pid": os.getpid(), "url": "http://localhost:4000/v1", "message": "hello"}})
admin.answer("POST /v1/stop", {{"stopping": True}})
signal.signal(signal.SIGTERM, signal.SIG_IGN if {stubborn} else signal.SIG_DFL)
with home.lock():
    server = _Server(str(home.prepare_socket()), _Handler)
    server.admin = admin
    home.write_pid(home.socket)
    def watch():
        import time
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
        tests = str(Path(__file__).parent)
        filled = script.format(tests=tests, repository=str(REPOSITORY), model=list(models), stubborn=stubborn)

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


def test_watching_ends_with_ctrl_c_and_exit_code_0(admin: Any) -> None:
    admin.answer("GET /v1/mesh/status", MESH)
    command = [sys.executable, "-m", "mesh.cli", "mesh", "status", "--watch", "--json"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["self"] == "a"
        limit = threading.Timer(20, watching.kill)
        limit.start()
        assert json.loads(watching.stdout.readline())["self"] == "a"
        watching.send_signal(signal.SIGINT)
        assert watching.wait() == 0
        limit.cancel()


def test_help_is_quick() -> None:
    times = []
    for _ in range(5):
        command = [sys.executable, "-m", "mesh.cli", "--help"]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        times.append(used.ru_utime + used.ru_stime)
    assert min(times) < 0.15  # of the processor: how busy the machine is with others is not the command's fault
