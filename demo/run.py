"""`make run`: three real nodes on this machine, one question, the answer, the route it took, and `mesh status`.

Each node is the daemon itself (`mlx-stack up --foreground`) with a home folder, ports and a name of its own; discovery
is real mDNS on the loopback interface, the model servers are real `mlx_lm.server` processes, and the question goes to
the first node, which coordinates but holds another model: so the answer comes from a node it had to choose.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from demo.model import build_chat, build_tiny
from mesh.answers import MeshStatus, Route
from mesh.client import MeshClient, MeshClientError

QUESTION = "What is the capital of France?"
CHAT, TINY = "SmolLM2-135M-Instruct", "tiny-demo"
START_LIMIT_S = 300.0  # loading two models on two busy cores takes 10-20 s; a slow disk may take longer
MESH_LIMIT_S = 30.0
LOOK_EVERY_S = 0.1


class DemoError(Exception):
    """What failed, in words for the person who typed `make run`."""


class Node:
    """One daemon of the demo, its home folder and its process."""

    def __init__(self, folder: Path, name: str, port: int, priority: int, models: dict[str, Path]) -> None:
        self.name, self.port, self.home = name, port, folder / name
        self.url = f"http://localhost:{port}/v1"
        self.models = tuple(models)
        self._process: subprocess.Popen[bytes] | None = None
        (self.home / "stacks").mkdir(parents=True)
        self._write("config.yaml", self._config(port, priority))
        tiers = [{"name": "chat" if name == CHAT else "small", "model": str(path)} for name, path in models.items()]
        self._write("stacks/default.yaml", {"schema_version": 1, "name": "demo", "tiers": tiers})
        self.client = MeshClient(self.home / "daemon.sock", timeout_s=5.0)

    def _config(self, port: int, priority: int) -> dict[str, Any]:
        return {
            "node-name": self.name,
            "port": port,
            "peer-port": port + 1,
            "bind": ["127.0.0.1"],
            "mesh-enabled": True,
            "mesh-name": "demo",
            "mesh-priority": priority,
            "memory-budget": "4GB",
        }

    def _write(self, name: str, value: dict[str, Any]) -> None:
        (self.home / name).write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")

    def start(self) -> None:
        env = {**os.environ, "MLX_STACK_HOME": str(self.home)}
        log = (self.home / "demo.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mesh.cli", "up", "--foreground"],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches only us; we end the nodes in order
        )
        log.close()

    def status(self) -> MeshStatus | None:
        """`mesh status`, or None while the daemon does not answer. Raises DemoError if it ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            tail = (self.home / "demo.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
            raise DemoError(f"{self.name} ended with code {self._process.returncode}:\n  " + "\n  ".join(tail))
        try:
            return self.client.mesh_status()
        except MeshClientError:
            return None

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def say(text: str) -> None:
    print(text, flush=True)


def model_states(status: MeshStatus | None) -> list[str]:
    """The states of every model this node itself holds."""
    if status is None:
        return []
    own = next(n for n in status.nodes if n.name == status.self_name)
    for model in own.models:
        if model.state == "failed":
            raise DemoError(f"{own.name}: model {model.name} failed: {model.error}")
    return [model.state for model in own.models]


def wait_for(what: str, limit_s: float, ready: Callable[[], bool]) -> None:
    """Polls until `ready()`; one line when it is done. Raises DemoError at the limit."""
    start = time.monotonic()
    while not ready():
        if time.monotonic() - start > limit_s:
            raise DemoError(f"{what}: not within {limit_s:.0f} s")
        time.sleep(LOOK_EVERY_S)
    say(f"  {what} ({time.monotonic() - start:.1f} s)")


@contextmanager
def three_nodes(chat: Path, tiny: Path) -> Iterator[list[Node]]:
    """The mesh, up and agreed; ended again on the way out, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="mlx-demo-") as temp:
        folder = Path(temp)
        nodes = [
            Node(folder, "mini-1", 4000, 200, {TINY: tiny}),
            Node(folder, "mini-2", 4010, 100, {CHAT: chat}),
            Node(folder, "mini-3", 4020, 100, {CHAT: chat}),
        ]
        try:
            say("starting three nodes: mini-1 on :4000 (coordinates), mini-2 and mini-3 (hold the chat model)")
            nodes[0].start()
            wait_for("mini-1 is up and coordinates", MESH_LIMIT_S, lambda: coordinates(nodes[0]))
            for node in nodes[1:]:
                node.start()
            for node in nodes:
                wait_for(f"{node.name} has loaded {', '.join(node.models)}", START_LIMIT_S, partial(loaded, node))
            wait_for("all three see each other and agree on mini-1", MESH_LIMIT_S, lambda: all(map(agreed, nodes)))
            yield nodes
        finally:
            for node in reversed(nodes):
                node.stop()


def loaded(node: Node) -> bool:
    return model_states(node.status()) == ["ready"] * len(node.models)


def coordinates(node: Node) -> bool:
    status = node.status()
    return status is not None and status.mesh.coordinator == node.name


def agreed(node: Node) -> bool:
    """This node sees three live nodes, their models ready, under the first one."""
    status = node.status()
    return (
        status is not None
        and status.mesh.coordinator == "mini-1"
        and [n.state for n in status.nodes] == ["ok"] * 3
        and all(m.state in ("ready", "busy") for n in status.nodes for m in n.models)
    )


def ask(url: str) -> str:
    """The question through the official client, streamed, printed as it comes. Returns the answer."""
    from openai import OpenAI  # noqa: PLC0415 - takes a second to import; the nodes start meanwhile

    client = OpenAI(base_url=url, api_key="none", max_retries=0)
    say(f"\nasking {url}: {QUESTION}")
    messages: Any = [{"role": "user", "content": QUESTION}]
    answer = ""
    with client.chat.completions.create(model=CHAT, messages=messages, stream=True, max_tokens=60) as stream:
        for chunk in stream:
            text = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            answer += text
            print(text, end="", flush=True)
    print()
    return answer


def show(node: Node, *arguments: str) -> None:
    """What a person would type, and what it prints."""
    say(f"\n$ mlx-stack {' '.join(arguments)}")
    command = [sys.executable, "-m", "mesh.cli", *arguments]
    done = subprocess.run(command, env={**os.environ, "MLX_STACK_HOME": str(node.home)}, check=False)
    if done.returncode:
        raise DemoError(f"mlx-stack {' '.join(arguments)} ended with {done.returncode}")


def check_route(node: Node) -> None:
    """The question must have been placed by the coordinator on another node: the point of the demo."""
    routes: list[Route] = []

    def recorded() -> bool:  # the history is written in batches
        routes[:] = node.client.routes(last=1).routes
        return bool(routes)

    wait_for("the route is recorded", MESH_LIMIT_S, recorded)
    route = routes[0]
    if route.coordinator != "mini-1" or route.node not in ("mini-2", "mini-3"):
        raise DemoError(f"the route is not what the demo is for: {route}")
    show(node, "mesh", "routes", "--last", "1")
    show(node, "mesh", "routes", "--why", route.id)


def run(once: bool) -> None:
    cache = Path(os.environ.get("MLX_STACK_DEMO_CACHE", ".cache/demo")).resolve()
    chat = build_chat(cache, say)
    tiny = build_tiny(cache / TINY)
    with three_nodes(chat, tiny) as nodes:
        answer = ask(nodes[0].url)
        if "Paris" not in answer:
            raise DemoError(f"the answer does not name Paris: {answer!r}")
        check_route(nodes[0])
        show(nodes[0], "mesh", "status")
        if once:
            return
        say(f"\nThe mesh stays up at {nodes[0].url}. Try: curl {nodes[0].url}/models")
        command = f"MLX_STACK_HOME={nodes[0].home} {Path(sys.executable).parent}/mlx-stack"
        say(f"The command line of the first node: {command} mesh status")
        say("Ctrl-C ends it.")
        signal.pause()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the answer")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    try:
        run(arguments.once)
    except KeyboardInterrupt:
        say("\nended")
    except DemoError as e:
        print(f"demo failed: {e}", file=sys.stderr)
        return 1
    if arguments.once:
        say(f"\ndone in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
