"""Who belongs to a mesh: signed records, and what a set of them says. Pure; docs/adr/0012-trust.md has the reasons.

A membership is an admission (or the founding). Every other record is signed under one: `under` is its id, so the chain
of each record to the founding is fixed when it is signed. A removal closes all memberships of a node below its
generation; what was signed under a closed one counts only if the removal keeps it. So the same set of records says the
same everywhere, whatever way it came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, NewType, TypeAlias

import msgspec
from msgspec import Meta, Struct

from mesh.settings import TrustSettings
from node.types import NodeId

RecordId = NewType("RecordId", bytes)
Verify: TypeAlias = Callable[[bytes, bytes, bytes], bool]  # (certificate, data, signature) -> genuine?
Owner: TypeAlias = Callable[[bytes], str]  # certificate -> the node id it names; "" for one that is not fit

_SIGNED = b"mlx-stack-mesh record 1\0"  # nothing else that a node signs begins so
_LIMITS = TrustSettings()

Name: TypeAlias = Annotated[str, Meta(max_length=256)]
Node: TypeAlias = Annotated[NodeId, Meta(pattern="^[0-9a-f]{16}$")]
MeshId: TypeAlias = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
Print: TypeAlias = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Cert: TypeAlias = Annotated[bytes, Meta(max_length=_LIMITS.cert_bytes_max)]
Id: TypeAlias = Annotated[RecordId, Meta(min_length=32, max_length=32)]
Time: TypeAlias = Annotated[float, Meta(ge=0, le=1e11)]  # Unix seconds
Generation: TypeAlias = Annotated[int, Meta(ge=0, le=_LIMITS.generation_max)]


class Record(Struct, frozen=True):
    """One signed record. The body is kept as it was signed: a later version's fields are passed on with it."""

    body: Annotated[bytes, Meta(max_length=_LIMITS.record_bytes_max)]
    signature: Annotated[bytes, Meta(max_length=128)]

    @property
    def id(self) -> RecordId:
        """Of the body: a second signature on the same words says nothing new."""
        return RecordId(hashlib.sha256(self.body).digest())


class Founded(Struct, frozen=True, kw_only=True, tag="founded"):
    """The root, signed by the key it names. The mesh's id is made of its hash."""

    mesh: Name  # its name
    node: Node
    name: Name
    cert: Cert
    at: Time  # by the signer's clock: for people, and for ties
    n: Annotated[int, Meta(ge=0, le=0)] = 0


class Admitted(Struct, frozen=True, kw_only=True, tag="admitted"):
    """`node` belongs, with this certificate. `n`: its generation, even; above every removal that is known of it."""

    mesh: MeshId
    node: Node
    name: Name
    cert: Cert
    n: Generation
    under: Id
    at: Time


class Removed(Struct, frozen=True, kw_only=True, tag="removed"):
    """`node`, and whoever has its certificate, belongs no more: its memberships below `n` (odd) are closed. `keeps`:
    what it had signed that still counts."""

    mesh: MeshId
    node: Node
    name: Name
    print: Print
    n: Generation
    under: Id
    at: Time
    keeps: Annotated[tuple[Id, ...], Meta(max_length=_LIMITS.keeps_max)] = ()


Fact: TypeAlias = Founded | Admitted | Removed


class Member(Struct, frozen=True):
    """A node that belongs. `by`: who let it in; itself for the founder. `record`: the membership."""

    node: NodeId
    name: str
    cert: bytes
    print: str
    n: int
    by: NodeId
    at: float
    record: RecordId


class Gone(Struct, frozen=True):
    """A node that was removed, and by whom."""

    node: NodeId
    name: str
    print: str
    n: int
    by: NodeId
    at: float


class Roll(Struct, frozen=True, kw_only=True):
    """What a set of records says. `counting`: those that count. `contested`: removals that do not, because their signer
    was removed; they are kept, as another removal may bring them back. `refused`: how many of the set say nothing
    here, by reason."""

    mesh: str = ""
    name: str = ""
    members: Mapping[NodeId, Member] = {}
    removed: Mapping[NodeId, Gone] = {}
    counting: Mapping[RecordId, Fact] = {}
    contested: frozenset[RecordId] = frozenset()
    refused: Mapping[str, int] = {}

    def generation(self, node: NodeId, print_: str) -> int:
        """The highest generation that counts of this node or certificate; -1 when there is none."""
        return max((f.n for f in self.counting.values() if _same(f, node, print_)), default=-1)

    def signed_by(self, node: NodeId, print_: str) -> tuple[RecordId, ...]:
        """What counts now of what this node has signed, but for what is about itself."""
        own = {i for i, f in self.counting.items() if not isinstance(f, Removed) and _same(f, node, print_)}
        return tuple(
            i
            for i, f in self.counting.items()
            if not isinstance(f, Founded) and f.under in own and not _same(f, node, print_)
        )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Fact).decode


def words(fact: Fact) -> bytes:
    """The body of a record that says this."""
    return _encode(fact)


def to_sign(body: bytes) -> bytes:
    """What the signature of a record is made over."""
    return _SIGNED + body


def read(record: Record) -> Fact | None:
    """None for what is no record of ours. Raises nothing."""
    try:
        return _decode(record.body) if len(record.body) <= _LIMITS.record_bytes_max else None
    except (ValueError, RecursionError):
        return None


def mesh_id(founding: RecordId) -> str:
    return founding.hex()[:16]


def mesh_of(records: Iterable[Record]) -> str:
    """The id of the mesh whose founding is among these; "" when there is none. Of several the lowest: it is refused
    later, unless it is the one that was meant."""
    return min((mesh_id(r.id) for r in records if isinstance(read(r), Founded)), default="")


def digest(records: Iterable[Record]) -> str:
    """Equal for equal sets."""
    return hashlib.sha256(b"".join(sorted(r.id for r in records))).hexdigest()[:32]


def fingerprint(cert: bytes) -> str:
    """As node/io/identity.py has it."""
    return hashlib.sha256(cert).hexdigest()


def _same(fact: Fact, node: NodeId, print_: str) -> bool:
    return fact.node == node or print_ == (fact.print if isinstance(fact, Removed) else fingerprint(fact.cert))
