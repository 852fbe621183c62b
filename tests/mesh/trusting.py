"""Nodes with real keys that know who belongs, and what a hostile one would sign. Nothing here touches a disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from mesh import records as words
from mesh.records import Admitted, Fact, Record, RecordId, Removed, Roll
from mesh.roll import settle
from mesh.settings import TrustSettings
from mesh.trust import Trust
from node.io import identity as keys
from node.io.identity import Identity, fresh
from node.types import NodeId

NOWHERE = Path("/nowhere")
_POOL: list[Identity] = []


def identity(number: int) -> Identity:
    """The same one for a number, as long as the tests run: keys cost time."""
    while len(_POOL) <= number:
        _POOL.append(fresh(NOWHERE))
    return _POOL[number]


def trust(who: Identity | int, *, at: float = 1000.0, settings: TrustSettings | None = None) -> Trust:
    """A node that belongs to no mesh yet. `at`: its clock stands."""
    key = identity(who) if isinstance(who, int) else who
    return Trust(NOWHERE, key, pytest.fail, lambda _path, _data: None, clock=lambda: at, settings=settings)


def founder(number: int = 0) -> Trust:
    made = trust(number)
    made.found("default", f"n{number}")
    return made


def mesh_of(count: int) -> list[Trust]:
    """That many members, each let in by the one before it, all told of all."""
    made = [founder()]
    for number in range(1, count):
        made.append(join(trust(number), made[-1]))
    exchange(made)
    return made


def join(new: Trust, by: Trust, *, again: bool = False) -> Trust:
    by.admit(new.identity.id, f"n-{new.identity.id[:4]}", new.identity.cert, again=again)
    new.adopt(by.records())
    return new


def exchange(all_: Sequence[Trust]) -> None:
    """Each tells each, until nothing is new to anybody."""
    for _ in range(4):
        news = [b.merge(a.records()) for a in all_ for b in all_ if a is not b]
        if not any(news):
            return
    pytest.fail("they never come to an end")


def ids(held: Iterable[Record]) -> set[RecordId]:
    return {r.id for r in held}


def signed(by: Trust | Identity, fact: Fact) -> Record:
    key = by.identity if isinstance(by, Trust) else by
    body = words.words(fact)
    return Record(body, key.sign(words.to_sign(body)))


def membership(held: Iterable[Record], node: NodeId) -> RecordId:
    """One of its memberships, whether it counts or not."""
    for record in held:
        fact = words.read(record)
        if fact is not None and not isinstance(fact, Removed) and fact.node == node:
            return record.id
    raise AssertionError(f"{node} never was a member")


def admission(by: Trust, new: Identity, *, n: int = 0, at: float = 1000.0, under: RecordId | None = None) -> Record:
    """Signed whether `by` may or not."""
    under = under or membership(by.records(), by.identity.id)
    return signed(
        by,
        Admitted(mesh=by.mesh_id, node=new.id, name="new", cert=new.cert, n=n, under=under, at=at),
    )


def removal(by: Trust, of: Identity, *, n: int = 1, at: float = 1000.0, keeps: tuple[RecordId, ...] = ()) -> Record:
    """Signed whether `by` may or not."""
    under = membership(by.records(), by.identity.id)
    return signed(
        by,
        Removed(mesh=by.mesh_id, node=of.id, name="old", print=of.fingerprint, n=n, under=under, at=at, keeps=keeps),
    )


def settled(held: Iterable[Record], mesh: str) -> tuple[set[RecordId], Roll]:
    kept, roll = settle(held, mesh, keys.verify, keys.owner)
    return set(kept), roll
