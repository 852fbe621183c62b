"""Neighbours that do a mesh no good: garbage on every port, a later protocol, one name twice. Nothing breaks, and what
is wrong is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from mesh.settings import MembershipSettings
from mesh.wire import PROTOCOL
from tests.lab.conftest import Place
from tests.lab.macs import ROOT, Asker, Mac, agreed, wait_until

Figure = Callable[[str, float], None]
ATTACK_S = 20.0
MEMORY_MAX = 500 << 20


class Later(Mac):
    """A Mac whose daemon is of the next major protocol."""

    program = "tests.lab.later"


def resident_bytes(mac: Mac) -> int:
    assert mac.process is not None
    pages = Path(f"/proc/{mac.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


def files_open(mac: Mac) -> int:
    assert mac.process is not None
    return len(list(Path(f"/proc/{mac.process.pid}/fd").iterdir()))


def alive(macs: list[Mac]) -> bool:
    """They all have each other, whoever else is in their lists."""
    names = {mac.name for mac in macs}
    return all(names <= {n.name for n in mac.said().nodes if n.state == "ok"} for mac in macs)


def test_garbage_on_every_port_of_a_busy_mesh_fails_no_request(
    place: Callable[[int], Place], model: Path, figure: Figure
) -> None:
    lab = place(4)
    macs = [lab.mac(1, mesh_priority=200).start()]
    wait_until(lambda: macs[0].coordinator == "mac1", "the first coordinates")
    macs += [lab.mac(2, model=model).start(), lab.mac(3, model=model).start()]
    wait_until(lambda: agreed(macs), "all agree")
    term = macs[0].said().mesh.term
    before = resident_bytes(macs[0])
    with ExitStack() as stack:
        clients = [
            stack.enter_context(Asker(lab.lab, "mac2", "http://localhost:4000/v1", model.name, workers=2)),
            stack.enter_context(
                Asker(lab.lab, "mac1", "http://localhost:4000/v1", model.name, stream=True, max_tokens=100)
            ),
        ]
        for client in clients:
            client.go()
        wait_until(lambda: all(len(c.answered()) > 1 for c in clients), "all are being answered")
        argv = [sys.executable, "-m", "tests.lab.hostile", macs[0].ip, str(ATTACK_S), macs[1].id]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        attack = lab.lab.popen("mac4", argv, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            out, _ = attack.communicate(timeout=180)
        finally:
            attack.kill()
        assert attack.returncode == 0
        did = json.loads(out.splitlines()[0])
        known = len(macs[0].said().nodes)
        told = "10.77.0.4 sends what is no message of a mesh"
        wait_until(lambda: any(told in note for note in macs[0].said().notes), "a note says who it is")
        said = [client.end() for client in clients]
    print(f"\n    what was done to it: {did}")
    figure("resident MB before the attack", before / 2**20)
    figure("resident MB after it", resident_bytes(macs[0]) / 2**20)
    assert [[s.error for s in of if s.error] for of in said] == [[], []]
    assert did["datagrams"] > 500
    assert did["links"] > 20
    assert did["silent connections"] > 10
    assert resident_bytes(macs[0]) < MEMORY_MAX
    wait_until(lambda: files_open(macs[0]) < 200, "silent connections are closed")
    assert known <= 3 + 2 + MembershipSettings().strangers_max
    wait_until(lambda: alive(macs), "the mesh is whole")
    elected = max(mac.said().mesh.term for mac in macs) - term
    print(f"    elections meanwhile (0, unless this machine is too busy): {elected}")
    wait_until(lambda: '"event":"noise"' in macs[0].output, "the log says so")
    assert macs[0].output.count('"event":"noise"') == 1, "once in the log"


def test_two_of_one_name_and_one_of_a_later_protocol(place: Callable[[int], Place]) -> None:
    lab = place(4)
    macs = [lab.mac(1), lab.mac(2, node_name="studio"), lab.mac(3, node_name="studio")]
    for mac in macs:
        mac.start()
    wait_until(lambda: all(mac.coordinator for mac in macs), "they run")

    def shown() -> dict[str, str]:
        return {n.name: n.state for n in macs[0].said().nodes}

    both = {f"studio~{macs[1].id[:4]}", f"studio~{macs[2].id[:4]}"}
    wait_until(lambda: shown() == {"mac1": "ok", **dict.fromkeys(both, "ok")}, "each has a name of its own")
    one = min(both)
    assert macs[0].client.drain(one)["node"] == one, "a command takes it"
    wait_until(lambda: shown().get(one) == "draining", "it drains")
    assert macs[0].client.undrain(one)["draining"] is False
    later = lab.mac(4, kind=Later).start()

    def too_old() -> bool:
        node = macs[0].sees("mac4")
        words = (f"speaks protocol {PROTOCOL + 1}", "update this node")
        return node is not None and node.state == "incompatible" and all(word in node.reason for word in words)

    wait_until(too_old, "the later one is shown as such")

    def too_new() -> bool:
        reasons = [n.reason for n in later.said().nodes if n.state == "incompatible"]
        return len(reasons) == 3 and all(reason.endswith("update it") for reason in reasons)

    wait_until(too_new, "it shows the others as such")
    wait_until(lambda: all(shown().get(name) == "ok" for name in ("mac1", *both)), "the others go on")
