"""The lab itself: what passes between its nodes, and what does not once it is cut, torn or shaped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.lab.netlab import CARRIER, SILENT, Lab

PATIENT_S, SURE_S = 5.0, 0.5  # for an answer that should come, and for one that should not
ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("", 9))
    print("ready", flush=True)
    while True:
        data, address = sock.recvfrom(2000)
        sock.sendto(data, address)
"""
# Sends all at once; prints the milliseconds until each answer, until all are there or none came for so long.
PING = """
import json, socket, sys, time
host, count, silence_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(silence_s)
    sent, found = {}, {}
    for number in range(count):
        sent[number] = time.monotonic()
        sock.sendto(b"%d" % number, (host, 9))
    try:
        while len(found) < count:
            number = int(sock.recv(99))
            found[number] = 1e3 * (time.monotonic() - sent[number])
    except TimeoutError:
        pass
print(json.dumps(sorted(found.values())))
"""
JOIN = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("", 5353))
    group = socket.inet_aton("224.0.0.251") + socket.inet_aton("0.0.0.0")
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    print("ready", flush=True)
    print(sock.recv(99).decode(), flush=True)
"""
SAY = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'hi', ('224.0.0.251', 5353))"


@pytest.fixture(scope="module")
def built() -> Iterator[Lab]:
    """Three nodes; mac2 answers."""
    with Lab(3, name=f"n{os.getpid()}") as lab:
        ready(lab, "mac2", ECHO)
        yield lab


@pytest.fixture
def lab(built: Lab) -> Iterator[Lab]:
    """It, as it was at first."""
    yield built
    built.heal()


def ready(lab: Lab, node: str, program: str) -> subprocess.Popen[str]:
    process = lab.popen(node, [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def answers(lab: Lab, count: int, node: str = "mac1", silence_s: float = PATIENT_S) -> list[float]:
    """Milliseconds until each answer of mac2."""
    argv = [sys.executable, "-c", PING, lab.ip("mac2"), str(count), str(silence_s)]
    found: list[float] = json.loads(lab.run(node, argv, capture_output=True, text=True, check=True).stdout)
    return found


def test_nodes_reach_each_other(lab: Lab) -> None:
    assert len(answers(lab, 20)) == 20


def test_multicast_reaches_who_has_joined(lab: Lab) -> None:
    joined = ready(lab, "mac3", JOIN)
    lab.run("mac1", [sys.executable, "-c", SAY], check=True)
    assert joined.communicate(timeout=60)[0] == "hi\n"


@pytest.mark.parametrize("how", [SILENT, CARRIER])
def test_a_node_that_is_cut_off_is_not_reached_until_it_is_restored(lab: Lab, how: str) -> None:
    lab.cut("mac2", how)
    assert answers(lab, 3, silence_s=SURE_S) == []
    lab.restore("mac2")
    assert len(answers(lab, 10)) == 10


def test_a_partition_separates_its_groups_only(lab: Lab) -> None:
    lab.partition(["mac1"], ["mac2", "mac3"])
    assert answers(lab, 3, silence_s=SURE_S) == []
    assert len(answers(lab, 5, "mac3")) == 5
    lab.rejoin()
    assert len(answers(lab, 5)) == 5


def test_a_shaped_link_delays_and_loses_in_both_directions(lab: Lab) -> None:
    lab.shape("mac2", delay_ms=10, jitter_ms=20, loss=0.1)
    found = answers(lab, 200, silence_s=2.0)
    assert found[0] > 19, "ten milliseconds there and ten back"
    assert 100 < len(found) < 200, "about four of five come back"
    lab.heal()
    assert len(answers(lab, 10)) == 10


def test_a_node_gets_another_address(lab: Lab) -> None:
    lab.readdr("mac1", f"{lab.subnet}.0.99")
    assert len(answers(lab, 5)) == 5
    lab.readdr("mac1", lab.ip("mac1"))


def test_nothing_is_left_of_it() -> None:
    name = f"n{os.getpid()}x"
    with Lab(2, name=name) as lab:
        process = ready(lab, "mac2", ECHO)
    assert process.poll() is not None
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    assert [ns for ns in left if ns.startswith(name)] == []
