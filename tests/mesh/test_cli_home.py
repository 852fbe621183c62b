"""Commands on a home without a daemon: what they read and write in its files, and what they cannot do."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from mesh import config
from mesh.config_keys import KEYS
from mesh.event_store import EventStore
from mesh.home import Home
from mesh.node_events import NodeEvent
from tests.mesh.commands import run, weights


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
    assert [row["key"] for row in rows] == [key.name for key in KEYS]
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
    weights(home.models / "other")
    found = run("models", "add", "other", "--alias", "small")
    assert (found.exit_code, found.stderr) == (1, "Error: 'small' already names 'smol': choose another --alias\n")
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
