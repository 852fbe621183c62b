"""Who belongs is a function of the set of records: whatever their order, whoever tells whom, whatever a removed node
signs."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import MeshError
from mesh.records import Record, RecordId, read
from mesh.trust import Trust
from tests.mesh.trusting import (
    admission,
    exchange,
    founder,
    identity,
    ids,
    join,
    membership,
    mesh_of,
    removal,
    settled,
    trust,
)

randoms = st.randoms(use_true_random=False)
NODES = 6


def lived(random: Random, steps: int, *, together: bool) -> list[Trust]:
    """A mesh with a past: joins, removals, re-admissions and talks, in any order. `together`: all hear of everything at
    once, so nobody contradicts anybody."""
    nodes = [founder(), *(trust(n) for n in range(1, NODES))]
    for _ in range(steps):
        member, other = random.choice(nodes), random.choice(nodes)
        try:
            match random.choice(["join", "join", "remove", "talk"]):
                case "join" if not other.belongs:
                    join(other, member, again=random.random() < 0.5)
                case "remove":
                    member.remove(other.identity.id)
                case _ if other.mesh_id:
                    member.merge(other.records())
        except MeshError:
            pass  # it is no member, or the other one is none, or was removed: as a person would be told
        if together:
            exchange([n for n in nodes if n.mesh_id])
    return [n for n in nodes if n.mesh_id]


def all_of(nodes: list[Trust]) -> list[Record]:
    return list({r.id: r for node in nodes for r in node.records()}.values())


@given(random=randoms, steps=st.integers(0, 25))
def test_the_order_of_records_never_matters(random: Random, steps: int) -> None:
    nodes = lived(random, steps, together=False)
    held, mesh = all_of(nodes), nodes[0].mesh_id
    kept, roll = settled(held, mesh)
    for _ in range(3):
        random.shuffle(held)
        kept_too, again = settled(held, mesh)
        assert kept_too == kept
        assert (again.members, again.removed, again.contested) == (roll.members, roll.removed, roll.contested)
        assert again.counting.keys() == roll.counting.keys()


@given(random=randoms, steps=st.integers(0, 25))
def test_records_that_were_refused_change_nothing_when_they_come_again(random: Random, steps: int) -> None:
    nodes = lived(random, steps, together=False)
    held, mesh = all_of(nodes), nodes[0].mesh_id
    kept, roll = settled(held, mesh)
    without, again = settled([r for r in held if r.id in kept], mesh)
    assert (without, again.members, again.removed) == (kept, roll.members, roll.removed)


@given(random=randoms, steps=st.integers(0, 25))
def test_all_agree_once_they_have_told_each_other(random: Random, steps: int) -> None:
    nodes = lived(random, steps, together=False)
    exchange(nodes)
    assert len({node.digest for node in nodes}) == 1
    assert all((n.members, n.removed) == (nodes[0].members, nodes[0].removed) for n in nodes)


@given(random=randoms, steps=st.integers(0, 25))
def test_a_removal_takes_out_that_one_and_nobody_else(random: Random, steps: int) -> None:
    """Whoever it is: the founder, or who had let in all others."""
    nodes = lived(random, steps, together=True)
    inside = [n for n in nodes if n.belongs]
    if len(inside) < 2:
        return
    by, out = random.sample(inside, 2)
    before = dict(by.members)
    by.remove(out.identity.id)
    del before[out.identity.id]
    assert by.members == before
    assert out.identity.id in by.removed


@given(random=randoms, steps=st.integers(0, 20), signed=st.integers(1, 8))
def test_what_a_removed_node_signs_counts_for_nothing(random: Random, steps: int, signed: int) -> None:
    """However dated, with helpers or without; but a removal of who removed it, or of who had let that one in, is a
    contradiction, which the senior one wins (below)."""
    nodes = lived(random, steps, together=True)
    inside = [n for n in nodes if n.belongs]
    if len(inside) < 2:
        return
    by, out = random.sample(inside, 2)
    by.remove(out.identity.id)
    exchange(nodes)
    above = line(by)
    held, mesh = all_of(nodes), by.mesh_id
    forged: list[Record] = []
    under = out_membership = membership_of(out)
    for number in range(signed):
        at = random.choice([0.0, 1000.0, 1e10])
        if random.random() < 0.5:
            new = identity(NODES + number)
            forged.append(admission(out, new, at=at, under=under, n=random.choice([0, 2])))
            under = random.choice([out_membership, forged[-1].id])
        else:
            victim = random.choice([n for n in nodes if n.identity.id not in above] or [out])
            forged.append(removal(out, victim.identity, n=random.choice([1, 3, 99]), at=at))
    before, after = settled(held, mesh)[1], settled([*forged, *held], mesh)[1]
    assert after.members == before.members
    assert after.removed == before.removed
    assert not by.merge([r for r in forged if r.id not in settled([*forged, *held], mesh)[0]])


def line(node: Trust) -> set[str]:
    """Who let it in, who let that one in, up to the founder: those whose fall would be its own."""
    found, record = {node.identity.id}, membership_of(node)
    facts = {r.id: read(r) for r in node.records()}
    while (fact := facts[record]) is not None and hasattr(fact, "under"):
        found.add(fact.node)
        record = fact.under
        signer = facts[record]
        assert signer is not None
        found.add(signer.node)
    return found


def membership_of(node: Trust) -> RecordId:
    """Its latest, whether it counts or not."""
    held = [
        (fact.n, r.id)
        for r in node.records()
        if (fact := read(r)) and fact.node == node.identity.id and fact.n % 2 == 0
    ]
    return max(held)[1]


@given(random=randoms, count=st.integers(2, 6))
def test_of_two_that_remove_each_other_the_senior_one_stands_everywhere(random: Random, count: int) -> None:
    nodes = mesh_of(count)
    one, other = random.sample(nodes, 2)
    one.remove(other.identity.id)
    other.remove(one.identity.id)
    told = random.sample(nodes, len(nodes))
    for node in told:  # in any order, and by halves
        node.merge(random.choice([one, other]).records())
    exchange(told)
    junior = max(one, other, key=nodes.index)  # each was let in by the one before it
    for node in nodes:
        assert node.belongs == (node is not junior)
        assert set(node.members) == {n.identity.id for n in nodes if n is not junior}
        assert set(node.removed) == {junior.identity.id}


@settings(max_examples=30)
@given(random=randoms, count=st.integers(3, 6))
def test_a_ring_of_removals_ends_equally_everywhere_and_its_senior_stands(random: Random, count: int) -> None:
    nodes = mesh_of(count)
    ring = random.sample(nodes, random.randint(3, count))
    for out, by in zip(ring, ring[1:] + ring[:1], strict=True):
        by.remove(out.identity.id)
    told = random.sample(nodes, len(nodes))
    for node in told:
        node.merge(random.choice(ring).records())
    exchange(told)
    assert len({node.digest for node in nodes}) == 1
    assert min(ring, key=nodes.index).belongs


@given(random=randoms, steps=st.integers(0, 20))
def test_one_that_is_let_in_again_belongs_and_what_it_signed_outside_still_counts_for_nothing(
    random: Random, steps: int
) -> None:
    nodes = lived(random, steps, together=True)
    inside = [n for n in nodes if n.belongs]
    if len(inside) < 2:
        return
    by, out = random.sample(inside, 2)
    by.remove(out.identity.id)
    new = identity(NODES)
    outside = admission(out, new, under=membership_of(out))
    by.admit(out.identity.id, "back", out.identity.cert, again=True)
    out.adopt(by.records())
    assert out.belongs
    assert out.identity.id not in by.removed
    by.merge([outside])
    assert new.id not in by.members
    join(trust(new), out)
    assert by.merge(out.records())
    assert new.id in by.members


@given(random=randoms, cut=st.floats(0, 1))
def test_any_part_of_the_records_lets_in_nobody_who_is_not_let_in_by_all(random: Random, cut: float) -> None:
    """A teller that leaves some out can hide what it knows, no more: without removals in it, a part admits fewer."""
    nodes = mesh_of(5)
    held = [r for r in all_of(nodes) if random.random() < cut]
    _, roll = settled(held, nodes[0].mesh_id)
    assert roll.members.items() <= nodes[0].members.items()
    assert ids(held) >= set(roll.counting)
    assert all(membership(held, node) for node in roll.members)
