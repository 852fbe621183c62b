"""tests/sim/checkers.py on the mesh's name: which two may answer for it, and for how long."""

from __future__ import annotations

import pytest

from tests.sim import faults
from tests.sim.checkers import NAME_S, TheNameHasOneAnnouncer, ViolationError
from tests.sim.node import Node
from tests.sim.runs import AGREE_S, see_through
from tests.sim.world import LOOK_S, World


def halves() -> World:
    """Two nodes that were cut off from each other and are together again; nobody announces anything."""
    world = World(1, [100, 100], checkers=[TheNameHasOneAnnouncer()])
    world.run(5)
    faults.split(world, {"n0"})
    world.run(20)
    world.blocked = set()
    return world


def hold(world: World, *, unknown: Node | None = None) -> None:
    """For longer than they may, both answer, whatever they hear; nobody knows `unknown`."""
    for _ in range(round(2 * NAME_S / LOOK_S) + 2):
        for node in world.nodes.values():
            node.title.answers = ("mlx-mesh.local.",)
            if unknown is not None:
                node.targets.pop(unknown.id, None)
        world.run(world.now + LOOK_S)


def test_two_that_know_each_other_may_not_both_answer() -> None:
    world = halves()
    with pytest.raises(ViolationError, match="both answer for the name"):
        hold(world)


def test_one_that_knows_where_the_other_is_is_enough() -> None:
    world = halves()
    one, other = world.nodes.values()
    other.targets.pop(one.id)
    assert (world.addresses(one, other), world.addresses(other, one)) == (True, False)
    with pytest.raises(ViolationError, match="both answer for the name"):
        hold(world, unknown=one)


def test_two_that_both_moved_while_apart_have_to_be_found_first() -> None:
    world = halves()
    world.stale |= {("n0", "n1"), ("n1", "n0")}
    hold(world)
    faults.heal(world)
    with pytest.raises(ViolationError, match="both answer for the name"):
        hold(world)


def test_who_hears_of_the_new_address_sends_there() -> None:
    world = World(1, [100, 100, 100])
    world.run(5)
    one, other = world.nodes["n0"], world.nodes["n1"]
    faults.split(world, {"n0"})
    world.move(other, found_after_s=0.1)
    world.run(10)
    assert not world.addresses(one, other)
    assert world.addresses(world.nodes["n2"], other)
    world.blocked -= {("n0", "n2"), ("n2", "n0")}  # the third one tells it
    assert world.run_until(lambda: world.addresses(one, other), 10.0) is not None


def test_a_handover_on_the_last_moment_is_seen_through() -> None:
    """The loser answers until it hears the winner, a second at most."""
    world = World(1, [100, 100, 200])
    world.kill(world.nodes["n2"])
    world.run(5)
    world.start(world.nodes["n2"])
    assert world.run_until(lambda: world.nodes["n2"].title.answers != (), 40.0, every_s=0.0001) is not None
    assert len([n for n in world.up() if n.title.answers]) == 2
    taken = world.takeovers[-1].at
    see_through(world, AGREE_S)
    assert world.now == pytest.approx(taken + AGREE_S)
    assert [n.name for n in world.up() if n.title.answers] == ["n2"]
