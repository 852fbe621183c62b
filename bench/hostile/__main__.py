"""`make bench-hostile`: thousands of hostile connections against one daemon, and what an honest client notices.

As root on Linux everything runs in a network namespace of its own, where clients come from 40 addresses of a LAN;
elsewhere they come from loopback, whose limits are larger.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from bench.daemon import ROOT, Daemon, running
from bench.hostile import bodies
from bench.path.native import missing
from bench.path.subjects import SLOTS, engine
from bench.path.usage import pss_bytes, set_realtime
from bench.report import Figure, publish, within

INSIDE = "MLX_BENCH_HOSTILE_NET"
LAN, SERVER, HONEST = "10.77", "10.77.0.1", "10.77.99.9"
ADDRESSES = 40
RATE = 25.0
SETTLE_S, REST_S = 3.0, 5.0
SLOW_CLIENT_S = 10.0
MIB = 2**20


class Attack(Struct, frozen=True):
    """A crowd of bench/hostile/crowd.py."""

    name: str
    kind: str
    count: int


ATTACKS = (
    Attack("10,000 idle", "idle", 10_000),
    Attack("1,000 slowloris", "slowloris", 1000),
    Attack("1,000 slow readers", "readers", 1000),
    Attack("1,000 slow bodies", "senders", 1000),
)


class Window(Struct, frozen=True):
    """What the honest client met: seconds of its answers, and how many were none."""

    took: list[float]
    failed: int

    def at(self, part: float) -> float | None:
        """That part of all answers came within so many seconds."""
        return sorted(self.took)[min(len(self.took) - 1, int(part * len(self.took)))] if self.took else None


class Place(Struct):
    """Where it all happens."""

    net: str
    server: str
    honest: str


class Bench:
    """One daemon, one honest client, one crowd after the other."""

    def __init__(self, daemon: Daemon, place: Place, folder: Path) -> None:
        self._daemon, self._place = daemon, place
        self._port = int(daemon.url.rpartition(":")[2])
        self._out = folder / "honest"
        self.figures: list[Figure] = []

    @property
    def _where(self) -> str:
        return f"{self._place.server}:{self._port}"

    @contextmanager
    def honest(self) -> Iterator[None]:
        words = ["--server", self._where, "--address", self._place.honest, "--rate", str(RATE), "--out", str(self._out)]
        client = subprocess.Popen([sys.executable, "-m", "bench.hostile.honest", *words], cwd=ROOT)
        try:
            yield
        finally:
            client.send_signal(signal.SIGTERM)
            client.wait(60.0)

    def window(self, begin: float, end: float) -> Window:
        """Of requests that were due then; the last of them have had time to be answered."""
        rows = [line.split() for line in self._out.read_text(encoding="ascii").splitlines()]
        mine = [(float(took), good == "1") for due, took, good in rows if begin <= float(due) < end]
        return Window([took for took, good in mine if good], sum(not good for _, good in mine))

    def limits(self) -> dict[str, float]:
        """How often each was met so far."""
        with urllib.request.urlopen(f"{self._daemon.url}/metrics", timeout=30.0) as page:
            text = page.read().decode()
        found = re.findall(r'mlx_mesh_limits_total\{app="edge",limit="(\w+)"\} ([0-9.e+]+)', text)
        return {name: float(value) for name, value in found}

    def attack(self, attack: Attack, seconds: float) -> None:
        name = attack.name
        print(f"{name} ...", flush=True)
        before, calm = pss_bytes([self._daemon.pid]), time.monotonic()
        time.sleep(seconds / 2)
        met, began, peak = self.limits(), time.monotonic(), [0]
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(peak, over))
        watcher.start()
        crowd = self._crowd(attack, seconds)
        ended = time.monotonic()
        over.set()
        watcher.join()
        time.sleep(SLOW_CLIENT_S + REST_S)
        rest = time.monotonic()
        time.sleep(seconds / 2)
        self._compare(name, (calm, began), (began, ended), (rest, time.monotonic()))
        self._tell(name, crowd, {k: v - met.get(k, 0) for k, v in self.limits().items() if v > met.get(k, 0)})
        after = pss_bytes([self._daemon.pid])
        self._row(f"{name}: memory before", before / MIB, "MiB")
        self._row(f"{name}: memory at the peak", peak[0] / MIB, "MiB")
        self._row(f"{name}: memory afterwards", after / MIB, "MiB")

    def _crowd(self, attack: Attack, seconds: float) -> dict[str, Any]:
        words = [attack.kind, "--server", self._where, "--net", self._place.net, "--count", str(attack.count)]
        words += ["--addresses", str(ADDRESSES), "--seconds", str(seconds)]
        told = subprocess.run(
            [sys.executable, "-m", "bench.hostile.crowd", *words], cwd=ROOT, stdout=subprocess.PIPE, check=True
        )
        found: dict[str, Any] = json.loads(told.stdout)
        return found

    def _watch(self, peak: list[int], over: threading.Event) -> None:
        while not over.wait(1.0):
            peak[0] = max(peak[0], pss_bytes([self._daemon.pid]))

    def _compare(self, name: str, *spans: tuple[float, float]) -> None:
        calm, under, rest = (self.window(begin + SETTLE_S, end) for begin, end in spans)
        without = Window(calm.took + rest.took, calm.failed + rest.failed)
        whole = self.window(*spans[1])  # none may fail while the crowd comes, either
        self.figures.append(within(f"{name}: honest requests failed", whole.failed, "", None, 0))
        for words, part in (("p50", 0.5), ("p99", 0.99)):
            with_, calm_s = under.at(part), without.at(part)
            ratio = with_ / calm_s if with_ is not None and calm_s else None
            self._row(f"{name}: honest {words} without", calm_s and calm_s * 1e3, "ms")
            self._row(f"{name}: honest {words} / without", ratio, "x")

    def _tell(self, name: str, crowd: dict[str, Any], met: dict[str, float]) -> None:
        self._row(f"{name}: connections begun", crowd["begun"], "")
        self._row(f"{name}: open at a time, at most", crowd["peak"], "")
        for end, number in sorted(crowd["ends"].items()):
            self._row(f"{name}: connections {end}", number, "")
        for limit, number in sorted(met.items()):
            self._row(f"{name}: limit {limit} met", number, "")

    def bodies(self) -> None:
        """One after the other, while the honest client asks."""
        print("at and over each limit ...", flush=True)
        began = time.monotonic()
        for case in bodies.cases():
            status = bodies.asked(case, (self._place.server, self._port), f"{self._place.net}.1.1")
            self.figures.append(within(f"{case.name}: status", status, "", case.status, case.status))
        ended = time.monotonic()
        time.sleep(REST_S)  # the last of its requests are answered by then
        window = self.window(began, ended)
        self.figures.append(within("at and over each limit: honest requests failed", window.failed, "", None, 0))
        if window.took:
            self._row("at and over each limit: honest p50", statistics.median(window.took) * 1e3, "ms")
            self._row("at and over each limit: honest, slowest", max(window.took) * 1e3, "ms")

    def _row(self, name: str, value: float | None, unit: str) -> None:
        self.figures.append(within(name, value, unit, None, None))


def run(options: argparse.Namespace, place: Place) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="mlx-b-") as folder, ExitStack() as stack:
        home = Path(folder)
        direct = stack.enter_context(engine())
        tier = {"name": "fake", "model": "fake", "engine": "external", "slots": SLOTS}
        tier["url"] = f"http://127.0.0.1:{direct.port}/v1"
        bind = list(dict.fromkeys(["127.0.0.1", place.server]))
        daemon = stack.enter_context(running(home, [tier], bind=bind, slow_client_timeout=SLOW_CLIENT_S))
        daemon.wait_ready()
        bench = Bench(daemon, place, home)
        with bench.honest():
            time.sleep(REST_S)
            for attack in ATTACKS:
                if not options.only or attack.kind in options.only:
                    bench.attack(attack, options.seconds)
            if not options.only or "bodies" in options.only:
                bench.bodies()
        return bench.figures


def enter_net() -> None:
    """Becomes the same program in a network namespace of its own, which has a LAN on its loopback."""
    os.environ[INSIDE] = "1"
    lan = f'ip link set lo up && ip addr add {SERVER}/16 dev lo && exec "$@"'
    os.execvp("unshare", ["unshare", "-n", "sh", "-c", lan, "sh", sys.executable, "-m", "bench.hostile", *sys.argv[1:]])


def main() -> None:
    """Prints the table and writes bench/out/hostile.json; a goal that is missed is reported, no failure."""
    parser = argparse.ArgumentParser(prog="bench.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each crowd")
    parser.add_argument("--only", nargs="+", default=[], choices=[*(a.kind for a in ATTACKS), "bodies"])
    parser.add_argument("--realtime", action="store_true", help="before all that others run here (root)")
    options = parser.parse_args()
    if why := missing("gcc"):
        sys.exit(f"bench-hostile: {why}")
    if INSIDE not in os.environ and os.geteuid() == 0:
        enter_net()
    if options.realtime:
        set_realtime([os.getpid()], on=True)  # what is started from here too
    inside = INSIDE in os.environ
    place = Place(LAN, SERVER, HONEST) if inside else Place("127.0", "127.0.0.1", "127.9.9.9")
    print(publish("hostile", run(options, place)))


if __name__ == "__main__":
    main()
