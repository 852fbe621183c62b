"""What happens to one request's attempts, and what they want done (router/attempts.py)."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from node.errors import NodeErrorCode
from node.types import NodeId, Usage
from router.errors import Refusal
from router.events import Outcome, Why
from router.facts import Lost, Mode
from router.frames import CancelAsk, Done, First, Taken

# Events


class Placed(Struct, frozen=True):
    """The coordinator says where; `mode` is what can be done there."""

    attempt: int
    node: NodeId
    model: str
    why: Why
    mode: Mode = "start"


class Denied(Struct, frozen=True):
    """The coordinator refuses this ask; it has forgotten the request. `lately`: a node that had the model was lost a
    short while ago, so that it, or another, may be there again soon."""

    attempt: int
    refusal: Refusal
    lately: bool = False


class FirstByte(Struct, frozen=True):
    """The first `data:` event has arrived; of an attempt that starts, it will be the next thing the client gets.
    `cached_tokens` where the engine says it so early (few do; the usage at the end has it)."""

    attempt: int
    cached_tokens: int = 0


class Joined(Struct, frozen=True):
    """This attempt goes on with the answer: what comes next from it is new to the client."""

    attempt: int


class Mismatch(Struct, frozen=True):
    """The upstream is closed: it says something else than the client has already."""

    attempt: int
    message: str


class Unkept(Struct, frozen=True):
    """What was sent is not kept any more, so that a cut from now on cannot be mended. `why` is a sentence's end."""

    why: str


class Hopeless(Struct, frozen=True):
    """Instead of asking for that attempt: the answer cannot go on anywhere."""

    attempt: int
    lost: Lost
    why: str


class Broke(Struct, frozen=True):
    """The upstream is closed, and not because it was complete."""

    attempt: int
    code: NodeErrorCode
    message: str


class Completed(Struct, frozen=True):
    """The upstream has said `[DONE]`. `usage` is that of the whole answer, `own` the part that this attempt read and
    wrote, where it went on with what others began."""

    attempt: int
    usage: Usage
    own: Usage | None = None


class NodeLost(Struct, frozen=True):
    """Membership says that `node` is dead: sooner than its connections do."""

    node: NodeId


class ClientLeft(Struct, frozen=True):
    pass


class Tick(Struct, frozen=True):
    pass


Event: TypeAlias = (
    Placed
    | Denied
    | FirstByte
    | Joined
    | Mismatch
    | Unkept
    | Hopeless
    | Broke
    | Completed
    | NodeLost
    | ClientLeft
    | Tick
)

# Effects. Taken, First, Done and CancelAsk are what the coordinator is told, as they stand on the link.


class AskFor(Struct, frozen=True):
    """Ask where to run it, without `excluded`. `last_outcome` is how the attempt before ended, if one ran.
    `begun`: some of the answer is there, so it must go on from that; nodes that `cannot` said so. `refused`: since it
    broke off an ask was refused, so whoever can do anything will do."""

    attempt: int
    excluded: tuple[NodeId, ...]
    last_outcome: Outcome | None
    begun: bool = False
    cannot: tuple[NodeId, ...] = ()
    refused: bool = False


class Open(Struct, frozen=True):
    attempt: int
    node: NodeId
    model: str
    mode: Mode = "start"


class CloseUpstream(Struct, frozen=True):
    """Stop the upstream that is open; nothing it still says counts."""


class Comfort(Struct, frozen=True):
    """The client has waited long: send the head if it is not out yet, and a comment."""


class Finish(Struct, frozen=True):
    outcome: Literal["ok", "cancelled"]
    usage: Usage = Usage()


class Fail(Struct, frozen=True):
    refusal: Refusal
    lost: Lost | None = None


Effect: TypeAlias = AskFor | Open | CloseUpstream | Taken | First | Done | CancelAsk | Comfort | Finish | Fail
