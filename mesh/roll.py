"""From a set of records to who belongs. Pure, and a function of the set alone: docs/adr/0012-trust.md.

Removals may contradict each other: two members remove one another while they cannot talk. What does not depend on
such a contradiction is settled first; in one, the removal whose signer is senior stands: the shorter chain to the
founding, then the earlier admission, then the id. All of that is fixed by the signer's own membership, so nothing that
is signed later can make anybody senior.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TypeAlias

from mesh.records import (
    Admitted,
    Fact,
    Founded,
    Gone,
    Member,
    Owner,
    Record,
    RecordId,
    Removed,
    Roll,
    Verify,
    fingerprint,
    mesh_id,
    read,
    to_sign,
)  # fmt: skip
from mesh.settings import TrustSettings
from node.types import NodeId


def settle(
    records: Iterable[Record], mesh: str, verified: Verify, owner: Owner, settings: TrustSettings | None = None
) -> tuple[dict[RecordId, Record], Roll]:
    """The records worth keeping, and what they say. What is kept depends on nothing else than the set, so nodes that
    hold the same keep the same. The Roll's `refused` says what was not kept."""
    s = settings or TrustSettings()
    held, refused = list(records), dict[str, int]()
    while True:
        chain = _Chain(held, mesh, verified, owner)
        roll = _evaluate(chain, s)
        kept = _bounded(chain, roll, s)
        for why, count in (*roll.refused.items(), ("too_many", len(roll.counting) + len(roll.contested) - len(kept))):
            if count:
                refused[why] = refused.get(why, 0) + count
        if len(kept) == len(chain.order):  # it says the same without what was refused
            return kept, Roll(
                mesh=roll.mesh, name=roll.name, members=roll.members, removed=roll.removed, counting=roll.counting,
                contested=roll.contested, refused=refused,
            )  # fmt: skip
        held = list(kept.values())


Seniority: TypeAlias = tuple[int, float, RecordId]  # of a membership; smaller is senior
_Roots: TypeAlias = list[tuple[RecordId, Record, Founded]]
_Below: TypeAlias = dict[RecordId, list[tuple[RecordId, Record, Admitted | Removed]]]


class _Chain:
    """The genuine records that hang together from the founding of `mesh` on, each after the one it is signed under."""

    def __init__(self, held: Iterable[Record], mesh: str, verified: Verify, owner: Owner) -> None:
        self.facts: dict[RecordId, Fact] = {}
        self.records: dict[RecordId, Record] = {}
        self.order: list[RecordId] = []
        self.rank: dict[RecordId, Seniority] = {}  # of each membership
        self.closers: dict[RecordId, list[RecordId]] = {}  # of each membership: the removals that close it
        self.refused: dict[str, int] = {}
        self._kept: dict[RecordId, frozenset[RecordId]] = {}
        roots, below = self._sorted(held)
        for id_, record, founded in roots:
            if mesh_id(id_) != mesh:
                self._refuse("foreign")
            elif not self._take(id_, record, founded, founded.cert, verified):
                self._refuse("forged")
            else:
                self.rank[id_] = (0, founded.at, id_)
        for signer in self.order:  # it grows: those signed under it come behind it
            membership = self.facts[signer]
            if not isinstance(membership, Removed):
                for id_, record, fact in below.pop(signer, ()):
                    if why := self._unfit(fact, membership, mesh, owner):
                        self._refuse(why)
                    elif not self._take(id_, record, fact, membership.cert, verified):
                        self._refuse("forged")
                    elif isinstance(fact, Admitted):
                        self.rank[id_] = (self.rank[signer][0] + 1, fact.at, id_)
        self._refuse("foreign", sum(map(len, below.values())))
        self._close()

    def _sorted(self, held: Iterable[Record]) -> tuple[_Roots, _Below]:
        """The foundings, and the others by what they are signed under."""
        roots: _Roots = []
        below: _Below = {}
        for record in held:
            fact = read(record)
            if fact is None:
                self._refuse("garbled")
            elif isinstance(fact, Founded):
                roots.append((record.id, record, fact))
            else:
                below.setdefault(fact.under, []).append((record.id, record, fact))
        return roots, below

    def _take(self, id_: RecordId, record: Record, fact: Fact, cert: bytes, verified: Verify) -> bool:
        if id_ in self.facts:
            return True  # the same words, signed twice
        if not verified(cert, to_sign(record.body), record.signature):
            return False
        self.facts[id_], self.records[id_] = fact, record
        self.order.append(id_)
        return True

    def _unfit(self, fact: Admitted | Removed, signer: Founded | Admitted, mesh: str, owner: Owner) -> str:
        """Why it says nothing, whoever signed it; "" when it may."""
        if fact.mesh != mesh:
            return "foreign"
        if isinstance(fact, Admitted):
            return "" if fact.n % 2 == 0 and owner(fact.cert) == fact.node else "garbled"
        own = fact.node == signer.node or fact.print == fingerprint(signer.cert)
        return "garbled" if own or fact.n % 2 == 0 else ""

    def _refuse(self, why: str, count: int = 1) -> None:
        if count:
            self.refused[why] = self.refused.get(why, 0) + count

    def _close(self) -> None:
        by_node: dict[str, list[RecordId]] = {}  # by node id and by fingerprint
        for id_ in self.rank:
            membership = self.facts[id_]
            assert not isinstance(membership, Removed)
            by_node.setdefault(membership.node, []).append(id_)
            by_node.setdefault(fingerprint(membership.cert), []).append(id_)
        for id_, fact in self.facts.items():
            if isinstance(fact, Removed):
                self._kept[id_] = frozenset(fact.keeps)
                meant = {*by_node.get(fact.node, ()), *by_node.get(fact.print, ())}
                for membership_id in meant:
                    if self.facts[membership_id].n < fact.n:
                        self.closers.setdefault(membership_id, []).append(id_)

    def under(self, id_: RecordId) -> RecordId | None:
        fact = self.facts[id_]
        return None if isinstance(fact, Founded) else fact.under

    def keeps(self, removal: RecordId, id_: RecordId) -> bool:
        return id_ in self._kept[removal]

    def path(self, id_: RecordId) -> Iterator[tuple[RecordId, RecordId]]:
        """(membership, what was signed under it), from this record up to the founding."""
        while (signer := self.under(id_)) is not None:
            yield signer, id_
            id_ = signer

    def seniority(self, removal: RecordId) -> tuple[Seniority, RecordId]:
        signer = self.under(removal)
        assert signer is not None
        return self.rank[signer], removal


class _Verdict:
    """Which removals stand: `standing`, `fallen`, and the others still `open`."""

    def __init__(self, chain: _Chain) -> None:
        self._chain = chain
        self._removals = frozenset(i for i, f in chain.facts.items() if isinstance(f, Removed))
        self.open = set(self._removals)
        self.standing: set[RecordId] = set()
        self._settle()
        while self.open:
            self._choose()
            self._settle()

    def counting(self) -> set[RecordId]:
        """Every record that counts: what nothing undoes, but for removals that fell in a contradiction."""
        return {i for i in self._count(certainly=True) if i in self.standing or i not in self._removals}

    def _settle(self) -> None:
        """What is certain whatever becomes of the open ones, until nothing more is."""
        while self.open:
            stand, may = self._count(certainly=True) & self.open, self._count(certainly=False)
            fall = self.open - may
            if not stand and not fall:
                return
            self.standing |= stand
            self.open -= stand | fall

    def _count(self, *, certainly: bool) -> set[RecordId]:
        counted: set[RecordId] = set()
        for id_ in self._chain.order:
            signer = self._chain.under(id_)
            if signer is None or (signer in counted and self._holds(signer, id_, certainly=certainly)):
                counted.add(id_)
        return counted

    def _holds(self, signer: RecordId, id_: RecordId, *, certainly: bool) -> bool:
        """Whether what was signed under `signer` is not undone by a removal of that one."""
        closers = [c for c in self._chain.closers.get(signer, ()) if c in self.standing or c in self.open]
        if not closers:
            return True
        keepers = [c for c in closers if self._chain.keeps(c, id_)]
        if certainly:
            return len(keepers) == len(closers) or any(c in self.standing for c in keepers)
        return bool(keepers) or not any(c in self.standing for c in closers)

    def _choose(self) -> None:
        """The senior one of a contradiction that depends on no other stands; the open ones against it fall."""
        chosen = min(self._contradiction(), key=self._chain.seniority)
        fallen = self._against[chosen] & self.open
        self.standing.add(chosen)
        self.open -= {chosen, *fallen}

    def _contradiction(self) -> set[RecordId]:
        """Open removals that all depend on each other, and on no others: those that the most senior one depends on,
        then those that one of these depends on and that does not depend on it, and so on. Where there are several such
        sets it does not matter which comes first: they do not touch each other."""
        start, within = min(self.open, key=self._chain.seniority), self.open
        while True:
            within = _reach(start, {i: self._against[i] & within for i in within})
            back: dict[RecordId, set[RecordId]] = {i: set() for i in within}
            for id_ in within:
                for on in self._against[id_] & within:
                    back[on].add(id_)
            apart = within - _reach(start, back)
            if not apart:
                return within
            start = min(apart, key=self._chain.seniority)

    @cached_property
    def _against(self) -> dict[RecordId, set[RecordId]]:
        """Of each removal: the others that would undo it."""
        return {
            id_: {
                closer
                for signer, signed in self._chain.path(id_)
                for closer in self._chain.closers.get(signer, ())
                if closer != id_ and not self._chain.keeps(closer, signed)
            }
            for id_ in self._removals
        }


def _reach(start: RecordId, steps: Mapping[RecordId, set[RecordId]]) -> set[RecordId]:
    """`start`, and all that is reached from it."""
    seen, ahead = {start}, [start]
    while ahead:
        new = steps[ahead.pop()] - seen
        seen |= new
        ahead += new
    return seen


def _evaluate(chain: _Chain, s: TrustSettings) -> Roll:
    verdict = _Verdict(chain)
    counted = verdict.counting()
    counting = {i: chain.facts[i] for i in chain.order if i in counted}
    closed = {m for m in chain.rank for c in chain.closers.get(m, ()) if c in counted}
    uncounted = [i for i in chain.order if i not in counted]
    contested = frozenset(i for i in uncounted if isinstance(chain.facts[i], Removed) and chain.under(i) in counted)
    refused = dict(chain.refused)
    if left := len(uncounted) - len(contested):
        refused["signer_removed"] = left
    founding = next((f for f in counting.values() if isinstance(f, Founded)), None)
    members = _members(chain, [m for m in chain.rank if m in counted and m not in closed], s)
    return Roll(
        mesh=mesh_id(chain.order[0]) if chain.order else "", name=founding.mesh if founding else "", members=members,
        removed=_gone(chain, counting, members), counting=counting, contested=contested, refused=refused,
    )  # fmt: skip


def _members(chain: _Chain, open_: list[RecordId], s: TrustSettings) -> dict[NodeId, Member]:
    """One for each node id and each certificate: the latest generation, then the senior one. The senior ones, when
    there are too many."""
    members: dict[NodeId, Member] = {}
    prints: set[str] = set()
    latest = sorted(open_, key=lambda m: (-chain.facts[m].n, chain.rank[m]))
    single: list[RecordId] = []
    for id_ in latest:
        fact = chain.facts[id_]
        assert not isinstance(fact, Removed)
        print_ = fingerprint(fact.cert)
        if fact.node in members or print_ in prints:
            continue
        signer = chain.under(id_)
        by = chain.facts[signer].node if signer is not None else fact.node
        members[fact.node] = Member(fact.node, fact.name, fact.cert, print_, fact.n, by, fact.at, id_)
        prints.add(print_)
        single.append(id_)
    single.sort(key=lambda m: chain.rank[m])
    return {chain.facts[m].node: members[chain.facts[m].node] for m in single[: s.members_max]}


def _gone(chain: _Chain, counting: Mapping[RecordId, Fact], members: Mapping[NodeId, Member]) -> dict[NodeId, Gone]:
    """By the latest removal of each that is no member now."""
    gone: dict[NodeId, Gone] = {}
    for _, fact in sorted(counting.items(), key=lambda f: (-f[1].n, f[0])):
        if isinstance(fact, Removed) and fact.node not in members and fact.node not in gone:
            by = chain.facts[fact.under].node
            gone[fact.node] = Gone(fact.node, fact.name, fact.print, fact.n, by, fact.at)
    return gone


def _bounded(chain: _Chain, roll: Roll, s: TrustSettings) -> dict[RecordId, Record]:
    """What counts, and a few contested removals of each signer; removals first, then the senior, within the bounds."""
    contested: dict[RecordId, list[RecordId]] = {}
    for id_ in sorted(roll.contested):
        signer = chain.under(id_)
        assert signer is not None
        contested.setdefault(signer, []).append(id_)
    wanted = {*roll.counting, *(i for ids in contested.values() for i in ids[: s.contested_max])}

    def importance(id_: RecordId) -> tuple[bool, bool, Seniority, RecordId]:
        fact, signer = chain.facts[id_], chain.under(id_)
        rank = chain.rank[signer] if signer is not None else chain.rank[id_]
        return signer is not None, not isinstance(fact, Removed), rank, id_

    room_bytes, kept = s.roster_bytes_max, dict[RecordId, Record]()
    for id_ in sorted(wanted, key=importance)[: s.records_max]:
        record = chain.records[id_]
        room_bytes -= len(record.body) + len(record.signature)
        if room_bytes < 0:
            break
        kept[id_] = record
    return kept
