"""Each command once against real daemons: exit codes, what it prints, and what it changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.daemons import Node, agree, mesh_of, tier, wait_for

pytestmark = pytest.mark.server

MESH = {"name", "id", "enabled", "coordinator", "term", "url", "alone", "queue_depth", "in_flight"}
NODE = {
    *("name", "id", "state", "reason", "coordinator", "far", "priority", "uptime_s", "addresses", "version", "via"),
    *("rtt_ms", "hardware", "memory", "queue_depth", "in_flight", "models"),
}
MODEL = {
    *("name", "aliases", "source", "engine", "fingerprint", "state", "size_bytes", "slots", "in_flight", "queue_depth"),
    *("prefill_tps", "decode_tps", "resume", "error"),
}


@pytest.fixture(scope="module")
def both_up(short_folder: Path, tiny_model: Path, other_tiny_model: Path) -> Iterator[tuple[Node, Node]]:
    """ann coordinates and has one model, ben two."""
    quick = tier(tiny_model, name="quick")
    ann, ben = mesh_of(
        short_folder, ann={"tiers": [quick]}, ben={"tiers": [quick, tier(other_tiny_model, name="other")]}
    )
    yield ann, ben
    for node in (ben, ann):
        node.stop()


@pytest.fixture
def both(both_up: tuple[Node, Node]) -> tuple[Node, Node]:
    """They agree: a machine too busy to send heartbeats in time may have made them lose each other meanwhile."""
    agree(*both_up)
    return both_up


@pytest.fixture
def ann(both: tuple[Node, Node]) -> Node:
    return both[0]


@pytest.fixture
def ben(both: tuple[Node, Node]) -> Node:
    return both[1]


def refused(node: Node, *arguments: str, code: int = 1) -> str:
    """The one or two lines a failing command says; with and without --json nothing is on stdout."""
    done = node.cli(*arguments, code=code)
    assert done.stdout == ""
    assert 1 <= len(done.stderr.strip().splitlines()) <= 2, done.stderr
    return done.stderr


def test_mesh_status_has_the_fields_of_the_contract(ann: Node, ben: Node) -> None:
    for node in (ann, ben):
        found = node.json("mesh", "status")
        assert set(found["mesh"]) >= MESH
        assert found["self"] == node.name
        assert (found["mesh"]["coordinator"], found["mesh"]["enabled"], found["mesh"]["alone"]) == ("ann", True, False)
        assert found["mesh"]["url"] == f"http://localhost:{ann.port}/v1"
        assert [n["name"] for n in found["nodes"]] == ["ann", "ben"]
        for one in found["nodes"]:
            assert set(one) == NODE
            assert set(one["hardware"]) == {"chip", "memory_bytes", "gpu_cores"}
            assert set(one["memory"]) == {"budget_bytes", "used_bytes", "headroom_bytes", "pressure"}
            assert one["memory"]["budget_bytes"] == 4 << 30
            assert one["coordinator"] == (one["name"] == "ann")
            assert all(set(m) == MODEL for m in one["models"])
        assert [set(one) for one in node.json("mesh", "nodes")] == [NODE, NODE]
    text = ann.cli("mesh", "status").stdout
    assert "coordinator this node" in text
    assert "ben" in ann.cli("mesh", "nodes").stdout


def test_status_and_models(ann: Node, ben: Node) -> None:
    found = ben.json("status")
    assert found["pid"] == ben.pid
    assert found["node"]["name"] == "ben"
    assert found["no_stack"] is False
    assert f":{ben.port}/v1" in ben.cli("status").stdout
    models = ben.json("models")["models"]
    assert all(set(m) > MODEL for m in models)
    assert "quick" in ben.cli("models").stdout
    assert ben.json("models", "show", "other")["name"] == "tiny-b"
    assert "tiny-b" in ben.cli("models", "show", "other").stdout
    assert "tiny-a" in refused(ann, "models", "show", "other", "--json")


def test_a_model_is_unloaded_and_loaded(ben: Node) -> None:
    assert ben.json("models", "unload", "other")["state"] == "absent"
    wait_for("its worker has ended", lambda: len(ben.workers()) == 1)
    with ben.openai() as client:
        assert client.completions.create(model="other", prompt="a", max_tokens=2).usage, "loaded when it is asked for"
    assert ben.json("models", "unload", "tiny-b")["state"] == "absent"
    assert ben.json("models", "load", "other")["state"] == "ready"
    assert "nothing" in refused(ben, "models", "load", "nothing", "--json")
    assert "nothing" in refused(ben, "models", "unload", "nothing")


def test_models_are_added_and_removed(ann: Node, other_tiny_model: Path) -> None:
    said = ann.json("models", "add", str(other_tiny_model), "--as", "second", "--alias", "zwei")
    assert said["added"] == "second"
    wait_for("it is ready", lambda: [m.state for m in ann.client.models() if m.name == "tiny-b"] == ["ready"])
    assert set(ann.model("zwei").aliases) == {"second", "zwei"}
    assert "second" in ann.cli("models", "remove", "second").stdout
    wait_for("it is gone", lambda: [m.name for m in ann.client.models()] == ["tiny-a"])
    assert "/nowhere/y" in refused(ann, "models", "add", "/nowhere/y")
    assert "second" in refused(ann, "models", "remove", "second", "--json")


def test_a_node_is_drained_from_another(ann: Node, ben: Node) -> None:
    assert ann.json("mesh", "drain", "ben")["draining"] is True
    for node in (ann, ben):
        wait_for("it is seen", lambda node=node: node.json("mesh", "nodes")[1]["state"] == "draining")
    with ben.openai() as client:
        answer = client.completions.with_raw_response.create(model="quick", prompt="a", max_tokens=2)
    assert answer.headers["x-mesh-node"] == "ann", "a draining node's own edge goes on, with the others' models"
    assert ann.json("mesh", "drain", "ben", "--for", "2h")["draining"] is True
    wait_for("the end that counts now", lambda: "until" in ann.json("mesh", "nodes")[1]["reason"])
    assert "ben" in ann.cli("mesh", "undrain", "ben").stdout
    assert ann.json("mesh", "drain", ben.own().id, "--for", "3s")["draining"] is True, "an id will do"
    wait_for("it ends by itself", lambda: ann.json("mesh", "nodes")[1]["state"] == "ok")
    assert "ann, ben" in refused(ann, "mesh", "drain", "nobody")
    assert "soon" in refused(ann, "mesh", "drain", "ben", "--for", "soon", code=2)


def test_logs(ann: Node) -> None:
    assert {log["name"] for log in ann.json("logs")["logs"]} >= {"daemon", "tiny-a"}
    lines = ann.cli("logs", "daemon", "--tail", "3").stdout.splitlines()
    assert len(lines) == 3
    assert all({"at", "level", "event", "message"} <= set(json.loads(line)) for line in lines)
    assert "Starting httpd" in ann.cli("logs", "tiny-a").stdout
    assert "rotated" in ann.cli("logs", "tiny-a", "--rotate").stdout
    assert "Starting httpd" not in ann.cli("logs", "tiny-a").stdout
    assert "Starting httpd" in ann.cli("logs", "tiny-a", "--all").stdout
    assert "daemon, tiny-a" in refused(ann, "logs", "nothing")


def test_config(ann: Node) -> None:
    assert ann.cli("config", "get", "port").stdout == f"{ann.port}\n"
    entry = ann.json("config", "get", "node-name")
    assert (entry["value"], entry["source"]) == ("ann", "config.yaml")
    assert "mesh-priority" in ann.cli("config", "list").stdout
    assert ann.json("config", "set", "mesh-priority", "201")["value"] == 201
    wait_for("the daemon follows", lambda: ann.own().priority == 201)
    assert "'port'" in refused(ann, "config", "get", "prt")
    assert "65535" in refused(ann, "config", "set", "port", "80000", "--json")
    assert "--yes" in refused(ann, "config", "reset", code=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stauts",), "did you mean status"),
        (("mesh", "statsu"), "did you mean status"),
        (("mesh", "add"), "HOST[:PORT]"),
        (("mesh", "routes", "--last", "0"), "--last"),
        (("mesh", "enable", "--priority", "x"), "--priority"),
        (("mesh", "routes", "--why", "a", "--follow"), "exclude"),
    ],
)
def test_usage_errors_end_with_2(ann: Node, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(ann, *arguments, code=2)


def test_help_and_version(ann: Node) -> None:
    assert "mesh" in ann.cli("--help").stdout
    assert ann.cli("--version").stdout.startswith("mlx-stack ")
    assert "enable" in ann.cli("mesh", "--help").stdout
    assert "mlx_lm.server" in ann.cli("up", "--dry-run").stdout


def test_the_mesh_is_left_and_joined_without_a_restart(ann: Node, ben: Node) -> None:
    pid = ben.pid
    left: Any = ben.json("mesh", "disable")
    assert left["mesh"]["enabled"] is False
    assert [n["name"] for n in left["nodes"]] == ["ben"]

    def seen() -> tuple[str, str]:
        return next((n["state"], n["reason"]) for n in ann.json("mesh", "nodes") if n["name"] == "ben")

    assert wait_for("ann knows", lambda: seen() if seen()[0] == "dead" else None)[1].startswith("left"), "not silent"
    with ben.openai() as client:
        assert client.completions.create(model="other", prompt="a", max_tokens=2).usage, "it serves alone"
    with ann.openai(max_retries=0) as client:
        assert client.completions.create(model="quick", prompt="a", max_tokens=2).usage
    assert ben.json("mesh", "disable")["mesh"]["enabled"] is False, "twice does no harm"
    assert ann.json("mesh", "remove", "ben")["removed"] == "ben"
    assert [n["name"] for n in ann.json("mesh", "nodes")] == ["ann"]
    assert "disable" in refused(ann, "mesh", "remove", "ann")
    assert "nobody" in refused(ann, "mesh", "remove", "nobody", "--json")
    back = ben.json("mesh", "enable", "--priority", "90")
    assert back["mesh"]["enabled"] is True
    wait_for("it has a coordinator", lambda: ben.client.mesh_status().mesh.coordinator is not None)
    assert ben.json("config", "get", "mesh-priority")["value"] == 90
    assert "mlx-stack mesh accept ben" in refused(ann, "mesh", "add", f"127.0.0.1:{ben.port}")
    wait_for("it asks to be let back in", lambda: any(n.name == "ben" for n in ann.client.mesh_status().nodes))
    assert ann.json("mesh", "accept", "ben")["accepted"][0]["done"] == "let in"
    assert ann.json("mesh", "add", f"127.0.0.1:{ben.port}")["name"] == "ben", "a member's address is kept"
    wait_for("both are one again", lambda: all(n.sees("ann", "ben", coordinator="ann") for n in (ann, ben)))
    assert (ben.pid, ben.client.status().pid) == (pid, pid)
    assert ann.json("config", "get", "mesh-peers")["value"] == [f"127.0.0.1:{ben.port}"]


def test_what_a_stopped_node_says(both: tuple[Node, Node]) -> None:
    """The last test here: it ends both."""
    ann, ben = both
    assert "Stopped" in ben.cli("down").stdout
    assert ben.ended() == 0
    assert "Nothing to stop" in ben.cli("down").stdout
    for command in (("mesh", "status"), ("status",), ("mesh", "routes"), ("mesh", "nodes"), ("models", "load", "x")):
        assert "mlx-stack up" in refused(ben, *command, "--json")
    assert [m["state"] for m in ben.json("models")["models"]] == ["absent", "absent"]
    assert ben.json("mesh", "disable") == {"mesh": {"enabled": False}, "running": False}
    assert "daemon" in ben.cli("logs").stdout
    assert "Stopped" in ann.cli("down").stdout
    assert ann.ended() == 0
