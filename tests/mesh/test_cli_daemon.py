"""Commands on a running daemon: what they ask it, and how its answers are shown."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from typing import Any

from tests.mesh.commands import MESH, MODEL, REPOSITORY, ROUTE, STATUS, run, weights


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


def test_watching_ends_with_ctrl_c_and_exit_code_0(admin: Any) -> None:
    admin.answer("GET /v1/mesh/status", MESH)
    command = [sys.executable, "-m", "mesh.cli", "mesh", "status", "--watch", "--json"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    try:
        watched = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with watched as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["self"] == "a"
        limit = threading.Timer(20, watching.kill)
        limit.start()
        assert json.loads(watching.stdout.readline())["self"] == "a"
        watching.send_signal(signal.SIGINT)
        assert watching.wait() == 0
        limit.cancel()
