"""What the election hears, does and says. Messages are UDP datagrams between nodes; the rest stays inside."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

# A node id; election imports nothing of ours. Bounded, so that who repeats what it heard still fits a datagram.
Id: TypeAlias = Annotated[str, Meta(max_length=32)]


class Rank(Struct, frozen=True, order=True):
    """Who goes before whom, greatest first: near before far, priority, uptime in 10 s steps, id, boot nonce.

    Priority 0 never coordinates, whatever its rank.
    """

    near: bool
    priority: int
    uptime_steps: int
    id: Id
    boot: Id


class Reign(Struct, frozen=True):
    """A term with the rank its holder had at takeover, so that two holders of one number are still ordered."""

    term: int = 0
    rank: Rank | None = None

    def key(self) -> tuple[int, tuple[bool, int, int, str, str]]:
        """Orders reigns; one without a holder comes first."""
        r = self.rank
        return self.term, (r.near, r.priority, r.uptime_steps, r.id, r.boot) if r else (False, -1, -1, "", "")


class Role(StrEnum):
    FOLLOWER = "F"
    COORDINATOR = "L"
    ALONE = "S"  # hears nobody: decides for itself only


Kind: TypeAlias = Literal["hb", "ask", "alive", "bye", "yield"]


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One datagram. `kind`: hb heartbeat, ask "who hears the coordinator?", alive the answer, bye leaving,
    yield "you take over". `age_s` seconds since the sender heard its coordinator, `seq` grows within one boot.
    `far`: the sender reaches the receiver at another site that was added by hand, so the receiver ranks last.
    `deaf`: nothing of the receiver reaches the sender, though this may reach the receiver."""

    kind: Kind
    sender: Id
    boot: str
    seq: int
    mesh: str  # mesh-name: other meshes' datagrams are dropped
    reign: Reign
    coordinator: Id | None
    role: Role
    rank: Rank
    uptime_s: float
    age_s: float = 0.0
    far: bool = False
    version: int = 1
    deaf: bool = False


# Events


class Heard(Struct, frozen=True):
    message: Message


class LinkClosed(Struct, frozen=True):
    """That process is gone for certain: EOF on its link and a refused redial (never a time-out)."""

    peer: Id


class PeerKnown(Struct, frozen=True):
    """A peer's address is known, so that messages reach it. `far`: another site (Tailscale and the like)."""

    peer: Id
    far: bool = False


class PeerForgotten(Struct, frozen=True):
    peer: Id


class Leave(Struct, frozen=True):
    """This node leaves the mesh (disable, down): a coordinator hands over first, then it says bye.
    Done once `Election.left` is True; keep delivering events until then."""


class Retune(Struct, frozen=True):
    """`mesh-priority` was edited."""

    priority: int


class Tick(Struct, frozen=True):
    pass


Event: TypeAlias = Heard | LinkClosed | PeerKnown | PeerForgotten | Leave | Retune | Tick

# Effects


class Send(Struct, frozen=True):
    """`to` None: to every known peer."""

    message: Message
    to: Id | None = None


class Follow(Struct, frozen=True):
    """Emitted on every change of (role, coordinator, term). `coordinator` None: nobody is known."""

    role: Role
    coordinator: Id | None
    term: int
    why: str  # for the log and for people


class Remember(Struct, frozen=True):
    """Keep this term on disk: it must never go back, not even over a restart."""

    term: int


Effect: TypeAlias = Send | Follow | Remember
