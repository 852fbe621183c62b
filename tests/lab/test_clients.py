"""Clients on a real other machine: keys that two Macs share, revoked on either, and names that lead there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Place
from tests.lab.macs import Mac, agreed, wait_until
from tests.lab.netlab import Lab

VISIT = """
import json, sys, time, urllib.error, urllib.request
url, fields, body, until = json.loads(sys.argv[1])
while True:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body and body.encode(), fields), timeout=60) as answer:
            status, said = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, said = error.code, error.read().decode()
    if until in (None, status):
        break
    print("asking", flush=True)
print(json.dumps([status, said, time.monotonic()]))
"""


class Visitor:
    """A machine that is no node, asking one by its address."""

    def __init__(self, lab: Lab, at: str, mac: Mac, model: str, host: str = "") -> None:
        self.lab, self.at, self.mac, self.model, self.host = lab, at, mac, model, host or mac.ip

    def _argv(self, path: str, key: str, until: int | None, **fields: str) -> list[str]:
        chat = {"model": self.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        body = json.dumps(chat | {"stream": True}) if path.endswith("completions") else None
        said = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {}), **fields}
        question = json.dumps([f"http://{self.host}:4000{path}", said, body, until])
        return [sys.executable, "-c", VISIT, question]

    def asks(self, key: str = "", path: str = "/v1/chat/completions", **fields: str) -> int:
        done = self.lab.run(self.at, self._argv(path, key, None, **fields), capture_output=True, text=True, check=True)
        status, said, _ = json.loads(done.stdout)
        assert status != 200 or path != "/v1/chat/completions" or said.endswith("data: [DONE]\n\n")
        return int(status)

    def asks_until(self, status: int, key: str, path: str = "/v1/models") -> subprocess.Popen[Any]:
        """Asks on and on; what it prints ends with the time of the first answer with that status."""
        return self.lab.popen(self.at, self._argv(path, key, status), stdout=subprocess.PIPE, text=True)


def local(visitor: Visitor, host: str) -> int:
    """A program without a key on the Mac itself, which calls it so."""
    return Visitor(visitor.lab, visitor.mac.name, visitor.mac, visitor.model, host).asks()


@pytest.fixture
def two(place: Callable[[int], Place], model: Path) -> tuple[Place, list[Mac]]:
    there = place(3)
    macs = [there.mac(1, model=model), there.mac(2, model=model)]
    for mac in macs:
        mac.start()
    wait_until(lambda: agreed(macs), "both agree and every model is ready")
    return there, macs


def test_a_client_on_the_lan_needs_a_key_of_either_mac_and_a_revoked_one_is_over_within_a_second(
    two: tuple[Place, list[Mac]], model: Path, figure: Callable[[str, float], None]
) -> None:
    there, macs = two
    visitors = [Visitor(there.lab, "mac3", mac, model.name) for mac in macs]
    assert [visitor.asks() for visitor in visitors] == [200, 200]
    made = macs[0].client.create_key("visitor", first=True)
    wait_until(lambda: macs[1].client.keys().needed, "the other Mac knows it")
    for visitor in visitors:
        assert [visitor.asks(), visitor.asks("sk-mesh-" + "0" * 52), visitor.asks(made.key)] == [401, 401, 200]
        assert visitor.asks(path="/metrics") == visitor.asks(path="/v1/models") == 401
        assert visitor.asks(path="/health") == visitor.asks(path="/.well-known/mlx-stack") == 200
        assert [local(visitor, host) for host in ("localhost", "127.0.0.1", visitor.mac.ip)] == [200, 200, 401]

    asking = [visitor.asks_until(401, made.key) for visitor in visitors]
    for one in asking:
        assert one.stdout is not None
        assert one.stdout.readline() == "asking\n"
    began = time.monotonic()
    macs[1].client.revoke_key("visitor")
    over = [json.loads(one.communicate(timeout=60)[0].splitlines()[-1])[2] - began for one in asking]
    figure("from `keys revoke` on one Mac until both refuse the key", max(over))
    assert max(over) < 1.0
    macs[0].client.keys_off()
    wait_until(lambda: not macs[1].client.keys().needed, "the other Mac knows it")
    assert [visitor.asks() for visitor in visitors] == [200, 200]


def test_a_mac_that_was_cut_off_learns_of_a_revocation_at_once_when_it_is_back(
    two: tuple[Place, list[Mac]], model: Path, figure: Callable[[str, float], None]
) -> None:
    there, macs = two
    made = macs[0].client.create_key("visitor", first=True)
    far = Visitor(there.lab, "mac3", macs[1], model.name)
    wait_until(lambda: macs[1].client.keys().needed, "the other Mac knows it")
    there.lab.partition(["mac1"], ["mac2", "mac3"])
    wait_until(lambda: macs[0].coordinator == "mac1" and macs[1].coordinator == "mac2", "each rules its side")
    macs[0].client.revoke_key("visitor")
    assert far.asks(made.key) == 200, "nobody could tell it"
    there.lab.rejoin()
    began = time.monotonic()
    wait_until(lambda: not macs[1].client.keys().keys, "it has heard")
    figure("from the end of a cut until the other side refuses a key revoked meanwhile", time.monotonic() - began)
    assert far.asks(made.key) == 401


def test_names_and_pages_are_judged_for_clients_on_the_lan_as_for_others(
    two: tuple[Place, list[Mac]], model: Path
) -> None:
    there, macs = two
    visitor = Visitor(there.lab, "mac3", macs[0], model.name)
    for host in ("mac1.local:4000", "mlx-mesh.local:4000", "coordinator.local", "mac1", "mac1.tail1234.ts.net"):
        assert visitor.asks(host=host) == 200, host
    for fields in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        assert visitor.asks(**fields) == visitor.asks(path="/v1/models", **fields) == 403
