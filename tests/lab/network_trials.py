"""Networks that change under a mesh of real daemons, and how long until it is whole again. For the tests and for
bench/mesh.py. Each trial takes a mesh that is whole and leaves one that is; seconds are of the monotonic clock."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

from tests.lab.macs import LIMIT_S, Mac, agreed, coordinator_of, wait_until
from tests.lab.netlab import Lab
from tests.lab.told import NOBODY, Told

NIGHT_S = 3600.0
_numbers = count(1)


class Sleeper(Mac):
    """A Mac whose clock can be ahead after a sleep."""

    program = "tests.lab.sleeper"

    def sleep(self) -> float:
        """From now on it stands still; returns when."""
        return self.freeze()

    def wake(self, slept_s: float) -> float:
        """It goes on, and its sleep-proof clock says that `slept_s` have passed; returns when."""
        (self.home / "slept").write_text(f"{slept_s}\n")
        at = time.monotonic()
        self.thaw()
        return at


@contextmanager
def macs_of(nodes: int, *, started: bool = True) -> Iterator[list[Mac]]:
    """That many Macs in a lab of their own, without models; when `started`, agreed."""
    with _homes(nodes) as (lab, folder):
        macs = [Mac(lab, name, folder) for name in lab.nodes]
        if started:
            start(macs)
        yield macs


@contextmanager
def sleepers_of(nodes: int) -> Iterator[list[Sleeper]]:
    """The same of Macs that can be sent to sleep, agreed."""
    with _homes(nodes) as (lab, folder):
        macs = [Sleeper(lab, name, folder) for name in lab.nodes]
        start(macs)
        yield macs


@contextmanager
def _homes(nodes: int) -> Iterator[tuple[Lab, Path]]:
    with (
        tempfile.TemporaryDirectory(prefix="lab", dir="/tmp", ignore_cleanup_errors=True) as folder,
        Lab(nodes, name=f"w{os.getpid()}n{next(_numbers)}") as lab,
    ):
        yield lab, Path(folder)


def start(macs: Sequence[Mac]) -> None:
    """Starts them all; returns when they agree."""
    for mac in macs:
        mac.start()
    whole(macs)


def whole(macs: Sequence[Mac]) -> float:
    """Waits until they agree; returns when."""
    wait_until(lambda: agreed(macs), "all agree")
    return time.monotonic()


def moved(mac: Mac, where: Sequence[Mac], old: str, new: str) -> bool:
    """The Macs `where` know its new address, and send it nothing at the old one: requests go to the first."""
    found = [node.addresses for other in where if (node := other.sees(mac.name))]
    return len(found) == len(where) and all(new in known and known[0] != old for known in found)


def link_flaps(macs: Sequence[Mac], away_s: float = 3.0) -> float:
    """The last Mac's cable is out for `away_s` (its system sees that) and in again: seconds from then until whole."""
    mac = macs[-1]
    mac.lab.cut(mac.name, "carrier")
    wait_until(lambda: mac.coordinator == mac.name and agreed(macs[:-1]), "it is alone, the others go on")
    time.sleep(away_s)  # the fault's own length
    at = time.monotonic()
    mac.lab.restore(mac.name)
    return whole(macs) - at


def interface_flaps(macs: Sequence[Mac]) -> float:
    """The last Mac's interface is switched off and on (Wi-Fi in the menu bar): seconds from on until whole."""
    mac = macs[-1]
    mac.lab.link(mac.name, up=False)
    wait_until(lambda: mac.coordinator == mac.name and agreed(macs[:-1]), "it is alone, the others go on")
    at = time.monotonic()
    mac.lab.link(mac.name, up=True)
    return whole(macs) - at


def address_changes(macs: Sequence[Mac], address: str) -> float:
    """The last Mac gets another address (DHCP): seconds until the others send its requests there, and all is whole."""
    mac, others, at = macs[-1], macs[:-1], time.monotonic()
    mac.lab.readdr(mac.name, address)
    wait_until(lambda: moved(mac, others, mac.ip, address) and agreed(macs), "known by its new address")
    return time.monotonic() - at


def interface_added(macs: Sequence[Mac]) -> float:
    """The last Mac starts without any network, and gets one: seconds from then until whole. None may be started."""
    mac, lab = macs[-1], macs[-1].lab
    lab.run(mac.name, ["ip", "link", "set", "eth0", "down"], check=True)
    lab.run(mac.name, ["ip", "addr", "flush", "dev", "eth0"], check=True)
    for each in macs:
        each.start()
    wait_until(lambda: agreed(macs[:-1]) and mac.coordinator == mac.name, "one has no network, the others agree")
    lab.run(mac.name, ["ip", "addr", "add", f"{mac.ip}/24", "brd", "+", "dev", "eth0"], check=True)
    at = time.monotonic()
    lab.link(mac.name, up=True)
    return whole(macs) - at


class Joined(NamedTuple):
    seconds: float  # from the one `mesh add` until all five agree
    notes: tuple[str, ...]  # of the last one, some time later


@contextmanager
def no_mdns_on_the_lan(lab: Lab) -> Iterator[None]:
    """A switch that passes everything but multicast DNS."""
    rules = "table bridge quiet {\n chain f { type filter hook forward priority 1; udp dport 5353 drop; }\n}\n"
    lab.switch_rules(rules)
    try:
        yield
    finally:
        lab.switch_rules("delete table bridge quiet")


def joined_by_hand(macs: Sequence[Mac]) -> Joined:
    """Multicast is blocked, the first two know each other and the others do: one `mesh add` on one of them, then.

    None may be started: each group meets by mDNS while the other is cut off, and then mDNS is blocked everywhere."""
    first, second = macs[:2], macs[2:]
    lab = macs[0].lab
    lab.partition([m.name for m in first], [m.name for m in second])
    for mac in macs:
        mac.start()
    wait_until(lambda: agreed(first) and agreed(second), "two meshes that never met")
    with no_mdns_on_the_lan(lab):
        lab.heal()
        at = time.monotonic()
        first[0].client.add(second[0].ip)
        seconds = whole(macs) - at
        last = macs[-1]

        def said() -> bool:
            notes = [note for note in last.said().notes if "found by address" in note]
            return any(all(mac.name in note for mac in first) for note in notes)

        wait_until(said, "it says that mDNS is of no use here")
        return Joined(seconds, last.said().notes)


class Night(NamedTuple):
    seconds: float  # from waking until whole
    said: list[Told]  # changes of coordinator as the sleeper saw them after it woke
    terms: dict[int, set[str]]  # who coordinated in each term, by anybody's word, from the sleep on


def coordinator_sleeps(macs: Sequence[Sleeper], slept_s: float = NIGHT_S) -> Night:
    """The coordinator sleeps, is succeeded, and wakes an hour later by its clock."""
    name = coordinator_of(macs).name
    sleeper = next(mac for mac in macs if mac.name == name)
    others = [mac for mac in macs if mac is not sleeper]
    since = sleeper.sleep()
    wait_until(lambda: agreed(others), "it is succeeded")
    woke = sleeper.wake(slept_s)
    seconds = whole(macs) - woke
    wait_until(lambda: all(mac.log.rulings()[-1].coordinator == coordinator_of(macs).id for mac in macs), "logs say it")
    terms: dict[int, set[str]] = {}
    for mac in macs:
        for told in mac.log.rulings():
            if told.at >= since and told.coordinator != NOBODY:
                terms.setdefault(told.term, set()).add(told.coordinator)
    return Night(seconds, [told for told in sleeper.log.rulings() if told.at >= woke - 0.002], terms)


class Flood(NamedTuple):
    records: int
    seconds: float
    cpu_s: float  # of one daemon, while it lasted
    grown_bytes: int  # of its memory, from before until it was over
    elections: int
    newcomer_s: float  # a node that starts in the middle of it, until all agree with it
    notes: tuple[str, ...]  # of one daemon, right after


def flooded(macs: Sequence[Mac], records: int, per_s: float) -> Flood:
    """The last Mac is no node, the last but one is not started yet: that many spoofed mDNS records come from the last
    one's namespace, at that rate, and a node starts meanwhile."""
    *nodes, newcomer, sender = macs
    start(nodes)
    before, busy_s, bytes_ = len(nodes[0].log.rulings()), cpu_s(nodes[0]), resident_bytes(nodes[0])
    argv = [sys.executable, str(Path(__file__).with_name("flooder.py")), sender.ip, str(records), str(per_s)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    flooder = sender.lab.popen(sender.name, argv, env=env, stdout=subprocess.PIPE, text=True)
    at = newcomer.start().started_at
    joined_s = whole([*nodes, newcomer]) - at
    sent, seconds = flooder.communicate(timeout=LIMIT_S)[0].split()
    return Flood(
        int(sent), float(seconds), cpu_s(nodes[0]) - busy_s, resident_bytes(nodes[0]) - bytes_,
        len(nodes[0].log.rulings()) - before, joined_s, nodes[0].said().notes,
    )  # fmt: skip


def cpu_s(mac: Mac) -> float:
    """Of its daemon, since it started."""
    fields = Path(f"/proc/{_pid(mac)}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(mac: Mac) -> int:
    return int(Path(f"/proc/{_pid(mac)}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _pid(mac: Mac) -> int:
    assert mac.process is not None
    return mac.process.pid
