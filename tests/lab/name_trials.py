"""The coordinator's name in a client's eyes: how soon it leads to the next one, what a lookup takes meanwhile, and what
becomes of requests that go by it. For the tests and for bench/mesh.py.

mac1 and mac2 hold no model and have the higher priority: one of them coordinates, the other stands by. mac3 and mac4
serve. mac5 is a client with avahi and nss-mdns, and the router of them all.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec

from bench.report import Figure, within
from demo.model import build_tiny, default_cache
from tests.lab.macs import Asker, Mac, Said, agreed, revive, wait_for
from tests.lab.netlab import Lab
from tests.lab.told import agreement
from tests.lab.trials import WHOLE_S, TrialError, until

HOST = "mlx-mesh.local"
URL = f"http://{HOST}:4000/v1"
CLIENT = "mac5"
EVERY_S = 0.01  # between two lookups
IDLE_S = 1.5
HANG_S = 8.0  # who has no answer so long after the coordinator was cut off hangs
SWAP_S = 0.05
BLOCKED_S = 4.0  # a lookup that nobody answers ends after five seconds


class Lookup(msgspec.Struct, frozen=True):
    """`start`, `end` monotonic, as everywhere in the lab; `address` "" for none."""

    start: float
    end: float
    address: str


class Lookups:
    """A program on `mac` that looks the name up, EVERY_S apart, until the `with` ends."""

    def __init__(self, lab: Lab, mac: str, host: str = HOST) -> None:
        program = str(Path(__file__).parent / "resolver.py")
        wanted = msgspec.json.encode({"host": host, "every_s": EVERY_S}).decode()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the program
        self._process = lab.popen(mac, [sys.executable, program, wanted], stdin=subprocess.PIPE, stdout=self._file)

    def __enter__(self) -> Lookups:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._file.close()

    def all(self) -> list[Lookup]:
        """Those that have ended, oldest first."""
        data = os.pread(self._file.fileno(), 1 << 26, 0)
        return [msgspec.json.decode(line, type=Lookup) for line in data.split(b"\n")[:-1]]

    def first(self, address: str, since: float) -> float:
        """When a lookup that began after `since` first told this address; 0 for not yet."""
        return next((one.end for one in self.all() if one.start > since and one.address == address), 0.0)


def owners(lab: Lab, mac: str = CLIENT, host: str = HOST, seconds: float = 1.0) -> list[str]:
    """The addresses of all who answer for the name now, asked on the wire."""
    program, wanted = str(Path(__file__).parent / "resolver.py"), {"host": host, "who": seconds}
    done = lab.run(
        mac, [sys.executable, program, msgspec.json.encode(wanted).decode()], capture_output=True, check=True
    )
    return msgspec.json.decode(done.stdout, type=list[str])


@dataclass(frozen=True)
class Ends:
    """What became of one kind of request: answered, failed (by the error's name), or without an end for HANG_S."""

    answered: int
    failed: dict[str, int]
    hanging: int = 0

    @property
    def lost(self) -> int:
        return sum(self.failed.values()) + self.hanging


@dataclass(frozen=True)
class Seen:
    """One fault as the client saw it. `swap_s`: from the successor's takeover, by its own log, until a lookup told its
    address; `moved_s`: the same from the fault. Both None where nobody was to take over."""

    swap_s: float | None
    moved_s: float | None
    slowest_lookup_s: float
    lookups_lost: int
    plain: Ends
    stream: Ends
    idle: Ends  # plain requests of clients that were mostly between two of them: their connections lie idle


@dataclass
class Named:
    """The mesh, and a client that goes by its name."""

    lab: Lab
    macs: list[Mac]
    model: str

    @property
    def coordinator(self) -> Mac:
        name = wait_for(lambda: self.macs[2].coordinator, "there is a coordinator")
        return next(mac for mac in self.macs if mac.name == name)

    async def whole(self) -> None:
        """Until all agree, one of the first two coordinates, and the name leads to it."""
        await until(lambda: agreed(self.macs), "all agree", WHOLE_S)
        stand_in = self.coordinator
        if stand_in not in self.macs[:2]:  # on a busy machine the next in rank may be too late for its turn
            await asyncio.to_thread(stand_in.client.enable, priority=0)
            await until(lambda: self.macs[2].coordinator in ("mac1", "mac2"), "it hands over", WHOLE_S)
            await asyncio.to_thread(stand_in.client.enable, priority=100)
            await until(lambda: agreed(self.macs), "all agree", WHOLE_S)
        await until(lambda: owners(self.lab) == [self.coordinator.ip], "the coordinator has the name", WHOLE_S)

    async def mend(self) -> None:
        """Takes every fault back."""
        await asyncio.to_thread(self.lab.rejoin)
        revive(self.macs)

    async def successor(self, lost: Mac, at: float) -> tuple[Mac, float]:
        """Who took over, and when it wrote so. `at`: when the other was lost."""
        left = [mac for mac in self.macs if mac is not lost]
        logs, ids = [mac.log for mac in left], [mac.id for mac in left]
        await until(lambda: agreement(logs, ids), "the others agree")
        found = agreement(logs, ids)
        assert found is not None
        mac = next(mac for mac in left if mac.id == found.coordinator)
        took = next(t.at for t in mac.log.rulings() if t.at > at - 0.01 and t.coordinator == mac.id)
        return mac, took


@contextmanager
def named(folder: Path, model: Path) -> Iterator[Named]:
    """Started, not yet whole. Everything is gone at the end."""
    with Lab(5, name=f"m{os.getpid()}") as lab:
        macs = [
            *(Mac(lab, f"mac{n}", folder, mesh_priority=200) for n in (1, 2)),
            *(Mac(lab, f"mac{n}", folder, model=model) for n in (3, 4)),
        ]
        lab.avahi(CLIENT)
        for mac in macs:
            lab.run(mac.name, ["ip", "route", "add", "default", "via", lab.ip(CLIENT)], check=True)
            mac.start()
        yield Named(lab, macs, model.name)


# The faults


def killed(mesh: Named, lost: Mac) -> float:
    return lost.kill()


def down(mesh: Named, lost: Mac) -> float:
    return lost.terminate()


def cut(mesh: Named, lost: Mac) -> float:
    mesh.lab.cut(lost.name)
    return time.monotonic()


def drained(mesh: Named, lost: Mac) -> float:
    """It coordinates on, and the name stays: only its own models take no more."""
    at = time.monotonic()
    mesh.macs[2].client.drain(lost.name)
    return at


Fault = Callable[[Named, Mac], float]
FAULTS: dict[str, Fault] = {"killed": killed, "down": down, "drained": drained, "cut": cut}


async def trial(mesh: Named, fault: Fault, *, workers: int = 2) -> Seen:
    """The coordinator of a whole mesh is lost under lookups, plain requests and streams by the name, with the SDK's own
    retries. Raises TrialError when something does not come about at all."""
    lost = mesh.coordinator
    with ExitStack() as stack:
        lookups = stack.enter_context(Lookups(mesh.lab, CLIENT))
        plain = stack.enter_context(Asker(mesh.lab, CLIENT, URL, mesh.model, workers=workers, retries=2))
        stream = stack.enter_context(
            Asker(mesh.lab, CLIENT, URL, mesh.model, workers=workers, retries=2, stream=True, max_tokens=30)
        )
        idle = stack.enter_context(
            Asker(mesh.lab, CLIENT, URL, mesh.model, workers=3 * workers, retries=2, pause_s=IDLE_S)
        )
        clients = [plain.go(), stream.go(), idle.go()]
        await until(lambda: all(len(c.answered()) > 3 for c in clients), "the clients are answered")
        await until(lambda: lookups.first(lost.ip, 0.0), f"the name leads to {lost.name}")
        at = await asyncio.to_thread(fault, mesh, lost)
        swap_s = moved_s = None
        seen = at
        if fault is not drained:
            new, took = await mesh.successor(lost, at)
            await until(lambda: lookups.first(new.ip, at), f"the name leads to {new.name}")
            seen = lookups.first(new.ip, at)
            swap_s, moved_s = seen - took, seen - at
        if fault is cut:
            ends = await _cut_short(clients, at)
        else:
            await until(lambda: all(sum(s.start > seen for s in c.said()) > 3 for c in clients), "the clients go on")
            ends = [_ends(await asyncio.to_thread(client.end)) for client in clients]
        found = lookups.all()
    if fault is down:
        await until(lambda: not lost.runs, f"{lost.name} has ended")
    if fault is drained:
        await asyncio.to_thread(mesh.macs[2].client.undrain, lost.name)
    slowest_s = max(one.end - one.start for one in found)
    return Seen(swap_s, moved_s, slowest_s, sum(not one.address for one in found), *ends)


async def _cut_short(clients: Sequence[Asker], at: float) -> list[Ends]:
    """They begin nothing new from HANG_S after `at` on; what has no end a while later hangs."""
    await asyncio.sleep(max(0.0, at + HANG_S - time.monotonic()))
    for client in clients:
        client._write("end\n")
    await asyncio.sleep(HANG_S / 2)
    return [_ends(client.said(), client.opened()) for client in clients]


def _ends(said: Sequence[Said], opened: int = 0) -> Ends:
    failed = Counter(s.error.partition(":")[0] for s in said if s.error)
    return Ends(sum(not s.error for s in said), dict(failed), max(0, opened - len(said)))


# For bench/mesh.py


async def figures(trials: int) -> list[Figure]:
    """`trials` of each fault."""
    found: dict[str, list[Seen]] = {name: [] for name in FAULTS}
    broken = 0
    model = build_tiny(default_cache() / "tiny-lab", layers=12, seed=5)
    with tempfile.TemporaryDirectory(prefix="lab", dir="/tmp", ignore_cleanup_errors=True) as folder:
        with named(Path(folder), model) as mesh:
            for name, fault in list(FAULTS.items()) * trials:
                try:
                    await mesh.whole()
                    seen = await trial(mesh, fault)
                except (TrialError, AssertionError) as error:
                    broken += 1
                    print(f"name, {name}: {error}", flush=True)
                else:
                    found[name].append(seen)
                    print(f"name, {name}: {said(seen)}", flush=True)
                await mesh.mend()
    rows = [row for name, all_seen in found.items() for row in _rows(name, all_seen)]
    return [*rows, within("name: trials that came to no end", broken, "trials", None, 0)]


def said(seen: Seen) -> str:
    """One line for a person."""
    moved = "" if seen.swap_s is None else f"swap {seen.swap_s * 1e3:.0f} ms, "
    moved += "" if seen.moved_s is None else f"since the fault {seen.moved_s:.3f} s, "
    ends = [
        f"{kind}: {e.answered} answered, lost {e.failed or 0}, hanging {e.hanging}"
        for kind, e in (("plain", seen.plain), ("streams", seen.stream), ("idle clients", seen.idle))
    ]
    return f"{moved}slowest lookup {seen.slowest_lookup_s:.3f} s; {'; '.join(ends)}"


def _rows(name: str, all_seen: Sequence[Seen]) -> list[Figure]:
    what, ran = f"name, coordinator {name}", bool(all_seen)
    swaps = [seen.swap_s for seen in all_seen if seen.swap_s is not None]
    rows = []
    if name != "drained":
        since = [seen.moved_s for seen in all_seen if seen.moved_s is not None]
        rows += [
            within(f"{what}: swap seen after takeover, median", median(swaps) if swaps else None, "s", None, SWAP_S),
            within(f"{what}: swap seen after takeover, max", max(swaps, default=None), "s", None, SWAP_S),
            within(f"{what}: swap seen after the fault, max", max(since, default=None), "s", None, None),
        ]
    slowest_s = max((seen.slowest_lookup_s for seen in all_seen), default=None)
    rows.append(within(f"{what}: slowest lookup", slowest_s, "s", None, BLOCKED_S))
    lost = sum(seen.lookups_lost for seen in all_seen) if ran else None
    rows.append(within(f"{what}: lookups without an address", lost, "lookups", None, 0))
    for kind, words in (("plain", "plain requests"), ("stream", "streams"), ("idle", "plain requests of idle clients")):
        ends: list[Ends] = [getattr(seen, kind) for seen in all_seen]
        if name == "cut" or (name == "killed" and kind == "stream"):  # no server can save these: counted by kind
            rows.append(within(f"{what}: {words} answered", sum(e.answered for e in ends), "requests", 1, None))
            rows.append(within(f"{what}: {words} hanging", sum(e.hanging for e in ends), "requests", None, None))
            failed = sum((Counter(e.failed) for e in ends), Counter[str]())
            rows += [within(f"{what}: {words}, {k}", n, "requests", None, None) for k, n in sorted(failed.items())]
        else:
            rows.append(
                within(f"{what}: {words} failed", sum(e.lost for e in ends) if ran else None, "requests", None, 0)
            )
    return rows
