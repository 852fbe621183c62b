"""Macs in the lab: each is one real daemon in a network namespace, with a home folder and a stack of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import yaml

from mesh.answers import Attempt, MeshStatus, Node, Route
from mesh.client import MeshClient, MeshClientError
from node.io import identity
from tests.lab.netlab import Lab
from tests.lab.told import Log, monotonic

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0  # for what should take a second or ten: the machine may be slow and busy
LOOK_S = 3.0  # for one look at a daemon that may be frozen
TAIL_LINES = 40
T = TypeVar("T")


def wait_for(ask: Callable[[], T | None], what: str, limit_s: float = LIMIT_S) -> T:
    """Polls until `ask()` finds something; returns that. An AssertionError names `what` at the limit."""
    start = time.monotonic()
    while (found := ask()) is None:
        assert time.monotonic() - start < limit_s, f"not within {limit_s:.0f} s: {what}"
        time.sleep(0.02)
    return found


def wait_until(holds: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> float:
    """Polls until `holds()` is true; returns the seconds it took. An AssertionError names `what` at the limit."""
    start = time.monotonic()
    wait_for(lambda: True if holds() else None, what, limit_s)
    return time.monotonic() - start


class Mac:
    """One daemon. `config` are the keys of its config.yaml beside `mesh-enabled`; without `model` it only passes on.

    A busy machine's daemon may miss one look (`status`, `sees`, `coordinator`: None) and learns what others did a while
    later: a test waits for what shall become true, and asks `said`, `node` or `log` about what must be true already."""

    program = "mesh.cli"

    def __init__(
        self, lab: Lab, name: str, folder: Path, *, model: Path | None = None, id_: str = "", **config: Any
    ) -> None:
        self.lab, self.name, self.home, self.model = lab, name, folder / name, model
        self.client = MeshClient(self.home / "daemon.sock")
        self._looks = MeshClient(self.home / "daemon.sock", timeout_s=LOOK_S)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = Log(self.home / "output.log")
        self.started_at = 0.0  # monotonic, of the last start
        for part in ("stacks", "node"):
            (self.home / part).mkdir(mode=0o700, parents=True)
        if id_:
            (self.home / "node" / "id").write_text(id_ + "\n")
            shutil.copy(_key_of(id_), self.home / "node" / "key.pem")
        keys = {
            "mesh-enabled": True,
            "idle-timeout": -1,
            **{key.replace("_", "-"): value for key, value in config.items()},
        }
        (self.home / "config.yaml").write_text(yaml.safe_dump(keys))
        if model is not None:
            stack = {"schema_version": 1, "name": "lab", "tiers": [{"name": "small", "model": str(model)}]}
            (self.home / "stacks" / "default.yaml").write_text(yaml.safe_dump(stack))

    @property
    def ip(self) -> str:
        return self.lab.ip(self.name)

    @property
    def url(self) -> str:
        """Where its clients reach it from other Macs."""
        return f"http://{self.ip}:4000/v1"

    # Its life

    def start(self) -> Mac:
        """Starts its daemon and returns at once. The namespace gets a host name of its own, as every Mac has one."""
        become = f'hostname {self.name} && exec "$0" -m {self.program} up --foreground'
        with (self.home / "output.log").open("ab") as output:
            self.started_at = time.monotonic()
            self.process = self.lab.popen(
                self.name,
                ["unshare", "--uts", "sh", "-c", become, sys.executable],
                env={**os.environ, "MLX_STACK_HOME": str(self.home), "PYTHONPATH": str(ROOT)},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return self

    def _signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> float:
        """SIGKILL, as a crash: no goodbye. Returns when (monotonic); its workers notice and end."""
        self._signal(signal.SIGKILL)
        at = time.monotonic()
        assert self.process is not None
        self.process.wait()
        return at

    def terminate(self) -> float:
        """SIGTERM; returns at once, when (monotonic)."""
        self._signal(signal.SIGTERM)
        return time.monotonic()

    def stop(self, limit_s: float = LIMIT_S) -> int:
        """SIGTERM and its end, in order; returns the exit code."""
        self.terminate()
        assert self.process is not None
        return self.process.wait(limit_s)

    def freeze(self) -> float:
        """Its process stands still; its kernel goes on. Returns when (monotonic)."""
        self._signal(signal.SIGSTOP)
        return time.monotonic()

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    # What it says

    def status(self) -> MeshStatus | None:
        """`mesh status`; None while it does not answer. AssertionError when the daemon ended by itself."""
        if not self.runs:
            code = self.process.returncode if self.process else None
            assert code in (None, -signal.SIGKILL, 0), f"{self.name} ended with code {code}"
            return None
        try:
            return self._looks.mesh_status()
        except MeshClientError:
            return None

    def said(self) -> MeshStatus:
        """`mesh status`, as soon as it answers."""
        return wait_for(self.status, f"{self.name} answers")

    def node(self, name: str) -> Node:
        """What it says of the node `name`, as soon as it says anything."""
        return wait_for(lambda: self.sees(name), f"{self.name} shows {name}")

    def sees(self, name: str) -> Node | None:
        """What it says of the node `name`; None when it says nothing."""
        status = self.status()
        return next((n for n in status.nodes if n.name == name), None) if status else None

    @property
    def coordinator(self) -> str | None:
        """Whom it follows; None also while it does not answer."""
        status = self.status()
        return status.mesh.coordinator if status else None

    def routes(self, count: int, since: float) -> list[Route]:
        """The requests that entered here since then (monotonic), newest first, once `count` of them are recorded."""

        def recorded() -> list[Route] | None:
            with suppress(MeshClientError):
                found = [
                    r for r in self.client.routes(1000).routes if r.edge == self.name and monotonic(r.at) > since - 0.01
                ]
                return found if len(found) >= count else None
            return None

        return wait_for(recorded, f"{count} routes of {self.name} are recorded")

    def metric(self, name: str) -> float:
        """The sum over all labels of a metric on its own /metrics."""
        script = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=30).read().decode())"
        argv = [sys.executable, "-c", script, f"http://{self.ip}:4000/metrics"]
        done = self.lab.run(self.name, argv, capture_output=True, text=True, check=True)
        lines = (line.rsplit(" ", 1) for line in done.stdout.splitlines() if not line.startswith("#"))
        return sum(float(value) for key, value in (line for line in lines if len(line) == 2) if _is(key, name))

    @property
    def ruled_at(self) -> float:
        """When (monotonic) it last wrote down a change of coordinator. Sooner than anybody who polls could tell."""
        rulings = self.log.rulings()
        return rulings[-1].at if rulings else 0.0

    @property
    def id(self) -> str:
        """Its node id; "" before its first start."""
        file = self.home / "node" / "id"
        return file.read_text().strip() if file.exists() else ""

    @property
    def settled(self) -> bool:
        """Its mesh counts as founded: a later one goes into it, and not the other way round."""
        file = self.home / "mesh" / "door.json"
        return file.exists() and bool(json.loads(file.read_text())["settled"])

    def processes(self) -> list[int]:
        """The ids of all that run in its namespace."""
        done = subprocess.run(
            ["ip", "netns", "pids", self.lab.ns(self.name)], capture_output=True, text=True, check=True
        )
        return [int(pid) for pid in done.stdout.split()]

    @property
    def output(self) -> str:
        """All it has printed and logged, over its restarts too."""
        path = self.home / "output.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def tail(self) -> str:
        """The end of what it said, for a person who looks into a failure."""
        return "\n".join(self.output.splitlines()[-TAIL_LINES:])


@cache
def _key_of(id_: str) -> Path:
    """The key that goes with an id which is given: whoever has a copy of the disk has both."""
    home = Path(tempfile.mkdtemp(prefix="lab-key"))
    (home / "node").mkdir()
    (home / "node" / "id").write_text(id_ + "\n")
    return identity.load(home, print).key_file


def _is(key: str, name: str) -> bool:
    return key == name or key.startswith(name + "{")


def followed(macs: Iterable[Mac]) -> str | None:
    """The one coordinator of all of them when they, and only they, are alive for each other, with every model ready;
    else None."""
    macs = list(macs)
    statuses = [mac.status() for mac in macs]
    names = {mac.name for mac in macs}
    seen = set()
    for status in statuses:
        if status is None or {n.name for n in status.nodes if n.state == "ok"} != names:
            return None
        if any(m.state not in ("ready", "busy") for n in status.nodes if n.state == "ok" for m in n.models):
            return None
        if any(not n.models for mac in macs if mac.model for n in status.nodes if n.name == mac.name):
            return None
        seen.add((status.mesh.coordinator, status.mesh.term))
    coordinator = seen.pop()[0] if len(seen) == 1 else None
    return coordinator if coordinator in names else None


def agreed(macs: Iterable[Mac]) -> bool:
    """All of them, and only they, are alive for each other, with every model ready, under the same one coordinator."""
    return followed(macs) is not None


def coordinator_of(macs: Sequence[Mac]) -> Mac:
    """Whom they follow once they agree."""
    name = wait_for(lambda: followed(macs), "they agree")
    return next(mac for mac in macs if mac.name == name)


def revive(macs: Iterable[Mac]) -> None:
    """Those that stand still go on, those that have ended start again."""
    for mac in macs:
        if mac.runs:
            mac.thaw()
        else:
            mac.start()


def cut_short(routes: Iterable[Route]) -> list[Attempt]:
    """The attempts that broke off. One that found nobody any more (it was granted before the others heard of a drain)
    had not begun there."""
    failed = (a for route in routes for a in route.attempts if a.outcome == "failed")
    return [a for a in failed if not (a.error or "").startswith("unreachable: no connection")]


def leads_to(lab: Lab, mac: str, name: str = "mlx-mesh.local") -> str:
    """The IPv4 address that a program on that Mac finds for this name; "" for none."""
    argv = ["timeout", "2", "getent", "ahostsv4", name]
    found = lab.run(mac, argv, capture_output=True, text=True).stdout.split()
    return found[0] if found else ""


class Said(msgspec.Struct, frozen=True):
    """One request's end, as the client saw it. `start` and `end` on the monotonic clock of all namespaces."""

    start: float
    end: float
    stream: bool
    text: str = ""
    chunks: int = 0
    error: str = ""


class Asker:
    """The official client as a program of its own on one Mac of the lab: `workers` ask again and again, `pause_s` after
    each answer, until `end()`, or `count` times each. Entering with `with` makes sure that it ends."""

    def __init__(
        self,
        lab: Lab,
        mac: str,
        url: str,
        model: str,
        *,
        workers: int = 1,
        count: int = 0,
        max_tokens: int = 8,
        stream: bool = False,
        retries: int = 0,
        pause_s: float = 0.0,
    ) -> None:
        wanted = {
            "url": url, "model": model, "workers": workers, "count": count, "max_tokens": max_tokens,
            "stream": stream, "retries": retries, "pause_s": pause_s,
        }  # fmt: skip
        self._process: subprocess.Popen[str] = lab.popen(
            mac,
            [sys.executable, str(Path(__file__).parent / "asker.py"), json.dumps(wanted)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._out: IO[str] = self._process.stdout
        os.set_blocking(self._out.fileno(), False)
        self._rest, self._ready, self._opened = "", False, 0
        self._said: list[Said] = []

    def __enter__(self) -> Asker:
        try:
            wait_until(self._read, "the client has started")
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def go(self) -> Asker:
        """Its workers begin to ask."""
        self._write("go\n")
        return self

    def said(self) -> list[Said]:
        """Every request that has ended."""
        self._read()
        return self._said

    def opened(self) -> int:
        """Requests begun so far."""
        self._read()
        return self._opened

    def answered(self) -> list[Said]:
        return [s for s in self.said() if not s.error]

    def failed(self) -> list[Said]:
        return [s for s in self.said() if s.error]

    def end(self) -> list[Said]:
        """Its workers finish what they have open; returns everything that was said."""
        self._write("end\n")
        return self.wait()

    def wait(self) -> list[Said]:
        """Until all have ended."""
        wait_until(lambda: self._process.poll() is not None, "the client's requests have ended", 120.0)
        assert self._process.returncode == 0, f"the client ended with {self._process.returncode}"
        return self.said()

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(text)
            self._process.stdin.flush()

    def _read(self) -> bool:
        """Takes in what it has printed; whether it has started."""
        with suppress(BlockingIOError, TypeError):
            while more := os.read(self._out.fileno(), 1 << 16):
                self._rest += more.decode()
        *lines, self._rest = self._rest.split("\n")
        for line in lines:
            self._ready |= line == "ready"
            self._opened += line == "open"
            if line.startswith("{"):
                self._said.append(msgspec.json.decode(line, type=Said))
        return self._ready
