"""Five Macs become one mesh with nothing typed, and nobody else gets in: real daemons on a network of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.model import build_tiny, default_cache
from mesh.answers import Node
from mesh.client import MeshClientError
from tests.lab.conftest import Place
from tests.lab.macs import Asker, Mac, wait_for, wait_until


@dataclass
class Five:
    """mac1 to mac5 are one mesh; mac6 comes after its window."""

    place: Place
    macs: list[Mac]
    late: Mac
    model: str


@pytest.fixture(scope="module")
def five(shared_place: Callable[[int], Place], model: Path, request: pytest.FixtureRequest) -> Five:
    """Started within the same second, with only `mesh-enabled: true`."""
    place = shared_place(6)
    macs = [place.mac(n, model=model if n in {1, 5} else None) for n in range(1, 6)]
    for mac in macs:
        mac.start()
    wait_until(lambda: in_one_mesh(macs), "five nodes are one mesh")
    request.config.stash[FORMED] = time.monotonic() - macs[0].started_at
    wait_until(lambda: all(len(ready(mac)) == 2 for mac in macs), "both models are ready")
    own = build_tiny(default_cache() / "tiny-late", seed=9)
    return Five(place, macs, place.mac(6, model=own), model.name)


FORMED = pytest.StashKey[float]()


def in_one_mesh(macs: Iterable[Mac]) -> bool:
    """All of them, and no other member, are `ok` for each other, in a mesh of one id."""
    macs, ids = list(macs), set()
    for mac in macs:
        status = mac.status()
        if status is None or {n.name for n in status.nodes if n.state == "ok"} != {m.name for m in macs}:
            return False
        ids.add(status.mesh.id)
    return len(ids) == 1


def ready(mac: Mac) -> list[Node]:
    """The nodes that it shows with a model that could answer."""
    status = mac.status()
    return [n for n in status.nodes if any(m.state in ("ready", "busy") for m in n.models)] if status else []


def mesh_id(mac: Mac) -> str:
    return mac.said().mesh.id


def numbers(mac: Mac) -> dict[str, str]:
    """By name, the check numbers that it shows."""
    status = mac.said()
    return {n.name: status.trust.checks[n.id] for n in status.nodes if n.id in status.trust.checks}


def test_five_macs_that_start_in_the_same_second_are_one_mesh(
    five: Five, figure: Callable[[str, float], None], request: pytest.FixtureRequest
) -> None:
    figure(
        "from the start of the first of five daemons until all five are ok for each other", request.config.stash[FORMED]
    )
    merged = sum(mac.output.count('"event":"joins"') for mac in five.macs)
    print(f"    {merged} of 5 foundings went into another one", flush=True)
    assert merged >= 4
    notes = " ".join(five.macs[0].said().notes)
    assert "nobody has confirmed it yet" in notes, "who joined by itself is shown to people"
    for mac in five.macs:
        assert numbers(mac) == numbers(five.macs[0]), "with the same numbers"
        assert len(numbers(mac)) == 4


def test_the_numbers_are_confirmed_on_any_mac_and_no_note_is_left(five: Five) -> None:
    for name in numbers(five.macs[4]):
        assert five.macs[4].client.accept(name)["done"] == "confirmed"
    wait_until(lambda: not any(numbers(mac) for mac in five.macs), "everybody knows")


def test_a_mac_that_comes_after_the_window_waits_and_has_nothing_of_the_mesh(five: Five) -> None:
    five.macs[1].client.close_window()
    wait_until(
        lambda: all(m.said().trust.window_s == 0 for m in five.macs), "every Mac knows that the window is closed"
    )
    late = five.late.start()
    waiting = wait_for(lambda: _waiting(five.macs[3], late.name), "mac4 shows that mac6 waits")
    assert "`mlx-stack mesh accept mac6`" in waiting.reason
    wait_until(lambda: all(_waiting(mac, late.name) for mac in five.macs), "every member shows it")
    own = wait_for(lambda: numbers(late).get(late.name), "mac6 has its number")
    assert numbers(five.macs[3])[late.name] == own, "both show the same number"
    assert any("`mlx-stack mesh accept mac6`" in note for note in late.said().notes)
    assert mesh_id(late) != mesh_id(five.macs[0])

    # It cannot read: none of the mesh's models, nothing on any peer port.
    shown = late.said()
    assert [n.name for n in shown.nodes if n.models] == [late.name]
    assert {n.state for n in shown.nodes if n.name != late.name} <= {"waiting"}
    with Asker(five.place.lab, late.name, "http://localhost:4000/v1", five.model, count=1) as asker:
        assert "Error code: 404" in asker.go().wait()[0].error
    for path in ("/mesh/v1/status", "/mesh/v1/routes", "/mesh/v1/link", "/"):
        assert _answer(five, late, five.macs[0], path) == (403, "members only\n")

    # It is not routed to: its own model is known nowhere.
    with Asker(five.place.lab, "mac1", "http://localhost:4000/v1", "tiny-late", count=1) as asker:
        assert "Error code: 404" in asker.go().wait()[0].error


def _waiting(mac: Mac, name: str) -> Node | None:
    found = mac.sees(name)
    return found if found is not None and found.state == "waiting" and name in numbers(mac) else None


def _answer(five: Five, mac: Mac, to: Mac, path: str) -> tuple[int, str]:
    """What `mac`, without a certificate, is told on the peer port of `to`."""
    script = (
        "import http.client, ssl, sys; c = ssl.create_default_context(); c.check_hostname = False; "
        "c.verify_mode = ssl.CERT_NONE; h = http.client.HTTPSConnection(sys.argv[1], 4001, context=c, timeout=20); "
        "h.request('GET', sys.argv[2]); r = h.getresponse(); print(r.status, r.read().decode(), end='')"
    )
    done = five.place.lab.run(
        mac.name, ["python3", "-c", script, to.ip, path], capture_output=True, text=True, check=True
    )
    status, _, body = done.stdout.partition(" ")
    return int(status), body


def test_it_is_let_in_on_any_member_also_when_the_first_is_dead(
    five: Five, figure: Callable[[str, float], None]
) -> None:
    first, others = five.macs[0], five.macs[1:]
    first.kill()
    wait_until(lambda: in_one_mesh(others), "the others go on")
    wait_until(lambda: _waiting(others[2], five.late.name), "mac6 still waits")
    began = time.monotonic()
    assert others[2].client.accept(five.late.name)["done"] == "let in"
    wait_until(lambda: in_one_mesh([*others, five.late]), "mac6 is a member")
    figure("from `mesh accept` until all are ok for each other", time.monotonic() - began)
    with Asker(five.place.lab, five.late.name, "http://localhost:4000/v1", five.model, count=1) as asker:
        assert asker.go().wait()[0].error == ""
    first.start()
    wait_until(lambda: in_one_mesh([*five.macs, five.late]), "the first is back, and knows mac6")


def test_who_is_removed_is_out_at_once_and_stays_out_over_restarts_of_everyone(
    five: Five, figure: Callable[[str, float], None]
) -> None:
    late, macs = five.late, five.macs
    away = macs[4]
    away.kill()  # it hears of the removal when it is back
    wait_until(lambda: in_one_mesh([*macs[:4], late]), "one is away")
    began = time.monotonic()
    macs[2].client.remove(late.name)
    took = wait_until(lambda: all(not _ok(mac, late.name) for mac in macs[:4]) and not _ok(late, "mac1"), "it is out")
    figure("from `mesh remove` until neither side takes the other for a member", took)
    assert time.monotonic() - began < 5, "at once; the machine is busy"
    for mac in (*macs[:4], late):
        assert mac.stop() == 0
    for mac in (*macs, late):
        mac.start()
    wait_until(lambda: in_one_mesh(macs), "the five are back, mac5 too, which was away")
    wait_until(lambda: _waiting(away, late.name), "it asks to be let back in, and waits")
    assert any("was removed from the mesh" in note for note in late.said().notes)
    macs[0].client.open_window()
    wait_until(lambda: macs[3].said().trust.window_s > 0, "the window is open")
    time_of = time.monotonic()
    wait_until(lambda: late.output.count("lets this node wait") > 0 or time.monotonic() - time_of > 5, "it asks again")
    assert not _ok(macs[0], late.name), "no window lets it back in"
    macs[0].client.close_window()
    with pytest.raises(MeshClientError):
        late.client.invite()
    assert macs[1].client.accept(late.name)["done"] == "let in"
    wait_until(lambda: in_one_mesh([*macs, late]), "a person lets it back in")


def _ok(mac: Mac, name: str) -> bool:
    found = mac.sees(name)
    return found is not None and found.state in ("ok", "suspect", "draining")
