"""Who coordinates, by rule: priority, then uptime, and priority 0 never. On real clocks, so these take longest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.lab.conftest import Place
from tests.lab.macs import Mac, agreed, coordinator_of, wait_until
from tests.lab.told import agreement

Figure = Callable[[str, float], None]
HANDOVER_S = 30.0  # of the newcomer's uptime and of the running term
LOW, MIDDLE, HIGH = "1" * 16, "7" * 16, "f" * 16  # node ids: they decide when nothing else does


def uptime_s(mac: Mac) -> float:
    node = mac.sees(mac.name)
    return node.uptime_s if node else 0.0


def test_a_higher_priority_joins_and_takes_over_after_the_handover_time(
    place: Callable[[int], Place], figure: Figure
) -> None:
    lab = place(3)
    old, other, best = lab.mac(1), lab.mac(2), lab.mac(3, mesh_priority=200)
    old.start()
    wait_until(
        lambda: old.coordinator == "mac1" and old.settled, "the first coordinates itself, and its mesh is founded"
    )
    for mac in (other, best):
        mac.start()
    macs = [old, other, best]
    assert coordinator_of(macs) is old, "who comes later waits, whatever its priority"
    wait_until(lambda: all(mac.coordinator == "mac3" for mac in macs), "the higher priority coordinates")
    wait_until(lambda: agreement([mac.log for mac in macs], [best.id]), "and all have logged it")
    figure("from its start until the higher priority coordinates (30 s and its start)", best.ruled_at - best.started_at)
    assert best.ruled_at - best.started_at > HANDOVER_S - 1.0
    assert max(m.ruled_at for m in macs) - min(m.ruled_at for m in macs) < 5.0


def test_of_equal_priorities_the_longer_uptime_coordinates(place: Callable[[int], Place]) -> None:
    lab = place(3)
    first, second = lab.mac(1, id_=LOW), lab.mac(2, id_=MIDDLE)
    late = lab.mac(3, id_=HIGH)  # would win by its id
    for mac in (first, second):
        mac.start()
    wait_until(lambda: agreed([first, second]), "the two agree")
    wait_until(
        lambda: min(uptime_s(first), uptime_s(second)) > 12.0, "an uptime that ranks: it counts in steps of 10 s"
    )
    late.start()
    macs = {mac.name: mac for mac in (first, second, late)}
    coordinator = coordinator_of([*macs.values()])
    assert coordinator is not late, "who comes later waits"
    del macs[coordinator.name]
    coordinator.kill()
    who: set[str | None] = set()

    def settled() -> bool:
        who.clear()
        who.update(mac.coordinator for mac in macs.values())
        return len(who) == 1 and not who & {None, coordinator.name}

    wait_until(settled, "the two that are left agree on a successor")
    assert who == {"mac1", "mac2"} - {coordinator.name}


def test_priority_0_never_coordinates_not_even_when_it_is_left_alone(place: Callable[[int], Place]) -> None:
    lab = place(3)
    macs = [lab.mac(1, id_=LOW), lab.mac(2, mesh_priority=0, id_=MIDDLE), lab.mac(3, mesh_priority=0, id_=HIGH)]
    for mac in macs:
        mac.start()
    assert coordinator_of(macs) is macs[0]
    macs[0].kill()
    for mac in macs[1:]:
        wait_until(partial(knows_of_nobody, mac, "mac1"), "it knows that nobody does")
    macs[1].kill()
    wait_until(lambda: knows_of_nobody(macs[2], "mac2"), "the last one knows that it is alone")
    wait_until(lambda: macs[2].said().mesh.alone, "it rules itself only")
    assert knows_of_nobody(macs[2], "mac2")
    for mac in macs[1:]:
        assert f"{mac.name} coordinates" not in mac.output


def knows_of_nobody(mac: Mac, dead: str) -> bool:
    """It takes `dead` for dead, and follows nobody. AssertionError if it coordinates."""
    status = mac.said()
    states = {n.name: n.state for n in status.nodes}
    assert not any(n.coordinator for n in status.nodes if n.name == mac.name)
    return states.get(dead) == "dead" and status.mesh.coordinator is None
