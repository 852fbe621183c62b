"""mesh/joining.py with mesh/door.py, many nodes at once: however they start, they end in one mesh, and nobody gets in
when the window is closed."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.mesh.join_world import World


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32), count=st.integers(1, 9), spread_s=st.sampled_from([0.0, 1.0, 10.0, 100.0]),
    loss=st.sampled_from([0.0, 0.1, 0.4]), delay_s=st.sampled_from([0.01, 0.3, 2.0]),
)  # fmt: skip
def test_nodes_that_found_at_any_time_end_in_one_mesh(
    seed: int, count: int, spread_s: float, loss: float, delay_s: float
) -> None:
    world = World(Random(seed), loss=loss, delay_s=delay_s)
    for i in range(count):
        world.start(f"mac{i}", world.rng.uniform(0, spread_s))
    world.run(spread_s + 200.0 + 1500.0 * loss)  # a lost call costs ten seconds, and then up to a minute
    assert len(world.meshes()) == 1, f"seed {seed}: {world.meshes()}"
    mesh = world.meshes().pop()
    assert set(world.members[mesh]) >= set(world.nodes)
    assert all(node.joining.stance == "open" for node in world.nodes.values())


@pytest.mark.parametrize("count", [2, 5, 20])
def test_nodes_that_start_within_a_second_are_one_mesh_within_seconds(count: int) -> None:
    for seed in range(20):
        world = World(Random(seed), delay_s=0.2)
        for i in range(count):
            world.start(f"mac{i}", world.rng.uniform(0, 1))
        world.run(8.0)
        assert len(world.meshes()) == 1, f"seed {seed}"


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), late=st.integers(1, 4), loss=st.sampled_from([0.0, 0.3]))
def test_nobody_joins_outside_the_window(seed: int, late: int, loss: float) -> None:
    world = World(Random(seed), loss=loss)
    for i in range(3):
        world.start(f"mac{i}", 0.0)
    world.run(300.0)
    mesh = world.meshes().pop()
    before = dict(world.members[mesh])
    world.door(mesh).close()
    for node in world.nodes.values():
        node.look_at_home()
    world.run(310.0)
    for i in range(late):
        world.start(f"late{i}", 310.0 + i)
    world.run(700.0)
    assert world.members[mesh] == before
    outside = [n for n in world.nodes.values() if n.id not in before]
    if not loss and late == 1:  # else some may find each other first, and are a second mesh of this name
        assert all(n.joining.stance == "out" and n.joining.waits is not None for n in outside), "each waits there"
        assert {w.node for w in world.door(mesh).waiting(world.now)} == {n.id for n in outside}
    assert all(at <= 300 for at, _, to, _ in world.joins if to == mesh)


def test_who_waits_comes_in_once_the_window_is_opened() -> None:
    world = World(Random(3))
    world.start("mac0", 0.0)
    world.run(20.0)
    mesh = world.meshes().pop()
    world.door(mesh).close()
    world.start("mac1", 25.0)
    world.run(60.0)
    assert len(world.members[mesh]) == 1
    world.door(mesh).open(600.0, world.now)
    world.run(75.0)
    assert world.meshes() == {mesh}
    assert len(world.members[mesh]) == 2


def test_who_was_removed_asks_and_is_never_let_in_by_the_window() -> None:
    world = World(Random(4))
    for i in range(3):
        world.start(f"mac{i}", 0.0)
    world.run(60.0)
    mesh = world.meshes().pop()
    gone = next(n for n in world.nodes.values() if n.name == "mac2")
    world.removed[mesh][gone.id] = world.members[mesh].pop(gone.id)
    world.run(600.0)
    assert gone.id not in world.members[mesh]
    assert gone.joining.stance == "out"
    assert [w.node for w in world.door(mesh).waiting(world.now)] == [gone.id]


def test_two_meshes_that_people_have_accepted_somebody_into_stay_two() -> None:
    world = World(Random(5), loss=1.0)
    world.start("mac0", 0.0)
    world.start("mac1", 0.0)
    world.run(60.0)
    for node in world.nodes.values():
        node.door.kept = True
        node.look_at_home()
    world.loss = 0.0
    world.run(600.0)
    assert len(world.meshes()) == 2
    for node in world.nodes.values():
        node.door.kept = node.name == "mac1"
        node.look_at_home()
    world.run(700.0)
    kept = next(n for n in world.nodes.values() if n.name == "mac1")
    assert world.meshes() == {kept.home.mesh}, "the other one comes to it, whatever their ids"
