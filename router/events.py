"""The Scheduler's face: what it is told and what it answers. An outside simulator replays it through this file.

All times are seconds; `deadline` is on the scheduler's own clock (the `now` of its `step`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Protocol, TypeAlias

from msgspec import Meta, Struct

from node.types import NodeId, NodeStatus, RequestId, Usage
from router.errors import Refusal

Outcome: TypeAlias = Literal["ok", "busy", "failed", "cancelled"]  # busy: refused for want of a slot, not a failure


class Request(Struct, frozen=True, kw_only=True):
    """What placing needs to know of a request; never its text.

    `models` are names in order of preference: the one asked for, then its fallbacks. `blocks` are chained hashes of
    the prompt's starts, `block_tokens` tokens each; `whole` is a hash of all of it, `follows` the `whole` of the
    request whose answer this one goes on from (0: not known, or none). `excluded` nodes have already failed this
    request.
    """

    id: RequestId
    models: Annotated[tuple[str, ...], Meta(min_length=1)]
    prompt_tokens: int = 0
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    max_tokens: int = 0  # 0 = the client set none
    client: str = ""
    priority: Literal["normal", "low"] = "normal"
    deadline: float | None = None
    excluded: tuple[NodeId, ...] = ()
    whole: int = 0
    follows: int = 0

    @property
    def marks(self) -> tuple[int, ...]:
        """What a later turn of the same conversation knows this one by: the last of these."""
        return (self.whole,) if self.whole else self.blocks

    @property
    def knows(self) -> tuple[int, ...]:
        """Marks that earlier turns may have left."""
        return (self.follows,) if self.whole else self.blocks


class Term(Struct, frozen=True):
    """One part of a cost: what it is called, its seconds, and why it is that many."""

    name: str
    seconds: float
    why: str


class Candidate(Struct, frozen=True):
    """One node and model that were looked at. `total_s` is the sum of `terms`; None when `excluded` says why not."""

    node: NodeId
    model: str
    total_s: float | None = None
    terms: tuple[Term, ...] = ()
    excluded: str | None = None


Facts: TypeAlias = dict[str, str | int | float | list[str] | None]  # what was assumed of a request


class Decision(Struct, frozen=True, kw_only=True):
    """Why a request went where it went (`mesh routes --why`): ROUTE.decision of DESIGN section 4. `chosen` None: it was
    refused, and `request["refused"]` says why."""

    request: Facts
    chosen: NodeId | None
    waited_ms: float
    candidates: tuple[Candidate, ...]


class Grounds(Protocol):
    """What a Decision is made of (router/reasons.py)."""

    @property
    def decision(self) -> Decision: ...


class Why:
    """A Decision that is put together when it is read, from what was known then: most never are, and building one takes
    longer than deciding. Across a link it is the Decision itself (`mesh/wire.py`)."""

    __slots__ = ("_made",)

    def __init__(self, made: Decision | Grounds | Callable[[], Decision | Grounds]) -> None:
        self._made = made

    @property
    def grounds(self) -> Decision | Grounds:
        """What there is of it: the Decision, or what one is made of."""
        if callable(self._made):
            self._made = self._made()
        return self._made

    @property
    def decision(self) -> Decision:
        grounds = self.grounds
        return grounds if isinstance(grounds, Decision) else grounds.decision

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Why) and self.decision == other.decision

    __hash__ = None  # type: ignore[assignment]  # a Decision has no hash either: it holds a dict


class NodeUp(Struct, frozen=True, tag=True):
    status: NodeStatus


class NodeChanged(Struct, frozen=True, tag=True):
    status: NodeStatus


class NodeDown(Struct, frozen=True, tag=True):
    node: NodeId


class Submit(Struct, frozen=True, tag=True):
    """`age_s` since an edge accepted it: its place in the queue survives a change of coordinator."""

    request: Request
    age_s: float = 0.0


class Started(Struct, frozen=True, tag=True):
    """The edge has taken the grant."""

    id: RequestId


class FirstToken(Struct, frozen=True, tag=True):
    id: RequestId
    cached_tokens: int = 0


class Finished(Struct, frozen=True, tag=True):
    id: RequestId
    outcome: Outcome
    usage: Usage = Usage()


class Cancel(Struct, frozen=True, tag=True):
    id: RequestId


class Adopt(Struct, frozen=True, tag=True):
    """A request that already runs, granted by an earlier coordinator."""

    request: Request
    node: NodeId
    sent_s_ago: float
    first_token: bool
    model: str | None = None  # MODEL.name there; None: the first of `request.models` that the node holds


class Loaded(Struct, frozen=True, tag=True):
    """`node` took `seconds` to bring `model` from absent to ready."""

    node: NodeId
    model: str
    seconds: float


class Tick(Struct, frozen=True, tag=True):
    pass


SchedulerEvent: TypeAlias = (
    NodeUp | NodeChanged | NodeDown | Submit | Started | FirstToken | Finished | Cancel | Adopt | Loaded | Tick
)


class Grant(Struct, frozen=True):
    """Run `id` on `node` as `model` (MODEL.name there), now."""

    id: RequestId
    node: NodeId
    model: str
    why: Why

    @property
    def decision(self) -> Decision:
        return self.why.decision


class Refuse(Struct, frozen=True, tag=True):
    """`decision` says of everyone who was looked at why not, or what it would have cost there; nobody is `chosen`."""

    id: RequestId
    error: Refusal
    decision: Decision | None = None


SchedulerEffect: TypeAlias = Grant | Refuse
