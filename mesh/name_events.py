"""What the keeper of the coordinator's names hears and does. Host names carry their final dot; addresses are text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from election.messages import Role

# Events


class Ruled(Struct, frozen=True):
    """The election's word: this node's role, and whom it follows (itself, when it rules)."""

    role: Role
    coordinator: str | None


class Known(Struct, frozen=True):
    """The addresses a name of this node leads to, and those of the other nodes of this mesh, by node."""

    mine: tuple[str, ...]
    nodes: Mapping[str, tuple[str, ...]]


class Opened(Struct, frozen=True):
    """mDNS listens and speaks from now on, for the first time or on changed interfaces."""


class Said(Struct, frozen=True):
    """One packet's records for names of ours: (host, address, True) is a claim or an answer, False a goodbye."""

    records: tuple[tuple[str, str, bool], ...]


class Rival(Struct, frozen=True):
    """This other node of this mesh says that it coordinates too, or is alone: it may hold the names."""

    node: str


class Foreign(Struct, frozen=True):
    """A datagram of another host came `at` (same clock as `now`): the network is heard."""

    at: float


class GatewayAnswered(Struct, frozen=True):
    pass


class Tick(Struct, frozen=True):
    pass


Event: TypeAlias = Ruled | Known | Opened | Said | Rival | Foreign | GatewayAnswered | Tick

# Effects


class Claim(Struct, frozen=True):
    """Answer questions for these names, and for no others, from now on. `Swap`s follow."""

    hosts: tuple[str, ...]


class Swap(Struct, frozen=True):
    """One packet: these names no longer lead to `old`, but to this node."""

    hosts: tuple[str, ...]
    old: tuple[str, ...]


class Release(Struct, frozen=True):
    """Answer for no name any more, and say nothing: the successor's packet moves the name without a hole."""

    why: str


class Ask(Struct, frozen=True):
    """Who has these names? What comes is `Said`."""

    hosts: tuple[str, ...]


class AskGateway(Struct, frozen=True):
    """Does the router of this network answer? Then `GatewayAnswered`; silence is told to nobody."""


Effect: TypeAlias = Claim | Swap | Release | Ask | AskGateway
