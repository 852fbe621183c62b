"""Who belongs to this node's mesh, kept in mesh/members.json. roll.py says what the records mean; this holds them,
signs new ones with this node's key, and tells who must know when somebody came or went.

Everything here is synchronous and touches no network. docs/adr/0012-trust.md has the reasons.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from mesh import records as words
from mesh.errors import MeshError
from mesh.files import read_or_set_aside, write_atomic
from mesh.records import Admitted, Founded, Gone, Member, Record, RecordId, Removed, Roll
from mesh.roll import settle
from mesh.settings import TrustSettings
from node.io import identity as keys
from node.io.identity import Identity
from node.types import NodeId


class Change(Struct, frozen=True):
    """`came`: members now that were none, or had another certificate; `gone`: the other way round. `mesh`: it is
    another mesh than before, or none any more."""

    came: frozenset[NodeId] = frozenset()
    gone: frozenset[NodeId] = frozenset()
    mesh: bool = False


class MembersFile(Struct, frozen=True):
    """mesh/members.json."""

    version: int = 1
    mesh: str = ""
    records: tuple[Record, ...] = ()


class Trust:
    """`folder` is the home's mesh/. `tell` gets a sentence when members.json is damaged (then it is moved aside, and
    this node belongs to no mesh). `write` replaces a file; LateWriter's neither waits nor raises."""

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        tell: Callable[[str], None],
        write: Callable[[Path, bytes], None] = write_atomic,
        *,
        clock: Callable[[], float] = time.time,
        settings: TrustSettings | None = None,
    ) -> None:
        self.identity, self._note = identity, tell
        self._path, self._write, self._clock = folder / "members.json", write, clock
        self._settings = settings or TrustSettings()
        self._records: dict[RecordId, Record] = {}
        self._roll = Roll()
        self._by_print: dict[str, NodeId] = {}
        self._pair_keys: dict[NodeId, bytes] = {}
        self._verified: OrderedDict[bytes, bool] = OrderedDict()
        self._owners: OrderedDict[bytes, str] = OrderedDict()
        self._watchers: list[Callable[[Change], None]] = []
        self.digest = words.digest(())  # of records(): equal where the same is held
        self.refused: dict[str, int] = {}  # records that were not taken, by reason, since the start
        file = read_or_set_aside(self._path, msgspec.json.Decoder(MembersFile).decode, tell)
        if file is not None and file.mesh:
            kept, roll = self._settled(file.records, file.mesh)
            if roll.members:
                self._take(kept, roll)
            else:
                tell(f"{self._path} holds no records of mesh {file.mesh} that can be verified; going on without it")

    # What is so

    @property
    def mesh_id(self) -> str:
        """ "" when this node has no mesh."""
        return self._roll.mesh

    @property
    def mesh_name(self) -> str:
        """As it was called at its founding."""
        return self._roll.name

    @property
    def members(self) -> Mapping[NodeId, Member]:
        return self._roll.members

    @property
    def removed(self) -> Mapping[NodeId, Gone]:
        """Nodes that were members and were put out."""
        return self._roll.removed

    @property
    def belongs(self) -> bool:
        """This node, with its present key, is a member. One that was removed has a mesh, but does not belong."""
        return self._by_print.get(self.identity.fingerprint) == self.identity.id

    def member_of(self, cert: bytes) -> NodeId | None:
        """Whose certificate (DER) this is, now."""
        return self._by_print.get(keys.fingerprint(cert))

    def was_removed(self, node: NodeId, cert: bytes) -> bool:
        """This id or this certificate was put out and not let in again: no window and no invite may do that."""
        print_ = keys.fingerprint(cert)
        if node in self.members and self.members[node].print == print_:
            return False
        return any(g.node == node or g.print == print_ for g in self.removed.values())

    def records(self) -> tuple[Record, ...]:
        """All that is held, for another node to merge or adopt."""
        return tuple(self._records.values())

    def own_records(self) -> tuple[Record, ...]:
        """The one that lets this node in: for a member that has not heard of it."""
        me = self.members.get(self.identity.id)
        return (self._records[me.record],) if me is not None and self.belongs else ()

    def pair_key(self, node: NodeId) -> bytes:
        """32 bytes that only this node and that member know. Raises KeyError when it is no member."""
        member = self.members[node]
        if node not in self._pair_keys:
            self._pair_keys[node] = self.identity.pair_key(member.cert, self.mesh_id.encode())
        return self._pair_keys[node]

    def watch(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Called after every change of what is held, at once. Call what this returns to hear no more."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback) if callback in self._watchers else None

    # What this node does

    def found(self, mesh_name: str, node_name: str) -> None:
        """A new mesh with this node as its only member. The one before, if any, is forgotten here."""
        me = self.identity
        founded = Founded(mesh=mesh_name, node=me.id, name=node_name, cert=me.cert, at=self._clock())
        record = self._sign(founded)
        self._take(*self._settled([record], words.mesh_id(record.id)))
        self._save()

    def adopt(self, records: Iterable[Record], mesh: str = "") -> None:
        """Joins the mesh of these records (the one named, if they hold several foundings) in place of the one before.
        Raises MeshError(not_admitted) when they do not say that this node belongs to it; then nothing has changed."""
        records = tuple(records)
        mesh = mesh or words.mesh_of(records)
        if mesh == self.mesh_id:  # what is known here of who was removed is known on
            records += self.records()
        kept, roll = self._settled(records, mesh)
        me = roll.members.get(self.identity.id)
        if me is None or me.cert != self.identity.cert:
            raise MeshError(
                "not_admitted", f"the records of mesh {mesh or '(none)'} do not admit this node", status=409
            )
        self._take(kept, roll)
        self._save()

    def admit(self, node: NodeId, name: str, cert: bytes, *, again: bool = False) -> Record:
        """Signs that `node` belongs, with this certificate (a member's record again, if it is one already). A removed
        one is let in only `again`, which a person asks for. Raises MeshError: not_member, mesh_full, removed,
        bad_certificate, id_taken (another key has this id, or this key another id)."""
        under = self._own_membership()
        if keys.owner(cert) != node:
            raise MeshError("bad_certificate", f"the certificate of {name} is not one of node {node}")
        print_ = keys.fingerprint(cert)
        holder = self._by_print.get(print_)
        taken = self.members.get(node) or (self.members[holder] if holder is not None else None)
        if taken is not None and taken.node == node and taken.print == print_:
            return self._records[taken.record]
        if taken is not None:
            raise MeshError("id_taken", f"node {taken.node} ({taken.name}) is a member with that id or that key",
                            hint=f"`mlx-stack mesh remove {taken.name}`, if that one is gone", status=409)  # fmt: skip
        if self.was_removed(node, cert) and not again:
            raise MeshError(
                "removed", f"{name} was removed from this mesh", hint=f"`mlx-stack mesh accept {name}` lets it back"
            )
        if len(self.members) >= self._settings.members_max:
            raise MeshError("mesh_full", f"this mesh has {len(self.members)} members, which is as many as it may have",
                            hint="`mlx-stack mesh remove NAME` makes room", status=409)  # fmt: skip
        n = self._next_generation(node, print_, 0)
        at = self._clock()
        return self._add(Admitted(mesh=self.mesh_id, node=node, name=name, cert=cert, n=n, under=under, at=at))

    def remove(self, node: NodeId) -> Record:
        """Signs that `node` belongs no more; what it signed before counts on. Raises MeshError: not_member,
        unknown_node, self, too_many (the records are at their bound)."""
        under, member = self._own_membership(), self.members.get(node)
        if node == self.identity.id:
            raise MeshError("self", "this is the node itself", hint="`mlx-stack mesh disable` leaves the mesh")
        if member is None:
            raise MeshError("unknown_node", f"{node} is no member of this mesh", status=404)
        n = self._next_generation(node, member.print, 1)
        keeps = self._roll.signed_by(node, member.print)[: self._settings.keeps_max]
        return self._add(
            Removed(mesh=self.mesh_id, node=node, name=member.name, print=member.print, n=n, under=under,
                    at=self._clock(), keeps=keeps)
        )  # fmt: skip

    def merge(self, records: Iterable[Record]) -> bool:
        """Takes what another node holds of the same mesh. True: something here is new, or counts otherwise; it should
        be told on. What does not count is not taken, and counted in `refused`."""
        new = [r for r in records if r.id not in self._records]
        if not new or not self.mesh_id:
            return False
        kept, roll = self._settled((*self._records.values(), *new), self.mesh_id)
        for why, count in roll.refused.items():
            self.refused[why] = self.refused.get(why, 0) + count
        if kept.keys() == self._records.keys():
            return False
        self._take(kept, roll)
        self._save()
        return True

    def forget(self) -> None:
        """This node has no mesh any more; it says so to nobody."""
        self._take({}, Roll())
        self._save()

    def renew(self, identity: Identity, name: str) -> None:
        """Goes on with another id and key (a copied disk): the old ones admit the new. A node that belongs to no mesh
        just takes them, and so does one whose mesh is full: a person lets it in."""
        if self.belongs:
            try:
                self.admit(identity.id, name, identity.cert)
            except MeshError as error:
                self._note(f"the new id {identity.id} is not let in by the old one: {error}")
        self.identity, self._pair_keys = identity, {}
        self._tell(Change())

    # Inside

    def _own_membership(self) -> RecordId:
        """Raises MeshError(not_member)."""
        if not self.belongs:
            raise MeshError("not_member", "this node is no member of a mesh", status=409)
        return self.members[self.identity.id].record

    def _next_generation(self, node: NodeId, print_: str, odd: int) -> int:
        """Raises MeshError(generations)."""
        n = self._roll.generation(node, print_) + 1
        n += (n + odd) % 2
        if n > self._settings.generation_max:
            raise MeshError("generations", f"{node} was removed and let in too often", hint="it needs a new id: delete "
                            "node/id and node/key.pem in its home folder and restart it", status=409)  # fmt: skip
        return n

    def _sign(self, fact: words.Fact) -> Record:
        body = words.words(fact)
        return Record(body, self.identity.sign(words.to_sign(body)))

    def _add(self, fact: words.Fact) -> Record:
        record = self._sign(fact)
        kept, roll = self._settled((*self._records.values(), record), self.mesh_id)
        if record.id not in kept or "too_many" in roll.refused:
            raise MeshError("too_many", f"the records of this mesh are at their bound ({len(self._records)})",
                            hint="begin a new mesh: another `mesh-name` on every node", status=409)  # fmt: skip
        self._take(kept, roll)
        self._save()
        return record

    def _settled(self, records: Iterable[Record], mesh: str) -> tuple[dict[RecordId, Record], Roll]:
        return settle(records, mesh, self._verify, self._owner, self._settings)

    def _owner(self, cert: bytes) -> str:
        """As keys.owner, which takes 70 us."""
        known = self._owners.get(cert)
        if known is None:
            known = self._owners[cert] = keys.owner(cert)
            if len(self._owners) > self._settings.records_max:
                self._owners.popitem(last=False)
        return known

    def _verify(self, cert: bytes, data: bytes, signature: bytes) -> bool:
        """As keys.verify, which takes 60 us; each answer is remembered."""
        asked = hashlib.sha256(keys.fingerprint(cert).encode() + hashlib.sha256(data).digest() + signature).digest()
        known = self._verified.get(asked)
        if known is None:
            known = self._verified[asked] = keys.verify(cert, data, signature)
            if len(self._verified) > self._settings.verified_max:
                self._verified.popitem(last=False)
        return known

    def _take(self, kept: dict[RecordId, Record], roll: Roll) -> None:
        before, self._roll, self._records = self._roll, roll, kept
        self.digest = words.digest(kept.values())
        self._by_print = {m.print: m.node for m in roll.members.values()}
        was = {(m.node, m.print) for m in before.members.values()} if before.mesh == roll.mesh else set()
        now = {(m.node, m.print) for m in roll.members.values()}
        old = {(m.node, m.print) for m in before.members.values()}
        change = Change(
            came=frozenset(n for n, _ in now - was),
            gone=frozenset(n for n, _ in old - now),
            mesh=before.mesh != roll.mesh,
        )
        for node in list(self._pair_keys):
            if change.mesh or node in change.gone or node not in roll.members:
                del self._pair_keys[node]
        self._tell(change)

    def _tell(self, change: Change) -> None:
        for watcher in tuple(self._watchers):
            watcher(change)

    def _save(self) -> None:
        file = MembersFile(mesh=self.mesh_id, records=self.records())
        self._write(self._path, msgspec.json.format(msgspec.json.encode(file)))
