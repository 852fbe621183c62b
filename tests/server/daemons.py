"""Real daemons on loopback for the tests: each with a home folder, ports, a name and a mesh name of its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from openai import AsyncOpenAI, OpenAI

from bench.ports import free_port
from mesh.answers import Model
from mesh.answers import Node as NodeAnswer
from mesh.client import MeshClient, MeshClientError
from mesh.home import Home
from tests import secrecy

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0  # generous: workers load Python and MLX on two busy cores
WORKER = "node.io.mlx_worker"
CLIENT: Any = {"max_retries": 0, "timeout": START_S}
LIVE: list[Node] = []  # every node not yet ended: a failing test prints their logs
_mesh_numbers = itertools.count()


def mesh_name() -> str:
    """One no other test or program on this machine's loopback mDNS uses."""
    return f"t{os.getpid()}x{next(_mesh_numbers)}"


def wait_for(what: str, ready: Callable[[], Any], limit_s: float = 60.0, every_s: float = 0.05) -> Any:
    """The first true answer of `ready`; fails, naming `what`, at the limit."""
    end = time.monotonic() + limit_s
    while not (answer := ready()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit_s:g} s: {what}")
        time.sleep(every_s)
    return answer


def tier(model: Path | str, **fields: Any) -> dict[str, Any]:
    """One tier of a stack file; keys are written with `_` for `-`."""
    return {"name": Path(model).name, "model": str(model)} | {k.replace("_", "-"): v for k, v in fields.items()}


class Node:
    """One daemon: `up --foreground` in a process of its own."""

    def __init__(self, folder: Path, name: str, tiers: Sequence[dict[str, Any]] | None = (), **config: Any) -> None:
        self.name, self.home = name, folder / name
        self.port, self.peer_port = (
            config.pop("port", None) or free_port(),
            config.pop("peer_port", None) or free_port(),
        )
        self.home.mkdir(parents=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.tiers: Sequence[dict[str, Any]] = ()
        self.config: dict[str, Any] = {
            "node-name": name,
            "port": self.port,
            "peer-port": self.peer_port,
            "bind": ["127.0.0.1"],
            "memory-budget": "4GB",
            "idle-timeout": -1,  # a module of tests may take longer than any
        } | {key.replace("_", "-"): value for key, value in config.items()}
        self.configure()
        if tiers is not None:
            self.stack(tiers)

    # Its files

    def configure(self, **changes: Any) -> None:
        """Writes config.yaml, as a person with an editor would."""
        self.config |= {key.replace("_", "-"): value for key, value in changes.items()}
        (self.home / "config.yaml").write_text(yaml.safe_dump(self.config), encoding="utf-8")

    def stack(self, tiers: Sequence[dict[str, Any]]) -> None:
        self.tiers = tiers
        (self.home / "stacks").mkdir(exist_ok=True)
        document = {"schema_version": 1, "name": "test", "tiers": list(tiers)}
        (self.home / "stacks" / "default.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")

    def log(self) -> str:
        """All that the daemon wrote: its own log and what it printed."""
        files = [*sorted((self.home / "logs").glob("*.log")), self.home / "printed"]
        return "\n".join(f"{f.name}:\n" + f.read_text(errors="replace") for f in files if f.exists())

    # Its life

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MLX_STACK_")}
        return {**kept, "MLX_STACK_HOME": str(self.home), "PYTHONPATH": str(ROOT), "COLUMNS": "100"}

    def start(self, *arguments: str) -> Node:
        """Returns when its admin API answers."""
        command = [sys.executable, "-m", "mesh.cli", "up", "--foreground", *arguments]
        with (self.home / "printed").open("ab") as printed:
            self.process = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        LIVE.append(self)
        wait_for(f"{self.name} answers", self._answers, START_S)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}: {self.log()[-2000:]}"
        try:
            self.client.status()
        except MeshClientError:
            return False
        return True

    @property
    def client(self) -> MeshClient:
        return MeshClient.of(Home(self.home), timeout_s=20.0)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)

    def ended(self, limit_s: float = 45.0) -> int:
        """The exit code, when it has ended."""
        assert self.process is not None
        code = self.process.wait(timeout=limit_s)
        if self in LIVE:
            LIVE.remove(self)
        return code

    def stop(self) -> None:
        """In order if it can, else by force; its workers too; and then nothing that it has left holds a prompt, an
        answer or a key (tests/secrecy.py). Idempotent."""
        said = secrecy.said_of([self.process.pid]) if self.process is not None else []
        self._end()
        secrecy.check(self.home)
        assert not said, said

    def _end(self) -> None:
        if self in LIVE:
            LIVE.remove(self)
        if self.process is None or self.process.poll() is not None:
            return
        started = self.children()
        self.signal(signal.SIGCONT)
        try:
            self.client.stop(0.0)
        except MeshClientError:
            self.signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=20.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_for(f"all that {self.name} started has ended", lambda: not any(map(alive, started)))

    def children(self) -> list[psutil.Process]:
        """All that it started and that lives: model servers, downloads, what it forks for a moment."""
        try:
            return [p for p in psutil.Process(self.pid).children() if alive(p)]
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """The model servers it started that live."""
        return [p for p in self.children() if WORKER in words(p)]

    def worker_of(self, model: str) -> psutil.Process:
        """The server of the model in the folder of that name."""
        found: psutil.Process = wait_for(
            f"{self.name} has a worker of {model}",
            lambda: next((p for p in self.workers() if model in " ".join(words(p))), None),
        )
        return found

    # Asking it

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=secrecy.KEY, **(CLIENT | options))

    def async_openai(self, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=secrecy.KEY, **(CLIENT | options))

    def cli(self, *arguments: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """`mlx-stack ARGUMENTS` of this home as a person runs it; checks its exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "mesh.cli", *arguments],
            env=self.environment | options.pop("env", {}),
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == code, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *arguments: str) -> Any:
        """What `mlx-stack ARGUMENTS --json` prints."""
        return json.loads(self.cli(*arguments, "--json").stdout)

    def own(self) -> NodeAnswer:
        status = self.client.mesh_status()
        return next(n for n in status.nodes if n.name == status.self_name)

    def model(self, name: str) -> Model:
        """As it is now; waits for the stack file to be carried out."""
        found: Model = wait_for(
            f"{self.name} has a model '{name}'",
            lambda: next((m for m in self.client.models() if name in (m.name, *m.aliases)), None),
        )
        return found

    def wait_models(self, *states: str, limit_s: float = START_S) -> Node:
        """Until its models are in these states, in the stack file's order (default: all ready)."""

        def reached() -> bool:
            found = [m.state for m in self.client.models()]
            return found == (list(states) or ["ready"] * len(found)) and bool(found)

        wait_for(f"{self.name}'s models are {states or 'ready'}", reached, limit_s)
        return self

    def sees(self, *names: str, coordinator: str) -> bool:
        """Exactly these nodes are ok here, under that coordinator."""
        status = self.client.mesh_status()
        return status.mesh.coordinator == coordinator and sorted(
            n.name for n in status.nodes if n.state == "ok"
        ) == sorted(names)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def words(process: psutil.Process) -> list[str]:
    """Its command line; none when it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def freeze(process: psutil.Process) -> None:
    """Stops it for certain. A signal is handled by whichever of its threads runs next; until then another thread may
    still see its daemon die and end the process."""
    process.suspend()
    wait_for(f"{process.pid} is stopped", lambda: process.status() == psutil.STATUS_STOPPED)


def mesh_of(folder: Path, **nodes: dict[str, Any]) -> list[Node]:
    """A mesh of these nodes, by name, the first one its coordinator: started, all models ready, all agreed. Their homes
    are in a folder of their own: `folder` may hold another mesh with such names."""
    name, folder = mesh_name(), Path(tempfile.mkdtemp(dir=folder))
    mesh: list[Node] = []
    try:
        for priority, (node, config) in zip(range(200, 0, -1), nodes.items(), strict=False):
            settings = {"mesh_enabled": True, "mesh_name": name, "mesh_priority": priority} | config
            mesh.append(Node(folder, node, **settings).start())
            if len(mesh) == 1:
                wait_for(f"{node} coordinates", lambda: mesh[0].client.mesh_status().mesh.coordinator == mesh[0].name)
        for one in mesh:
            if one.tiers:
                one.wait_models()
        agree(*mesh)
    except BaseException as error:
        for one in mesh:
            error.add_note(f"{one.name}: {one.client.models() if one in LIVE else 'ended'}\n{one.log()[-5000:]}")
            one.stop()
        raise
    return mesh


def agree(*mesh: Node) -> None:
    """Waits until all see all, and the first one coordinates; every node's models known everywhere as ready."""
    names = [n.name for n in mesh]

    def agreed() -> bool:
        states = [m.state for n in mesh for o in n.client.mesh_status().nodes for m in o.models]
        return all(n.sees(*names, coordinator=names[0]) for n in mesh) and set(states) <= {"ready", "busy", "failed"}

    wait_for(f"{names} agree", agreed, START_S)


def metric(node: Node, name: str, **labels: str) -> float:
    """The sum of a Prometheus metric's samples with these labels."""
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    wanted = [f'{k}="{v}"' for k, v in labels.items()]
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith((f"{name}{{", f"{name} ")) and all(w in line for w in wanted)
    )
