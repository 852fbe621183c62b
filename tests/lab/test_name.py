"""The coordinator's name, as a client with avahi and nss-mdns sees it (name_trials has the mesh and the faults)."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import Place
from tests.lab.macs import Mac, agreed, wait_until
from tests.lab.name_trials import BLOCKED_S, HOST, Lookups, Named, Seen, cut, down, drained, killed, named, owners, said
from tests.lab.name_trials import trial as name_trial

Figure = Callable[[str, float], None]


@pytest.fixture(scope="module")
def built(model: Path) -> Iterator[Named]:
    with tempfile.TemporaryDirectory(prefix="lab", dir="/tmp", ignore_cleanup_errors=True) as folder:
        with named(Path(folder), model) as mesh:
            yield mesh


@pytest.fixture
def mesh(built: Named) -> Named:
    """Whole again, whatever the test before did to it."""

    async def whole() -> None:
        await built.mend()
        await built.whole()

    asyncio.run(whole())
    return built


def tried(mesh: Named, fault: Callable[[Named, Mac], float], figure: Figure) -> Seen:
    seen = asyncio.run(name_trial(mesh, fault))
    print(f"\n    {fault.__name__}: {said(seen)}", flush=True)
    if seen.swap_s is not None:
        figure("from the takeover until a lookup tells the successor's address (goal 0.05)", seen.swap_s)
    figure("slowest lookup", seen.slowest_lookup_s)
    assert seen.lookups_lost == 0
    assert seen.slowest_lookup_s < BLOCKED_S
    return seen


def test_the_coordinator_dies_and_plain_requests_by_the_name_all_succeed(mesh: Named, figure: Figure) -> None:
    seen = tried(mesh, killed, figure)
    assert (seen.plain.lost, seen.idle.lost) == (0, 0)
    assert seen.plain.answered > 6


@pytest.mark.parametrize("fault", [down, drained])
def test_a_coordinator_that_leaves_or_drains_fails_nobody_streams_included(
    mesh: Named, figure: Figure, fault: Callable[[Named, Mac], float]
) -> None:
    seen = tried(mesh, fault, figure)
    assert (seen.plain.lost, seen.stream.lost, seen.idle.lost) == (0, 0, 0)


def test_a_coordinator_that_is_cut_off_is_succeeded_and_gets_no_name_back(mesh: Named, figure: Figure) -> None:
    """Requests in flight on it hang, as no server can prevent; who asks anew is answered."""
    lost = mesh.coordinator.name
    tried(mesh, cut, figure)
    new = mesh.coordinator
    assert new.name != lost
    mesh.lab.heal()
    wait_until(lambda: agreed(mesh.macs), "one mesh again")
    with Lookups(mesh.lab, "mac5") as lookups:
        wait_until(lookups.all, "lookups end")
        began = time.monotonic()
        while time.monotonic() < began + 3.0:  # as long as anybody repeats its announcement
            assert set(owners(mesh.lab)) <= {new.ip}
        assert {one.address for one in lookups.all()} == {new.ip}


def test_of_a_split_that_heals_one_owner_is_left(mesh: Named) -> None:
    first, second, third, fourth = mesh.macs
    mesh.lab.partition([first.name, third.name], [second.name, fourth.name])
    sides = [[first, third], [second, fourth]]
    wait_until(lambda: all(agreed(side) and side[0].coordinator in {m.name for m in side} for side in sides), "split")
    wait_until(lambda: len(owners(mesh.lab)) == 2, "each side has an owner; the client hears both")
    mesh.lab.heal()
    wait_until(lambda: agreed(mesh.macs), "one mesh again")
    wait_until(lambda: owners(mesh.lab) == [mesh.coordinator.ip], "one owner")
    with Lookups(mesh.lab, "mac5") as lookups:
        wait_until(lambda: lookups.first(mesh.coordinator.ip, 0.0), "the client follows it")


def test_a_second_mesh_with_that_name_stands_aside_until_the_first_is_gone(
    place: Callable[[int], Place], figure: Figure
) -> None:
    lab = place(3)
    first, second = lab.mac(1), lab.mac(2, mesh_name="MLX mesh")  # which makes mlx-mesh.local as well
    lab.lab.avahi("mac3")

    def url(mac: Mac) -> str:
        return mac.said().mesh.url

    def owned_by(mac: Mac, name: str = HOST) -> bool:
        return owners(lab.lab, "mac3", name) == [mac.ip]

    first.start()
    wait_until(lambda: owned_by(first), "the first mesh has the name")
    second.start()

    wait_until(lambda: url(second).startswith("http://mlx-mesh-"), "the second mesh has another name")
    other = url(second).removeprefix("http://").partition(":")[0]
    assert url(first) == f"http://{HOST}:4000/v1"
    wait_until(lambda: owned_by(second, other), "it answers for that one")
    wait_until(lambda: owned_by(first), "and not for the first's")
    told = f"another mesh here has {HOST}"
    wait_until(lambda: any(note.startswith(told) for note in second.said().notes), "a note says why")
    at = first.kill()
    wait_until(lambda: url(second) == f"http://{HOST}:4000/v1", "the name is free for it")
    figure("from the other mesh's end until the name is taken", time.monotonic() - at)
    wait_until(lambda: owned_by(second), "it answers for it")
    wait_until(lambda: owned_by(second, other), "who knows it by the other name goes on")
