"""The one list of all that crosses a socket between nodes: link frames, datagrams, and what tells who a node is.

A link frame is msgpack of {"v": major protocol, "frame": {"type": ..., ...}}. Unknown fields are ignored and unknown
types raise `WireError(unknown_kind)`, which a link counts and drops, so two versions can share a mesh. A datagram is
msgpack of one election Message under a seal (mesh/seal.py).
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta, Raw, Struct

from election.messages import Kind as MessageKind
from election.messages import Message
from mesh.doors import Doors
from mesh.errors import MeshError
from mesh.joining import Stance
from mesh.keys import KEYS_MAX, ClientKey
from mesh.records import Record
from mesh.settings import DRAIN_MAX_S, DRILL_AWAY_MAX_S
from node.types import NodeId, NodeReport, Port
from router.account import Account
from router.events import Decision, Why
from router.frames import CoordinatorFrame, EdgeFrame

PROTOCOL = 2  # the major version: nodes of another one are shown as incompatible
FRAME_BYTES_MAX = 4 << 20
DATAGRAM_BYTES_MAX = 1200  # fits one packet everywhere (IPv6 minimum MTU 1280)
DATAGRAM_MARK = b"MXM"  # the first bytes of each; the protocol follows
SEAL_BYTES = 60  # of a datagram are its seal; the rest is its message
MESSAGE_BYTES_MAX = DATAGRAM_BYTES_MAX - SEAL_BYTES

Via: TypeAlias = Literal["mdns", "static", "tailscale", "gossip"]


# Bounds of what others say, checked when decoding: a port no socket takes, a time no timer takes.
DrainSeconds: TypeAlias = Annotated[float, Meta(gt=0, le=DRAIN_MAX_S)]
DrillSeconds: TypeAlias = Annotated[float, Meta(gt=0, le=DRILL_AWAY_MAX_S)]
Text: TypeAlias = Annotated[str, Meta(max_length=256)]  # names, versions, nonces: what is passed on must stay small
Id: TypeAlias = Annotated[NodeId, Meta(max_length=64)]
Addresses: TypeAlias = Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=64)]


class WireError(MeshError):
    """What came (or should go) over a socket cannot be used."""

    def __init__(
        self, code: Literal["too_large", "garbled", "unknown_kind", "other_version", "forged"], message: str
    ) -> None:
        super().__init__(code, message)


class PeerSeen(Struct, frozen=True, kw_only=True):
    """Where a node may be found, from mDNS, an address the user gave, another node, or the cache on disk.

    `addresses` without port, best first. `boot` "" and `protocol` as ours when the source cannot know them. `far`: at
    another site, as the teller sees it. `added`: by `mesh add`, or beside such a node: its side ranks last while far.
    `mesh_id`, `stance` and `hint` (how its certificate's fingerprint begins) are its mesh's, where they are known.
    """

    id: Id
    name: Text
    mesh: Text = "default"
    addresses: Addresses = ()
    port: Port = 4000
    peer_port: Port = 4001
    boot: Text = ""
    priority: int = 100
    version: Text = ""
    protocol: int = PROTOCOL
    via: Via = "mdns"
    far: bool = False
    added: bool = False
    mesh_id: Text = ""
    stance: Stance | Literal[""] = ""
    hint: Text = ""

    @classmethod
    def by_hello(cls, hello: Hello, *addresses: str, far: bool = False) -> PeerSeen:
        """Who said hello, at these addresses."""
        return cls(
            id=hello.id, name=hello.name, mesh=hello.mesh, addresses=addresses, port=hello.port,
            peer_port=hello.peer_port, boot=hello.boot, version=hello.version, protocol=hello.protocol,
            via="gossip", far=far,
        )  # fmt: skip


class WellKnown(Struct, frozen=True, kw_only=True):
    """`GET /.well-known/mlx-stack` on the edge port: who this is; nothing private."""

    id: Id
    name: Text
    mesh_id: Text
    version: Text
    protocol: int
    peer_port: Port
    mesh: Text = "default"


class Hello(Struct, frozen=True, kw_only=True, tag="hello"):
    """The first frame on a link, from both sides, the dialler first."""

    id: Id
    boot: Text
    name: Text
    mesh: Text
    mesh_id: Text
    version: Text
    protocol: int
    peer_port: Port
    port: Port
    uptime_s: float = 0.0  # of this process: of two with one id the younger takes a new one


class State(Struct, frozen=True, tag="state"):
    """What a node says about itself: whole, on every change, and again as mesh/pace.py says."""

    report: NodeReport


class AccountFrame(Struct, frozen=True, tag="account"):
    """The coordinator's count of every open request."""

    account: Account


class Gossip(Struct, frozen=True, tag="gossip"):
    """Peers the sender has reached. `roster`: the digest of its records of who belongs, as in mesh/records.py."""

    peers: tuple[PeerSeen, ...]
    roster: Text = ""


class Roster(Struct, frozen=True, tag="roster"):
    """Every record of who belongs that the sender holds: on link up, on a change, and where a digest differs."""

    records: tuple[Record, ...]


class KeysFrame(Struct, frozen=True, tag="keys"):
    """All keys of clients that the sender knows of, hashed, revoked ones too: when a link is up, and on each change."""

    keys: Annotated[tuple[ClientKey, ...], Meta(max_length=KEYS_MAX)] = ()


class Drain(Struct, frozen=True, tag="drain"):
    """`mesh drain` of another node: it starts (`on`), for `for_s` seconds or until told otherwise, or ends draining.
    `now`: what it runs is broken off, so that it goes on elsewhere."""

    on: bool
    for_s: DrainSeconds | None = None
    now: bool = False


class Drill(Struct, frozen=True, tag="drill", kw_only=True):
    """`mesh drill` asks a node, as question number `n`: "hold" that drill `drill` runs, so that no other one does;
    "worker": kill the server of `model`; "node": fall out of the mesh for `for_s` seconds; "release": it is over.
    Other words are of a later version, and refused."""

    n: int
    drill: Text
    ask: Text
    model: Text = ""
    for_s: DrillSeconds = 10.0


class Drilled(Struct, frozen=True, tag="drilled", kw_only=True):
    """The answer to question `n`: `why` not, or "" when it is so. `in_s`: seconds until it happens."""

    n: int
    why: Annotated[str, Meta(max_length=1000)] = ""
    in_s: float = 0.0


class Bye(Struct, frozen=True, tag="bye", omit_defaults=True):
    """The last frame on a link. `duplicate`: this pair has another link. Else a sentence for people. Without `leaves`
    only the link ends, and its sender goes on."""

    reason: Annotated[str, Meta(max_length=1000)]
    leaves: bool = True


class Ping(Struct, frozen=True, tag="ping"):
    n: int


class Pong(Struct, frozen=True, tag="pong"):
    n: int


LinkFrame: TypeAlias = (
    Hello | State | AccountFrame | Gossip | Roster | Doors | KeysFrame | Drain | Drill | Drilled | Bye | Ping | Pong
)  # fmt: skip
Frame: TypeAlias = LinkFrame | EdgeFrame | CoordinatorFrame

KINDS = frozenset(str(kind.__struct_config__.tag) for kind in get_args(Frame))
MESSAGE_KINDS = frozenset(get_args(MessageKind))


class Envelope(Struct, frozen=True):
    v: int
    frame: Frame


class _Unopened(Struct, frozen=True):
    v: int
    frame: Raw


class _Kind(Struct, frozen=True):
    type: str


class _MessageKind(Struct, frozen=True):
    kind: str


def _of_why(value: object) -> Decision:
    if not isinstance(value, Why):
        raise NotImplementedError(f"{type(value)} crosses no link")
    return value.decision


def _as_why(kind: type, value: object) -> Why:
    if kind is not Why:
        raise NotImplementedError(f"{kind} crosses no link")
    return Why(msgspec.convert(value, Decision))


_encode = msgspec.msgpack.Encoder(enc_hook=_of_why).encode
_decode_envelope = msgspec.msgpack.Decoder(Envelope, dec_hook=_as_why).decode
_decode_unopened = msgspec.msgpack.Decoder(_Unopened).decode
_decode_kind = msgspec.msgpack.Decoder(_Kind).decode
_decode_message = msgspec.msgpack.Decoder(Message).decode
_decode_message_kind = msgspec.msgpack.Decoder(_MessageKind).decode
_MALFORMED = (ValueError, RecursionError)  # msgspec's errors and bad UTF-8 are ValueErrors; deep nesting is not


def encode(frame: Frame) -> bytes:
    """Raises WireError(too_large)."""
    data = _encode(Envelope(PROTOCOL, frame))
    if len(data) > FRAME_BYTES_MAX:
        raise WireError("too_large", f"a {kind_of(frame)} frame of {len(data)} bytes exceeds {FRAME_BYTES_MAX}")
    return data


def decode(data: bytes) -> Frame:
    """Raises WireError and nothing else. Hello and Bye of another major protocol are returned, so that its sender can
    be named; all else of it is refused (other_version)."""
    if len(data) > FRAME_BYTES_MAX:
        raise WireError("too_large", f"a frame of {len(data)} bytes exceeds {FRAME_BYTES_MAX}")
    try:
        envelope = _decode_envelope(data)
    except _MALFORMED as error:
        raise _diagnosed(data, error) from error
    if envelope.v != PROTOCOL and not isinstance(envelope.frame, Hello | Bye):
        raise _other_version(envelope.v)
    return envelope.frame


def _diagnosed(data: bytes, error: Exception) -> WireError:
    """Why `data` is no frame of ours: another version, an unknown kind, or garbage."""
    try:
        unopened = _decode_unopened(data)
        if unopened.v != PROTOCOL:
            return _other_version(unopened.v)
        kind = _decode_kind(unopened.frame).type
    except _MALFORMED:
        return WireError("garbled", f"not a frame: {error}")
    if kind not in KINDS:
        return WireError("unknown_kind", f"a frame of unknown kind {kind[:40]!r}")
    return WireError("garbled", f"not a {kind} frame: {error}")


def _other_version(version: int) -> WireError:
    return WireError("other_version", f"speaks protocol {version}, this node speaks {PROTOCOL}")


def kind_of(frame: Frame) -> str:
    """The name of a frame's kind, for counters and messages."""
    return str(type(frame).__struct_config__.tag)


def encode_message(message: Message) -> bytes:
    """What a datagram holds. Raises WireError(too_large)."""
    data = _encode(message)
    if len(data) > MESSAGE_BYTES_MAX:
        raise WireError("too_large", f"a message of {len(data)} bytes exceeds {MESSAGE_BYTES_MAX}")
    return data


def decode_message(data: bytes) -> Message:
    """Raises WireError and nothing else."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise WireError("too_large", f"a message of {len(data)} bytes exceeds {MESSAGE_BYTES_MAX}")
    try:
        return _decode_message(data)
    except _MALFORMED as error:
        raise _diagnosed_message(data, error) from error


def _diagnosed_message(data: bytes, error: Exception) -> WireError:
    """Why this is no message of ours: a kind of a later version, or garbage."""
    try:
        kind = _decode_message_kind(data).kind
    except _MALFORMED:
        return WireError("garbled", f"not a heartbeat: {error}")
    if kind not in MESSAGE_KINDS:
        return WireError("unknown_kind", f"a datagram of unknown kind {kind[:40]!r}")
    return WireError("garbled", f"not a {kind} datagram: {error}")
