"""Bad input and faults one node answers: files, ports, workers that die, daemons that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from bench.ports import free_port
from tests.server.daemons import START_S, Node, alive, mesh_name, tier, wait_for
from tests.server.talk import broken

pytestmark = pytest.mark.server

Make = Callable[..., Node]
HELLO: Any = [{"role": "user", "content": "Hello"}]


def up(node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`up --foreground` that is expected to end by itself."""
    return node.cli("up", "--foreground", *arguments, code=1)


def one_line(text: str, *parts: str) -> None:
    """An error as DESIGN asks: one or two lines, with these words."""
    assert 1 <= len(text.strip().splitlines()) <= 2, text
    for part in parts:
        assert part in text


def ask(node: Node, model: str = "quick", **more: Any) -> str:
    with node.openai() as client:
        return client.completions.create(model=model, prompt="a b", max_tokens=3, **more).choices[0].text


# The stack file


def test_broken_tiers_leave_the_others_working(node: Make, tiny_model: Path) -> None:
    """One tier's fault is that tier's: it is `failed` with the reason, wherever models are shown."""
    tiers = [
        tier(tiny_model, name="quick"),
        tier("somewhere/unknown", name="odd", engine="warp-drive"),
        tier("/nowhere/at/all", name="lost"),
        tier("x", name="far", engine="external"),
    ]
    one = node("solo", tiers).start()
    wait_for("quick is ready", lambda: one.model("quick").state == "ready", START_S)
    assert ask(one)
    reasons = {"odd": "warp-drive", "lost": "/nowhere/at/all", "far": "url"}
    status = one.json("mesh", "status")
    for name, reason in reasons.items():
        shown = one.model(name)
        assert shown.state == "failed"
        assert reason in (shown.error or "")
        (in_mesh,) = [m for m in status["nodes"][0]["models"] if name in (m["name"], *m["aliases"])]
        assert (in_mesh["state"], in_mesh["error"]) == ("failed", shown.error)
        with pytest.raises(openai.APIStatusError) as refused:
            ask(one, name)
        assert refused.value.status_code == 503
        assert reason in refused.value.message, "the client learns why"
    text = one.cli("models").stdout
    assert all(reason in text for reason in reasons.values())
    assert "warp-drive" in one.cli("mesh", "status").stdout


def test_the_stack_file_is_followed_while_running(node: Make, tiny_model: Path, other_tiny_model: Path) -> None:
    one = node("solo", [tier(tiny_model, name="quick")]).start().wait_models()
    pid = one.worker_of("tiny-a").pid
    one.stack([tier(tiny_model, name="quick"), tier(other_tiny_model, name="other")])
    wait_for("a model appears", lambda: [m.state for m in one.client.models()] == ["ready", "ready"], START_S)
    assert ask(one, "other")
    assert pid in {w.pid for w in one.workers()}, "what did not change is not restarted"
    one.stack([tier(other_tiny_model, name="other", aliases=["second"])])
    wait_for(
        "a model disappears, an alias appears",
        lambda: [m.aliases for m in one.client.models()] == [("other", "second")],
    )
    assert ask(one, "second")
    with pytest.raises(openai.NotFoundError):
        ask(one, "quick")
    wait_for("its worker ends", lambda: not psutil.pid_exists(pid))
    (one.home / "stacks" / "default.yaml").write_text("tiers: [", encoding="utf-8")
    wait_for("the fault is logged", lambda: "not valid YAML" in one.log())
    assert ask(one, "second"), "what runs goes on"
    assert "default.yaml" in one.cli("models", "add", str(tiny_model), code=1).stderr


def test_without_a_stack_a_node_passes_requests_on(node: Make, tiny_model: Path) -> None:
    mesh = mesh_name()
    bare = node("bare", None, mesh_enabled=True, mesh_name=mesh, mesh_priority=150).start()
    assert bare.client.status().no_stack
    wait_for("it coordinates itself", lambda: bare.client.mesh_status().mesh.coordinator == "bare")
    with pytest.raises(openai.NotFoundError, match="no node of this mesh has any model"):
        ask(bare)
    node("full", [tier(tiny_model, name="quick")], mesh_enabled=True, mesh_name=mesh).start().wait_models()
    wait_for("they meet", lambda: bare.sees("bare", "full", coordinator="bare"))
    wait_for("its model is known", lambda: "quick" in bare.cli("mesh", "status", "--json").stdout)
    assert ask(bare)
    wait_for("the route", lambda: [r.node for r in bare.client.routes(1).routes] == ["full"])
    with bare.openai() as client:
        stream = client.completions.create(model="quick", prompt="a", max_tokens=2000, stream=True)
        next(iter(stream))
        assert bare.json("mesh", "disable")["mesh"]["enabled"] is False
        assert sum(1 for _ in stream) >= 1999, "what a node that left still answers is carried to its end"


# Ports, homes, configuration


def test_a_taken_port_is_named_with_its_holder(node: Make) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        said = up(node("edge", port=port)).stderr
        one_line(said, f"port {port} is taken", f"pid {os.getpid()}", "config set")
        said = up(node("peer", peer_port=port, mesh_enabled=True, mesh_name=mesh_name())).stderr
        one_line(said, f"port {port} is taken", f"pid {os.getpid()}")
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        port = udp.getsockname()[1]
        one_line(up(node("datagrams", peer_port=port, mesh_enabled=True, mesh_name=mesh_name())).stderr, f"{port}")


def test_two_daemons_never_share_a_home(node: Make) -> None:
    one = node("solo").start()
    one_line(up(one).stderr, "already runs", f"pid {one.pid}")
    said = one.cli("up").stdout
    assert f"Already running (pid {one.pid})" in said
    assert one.client.status().pid == one.pid


def test_background_up_and_down(node: Make, tiny_model: Path) -> None:
    one = node("solo", [tier(tiny_model, name="quick")])
    said = one.cli("up").stdout
    try:
        assert "healthy" in said
        assert f":{one.port}/v1" in said
        assert ask(one)
    finally:
        said = one.cli("down").stdout
    assert "Stopped" in said
    assert "Nothing to stop" in one.cli("down").stdout
    missing = node("lost", [tier("/nowhere", name="lost")])
    try:
        assert "/nowhere" in missing.cli("up", code=1).stdout, "no tier came up"
    finally:
        missing.cli("down")


def test_a_port_taken_is_told_by_background_up_too(node: Make) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        said = node("edge", port=holder.getsockname()[1]).cli("up", code=1).stderr
        assert f"pid {os.getpid()}" in said


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("prot: 4000\n", ("config.yaml", "prot", "'port'")),
        ("port: many\n", ("config.yaml", "port", "many")),
        ("port: 99999\n", ("port", "99999")),
        ("mesh-priority: [1\n", ("config.yaml", "YAML")),
        ("- a\n- b\n", ("config.yaml",)),
        ("mesh-enabled: perhaps\n", ("mesh-enabled", "perhaps")),
    ],
)
def test_a_wrong_configuration_is_named(node: Make, written: str, parts: tuple[str, ...]) -> None:
    one = node("solo")
    (one.home / "config.yaml").write_text(written, encoding="utf-8")
    for command in (("up", "--foreground"), ("config", "list"), ("up", "--dry-run")):
        one_line(one.cli(*command, code=1).stderr, *parts)


def test_a_corrupt_configuration_is_reset(node: Make) -> None:
    one = node("solo")
    (one.home / "config.yaml").write_bytes(b"\x00\xff{{{")
    one_line(one.cli("config", "list", code=1).stderr, "config.yaml", "config reset --yes")
    said = one.cli("config", "reset", "--yes").stdout
    assert "old file" in said
    assert json.loads(one.cli("config", "get", "port", "--json").stdout)["value"] == 4000


def test_a_home_too_deep_for_a_socket(node: Make, folder: Path) -> None:
    one = Node(folder / ("d" * 110), "deep")
    try:
        one.start()
        socket_path = Path((one.home / "daemon.pid").read_text().splitlines()[1])
        assert len(str(socket_path)) <= 100
        assert socket_path.stat().st_mode & 0o777 == 0o600
        assert socket_path.parent.stat().st_mode & 0o777 == 0o700
        assert one.json("status")["pid"] == one.pid
    finally:
        one.stop()


def test_files_that_are_not_ours_are_moved_aside(node: Make) -> None:
    one = node("solo", mesh_enabled=True, mesh_name=mesh_name()).start()
    first = one.own().id
    one.client.stop(0.0)
    assert one.ended() == 0
    (one.home / "mesh" / "term").write_bytes(b"\xff\x00")
    (one.home / "routes.db").write_bytes(b"this is no database" * 100)
    for path in (one.home / "mesh").glob("*.json"):
        path.write_bytes(b"{")
    one.start()
    assert one.own().id == first
    assert one.json("mesh", "routes") == {"routes": [], "unreachable": []}
    for name in ("term", "routes.db", "peers.json"):
        wait_for("it is told", lambda name=name: f"moved to {name}.broken" in one.log())


def test_a_config_that_is_edited_while_running(node: Make) -> None:
    one = node("solo", mesh_name=mesh_name()).start()
    assert not one.client.mesh_status().mesh.enabled
    one.configure(mesh_enabled=True, mesh_priority=7)
    wait_for("the mesh is on", lambda: one.client.mesh_status().mesh.enabled)
    wait_for("it coordinates itself", lambda: one.client.mesh_status().mesh.coordinator == "solo")
    wait_for("with its priority", lambda: one.own().priority == 7)
    one.configure(mesh_priority=9)
    wait_for("the priority is taken over", lambda: one.own().priority == 9)
    one.configure(mesh_priority="high")
    wait_for("the fault is logged", lambda: "mesh-priority" in one.log())
    assert one.own().priority == 9
    one.configure(mesh_priority=9, mesh_enabled=False)
    wait_for("the mesh is off", lambda: not one.client.mesh_status().mesh.enabled)


# Workers that die


@pytest.fixture
def solo(node: Make, tiny_model: Path, slow_model: Path) -> Node:
    return node("solo", [tier(tiny_model, name="quick"), tier(slow_model, name="slow")]).start().wait_models()


async def test_a_lone_node_answers_again_after_its_worker_was_killed(solo: Node) -> None:
    async with solo.async_openai(timeout=2 * START_S) as client:
        asking = asyncio.ensure_future(
            client.completions.create(model="slow", prompt="a", max_tokens=400, temperature=0)
        )
        await asyncio.to_thread(wait_for, "it runs", lambda: solo.model("slow").in_flight == 1)
        await asyncio.to_thread(lambda: solo.worker_of("tiny-30-layers").kill())
        answer = await asking
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 400
    assert ask(solo), "the other model was never away"
    await asyncio.to_thread(solo.wait_models)


def test_a_request_that_comes_while_the_only_worker_restarts_waits_for_it(solo: Node) -> None:
    solo.worker_of("tiny-30-layers").kill()
    wait_for("its end is known", lambda: "SIGKILL" in solo.model("slow").last_error, every_s=0.01)
    with solo.openai(max_retries=0) as client:
        answer = client.completions.create(model="slow", prompt="a", max_tokens=5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_a_worker_killed_while_it_loads_is_started_again(node: Make, tiny_model: Path, tmp_path: Path) -> None:
    """Its tokenizer is a pipe until then: who reads it loads for as long as nothing comes and nobody closes it."""
    model = broken(tiny_model, tmp_path / "quick", "tokenizer.json", None)
    tokenizer = model / "tokenizer.json"
    os.mkfifo(tokenizer)
    one = node("solo", [tier(model)]).start()
    pipe = wait_for("its tokenizer is read", lambda: writing_end(tokenizer), START_S)
    assert one.model("quick").state == "loading"
    tokenizer.unlink()
    shutil.copy(tiny_model / "tokenizer.json", tokenizer)
    one.worker_of("quick").kill()
    wait_for("the failure is known", lambda: "SIGKILL" in one.model("quick").last_error or "SIGKILL" in one.log())
    os.close(pipe)
    one.wait_models()
    assert ask(one)


def writing_end(pipe: Path) -> int | None:
    """Of a pipe that somebody reads; None while nobody does."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def test_a_daemon_that_is_killed_leaves_no_worker(solo: Node, tiny_model: Path) -> None:
    workers = solo.workers()
    assert len(workers) >= 2
    solo.signal(signal.SIGKILL)
    assert solo.ended() == -signal.SIGKILL
    wait_for("the workers end", lambda: not any(map(alive, workers)))
    solo.stack([tier(tiny_model, name="quick")])
    solo.start().wait_models()
    assert ask(solo), "the lock, the socket and the ports are free again"


def test_sigterm_finishes_what_is_open(solo: Node) -> None:
    answers: list[Any] = []

    def long() -> None:
        with solo.openai() as client:
            answers.append(client.completions.create(model="slow", prompt="a", max_tokens=150))

    asking = threading.Thread(target=long)
    asking.start()
    wait_for("it runs", lambda: solo.model("slow").in_flight == 1)
    workers = solo.workers()
    solo.signal(signal.SIGTERM)
    assert solo.ended() == 0
    asking.join(timeout=60)
    assert answers[0].usage.completion_tokens == 150, "drained, not cut"
    wait_for("the workers end", lambda: not any(map(alive, workers)))
    assert not (solo.home / "daemon.pid").exists()
    with pytest.raises(openai.APIConnectionError):
        ask(solo)


def test_a_second_signal_ends_at_once(solo: Node) -> None:
    with solo.openai() as client:
        stream = client.completions.create(model="slow", prompt="a", max_tokens=8000, stream=True)
        next(iter(stream))
        workers = solo.workers()
        solo.signal(signal.SIGTERM)
        wait_for("it drains", lambda: "stopping, at most" in solo.log())
        solo.signal(signal.SIGTERM)
        assert solo.ended() == 1, "what ends in order ends with 0"
        stream.close()
    wait_for("the workers end", lambda: not any(map(alive, workers)))


# Peers that are none


def test_what_cannot_be_added(node: Make) -> None:
    one = node("solo", mesh_enabled=True, mesh_name=mesh_name()).start()
    closed = free_port()
    one_line(one.cli("mesh", "add", f"127.0.0.1:{closed}", code=1).stderr, str(closed))
    one_line(one.cli("mesh", "add", f"127.0.0.1:{one.port}", code=1).stderr, "itself")
    one_line(one.cli("mesh", "add", "no-such-host.invalid", code=1).stderr, "no-such-host.invalid")
    one_line(one.cli("mesh", "add", "not a host", code=2).stderr, "HOST")
    stranger = subprocess.Popen(
        [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        text=True,
    )
    try:
        assert stranger.stdout is not None
        port = stranger.stdout.readline().split(" port ")[1].split()[0]
        one_line(one.cli("mesh", "add", f"127.0.0.1:{port}", code=1).stderr, port)
    finally:
        stranger.kill()
        stranger.wait()
    other = node("else", mesh_enabled=True, mesh_name=mesh_name()).start()
    one_line(one.cli("mesh", "add", f"127.0.0.1:{other.port}", code=1).stderr, other.config["mesh-name"])
    off = node("off").start()
    one_line(off.cli("mesh", "add", f"127.0.0.1:{one.port}", code=1).stderr, "mesh enable")
