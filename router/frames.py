"""What an edge and the coordinator say to each other about requests, over a link or in-process.

Every frame names (request, attempt). Frames may be lost with their link: the edge repeats what is open, so each is
idempotent. A `Request.deadline` in a frame is seconds left at sending, not a clock reading.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct, field

from node.types import NodeId, RequestId, Usage
from router.errors import Refusal
from router.events import Decision, Outcome, Request, Why


class Ask(Struct, frozen=True, tag="ask"):
    """Where shall this run? A higher `attempt` also says that the one before has ended with `last_outcome`, so that
    the coordinator's account moves in one step. `age_s` since the edge accepted it: keeps the order of the queue."""

    request: Request
    attempt: int
    age_s: float
    last_outcome: Outcome | None = None


class Taken(Struct, frozen=True, tag="taken"):
    """The grant has arrived and is being carried out."""

    id: RequestId
    attempt: int


class First(Struct, frozen=True, tag="first"):
    id: RequestId
    attempt: int
    cached_tokens: int = 0


class Done(Struct, frozen=True, tag="done"):
    """This request needs the coordinator no more."""

    id: RequestId
    attempt: int
    outcome: Outcome
    usage: Usage = Usage()


class CancelAsk(Struct, frozen=True, tag="cancel"):
    """The client left while the request was waiting."""

    id: RequestId
    attempt: int


class Carrying(Struct, frozen=True, tag="carrying"):
    """Said to a new coordinator, and again after a lost link: this attempt runs already."""

    request: Request
    attempt: int
    node: NodeId
    model: str
    sent_s_ago: float
    first_token: bool


class Queued(Struct, frozen=True, tag="queued"):
    """Not yet. `position` from 1; `wait_s` expected seconds until a grant."""

    id: RequestId
    attempt: int
    position: int
    wait_s: float


class Granted(Struct, frozen=True, tag="grant"):
    id: RequestId
    attempt: int
    node: NodeId
    model: str
    why: Why = field(name="decision")


class Refused(Struct, frozen=True, tag="refuse"):
    id: RequestId
    attempt: int
    error: Refusal
    decision: Decision | None = None


EdgeFrame: TypeAlias = Ask | Taken | First | Done | CancelAsk | Carrying
CoordinatorFrame: TypeAlias = Queued | Granted | Refused


class Say(Struct, frozen=True):
    """What the two machines of this conversation (asker.py, desk.py) want sent, and to whom (maybe this node)."""

    to: NodeId
    frame: EdgeFrame | CoordinatorFrame
