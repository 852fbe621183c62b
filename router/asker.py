"""Asker: the edge's side of the talk with the coordinator. It keeps what this edge has open and says it again
whenever it may have been lost: no answer, a lost link, a new term. Without a coordinator it waits a little, then asks
this node's own desk.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import TypeAlias, assert_never

from msgspec import Struct, structs

from node.types import NodeId, RequestId
from router.account import Standing
from router.errors import ErrorCode, Refusal
from router.events import Request, Tick
from router.frames import (
    Ask,
    CancelAsk,
    Carrying,
    CoordinatorFrame,
    Done,
    EdgeFrame,
    First,
    Granted,
    Queued,
    Refused,
    Say,
    Taken,
)
from router.settings import RouterSettings


class FromDesk(Struct, frozen=True):
    sender: NodeId
    frame: CoordinatorFrame


class Follow(Struct, frozen=True):
    """Who coordinates. `ruling`: this node decides (as coordinator, or alone in its mesh)."""

    coordinator: NodeId | None
    term: int
    ruling: bool


class LinkLost(Struct, frozen=True):
    """The link to `node` is gone, or it would not take a frame. `lives`: it is heard, here or by others, so that nobody
    is about to succeed it."""

    node: NodeId
    lives: bool = False


class LinkBack(Struct, frozen=True):
    """A frame for `node` went out after its link was lost."""

    node: NodeId


class Answer(Struct, frozen=True):
    """For whoever carries that request here."""

    frame: CoordinatorFrame


class Release(Struct, frozen=True):
    """This node's own desk is asked no more: it forgets what it held for us, frames on their way to it included."""


AskerEvent: TypeAlias = Ask | Taken | First | Done | CancelAsk | FromDesk | Follow | LinkLost | LinkBack | Tick
AskerEffect: TypeAlias = Say | Answer | Release


class Mine:
    """One request this edge has open. `asked_of`: the desk it was last asked of; `heard_at`: its last answer."""

    __slots__ = (
        "asked_at",
        "asked_of",
        "attempt",
        "deadline",
        "first",
        "granted",
        "granted_at",
        "heard_at",
        "last_outcome",
        "request",
        "since",
        "taken",
    )

    def __init__(self, ask: Ask, now: float) -> None:
        self.request, self.attempt, self.last_outcome = ask.request, ask.attempt, ask.last_outcome
        self.since = now - max(0.0, ask.age_s)
        self.deadline = None if ask.request.deadline is None else now + ask.request.deadline
        self.asked_of: NodeId | None = None
        self.asked_at = now
        self.heard_at: float | None = None
        self.granted: Granted | None = None  # from then on it runs
        self.granted_at = 0.0
        self.taken = self.first = False

    def ask(self, now: float) -> Ask:
        return Ask(self._request(now), self.attempt, max(0.0, now - self.since), self.last_outcome)

    def carrying(self, granted: Granted, now: float) -> Carrying:
        ago_s = max(0.0, now - self.granted_at)
        return Carrying(self._request(now), self.attempt, granted.node, granted.model, ago_s, self.first)

    def frame(self, now: float) -> EdgeFrame:
        """All a desk that knows nothing has to hear of it."""
        return self.ask(now) if self.granted is None else self.carrying(self.granted, now)

    def _request(self, now: float) -> Request:
        left = None if self.deadline is None else self.deadline - now
        return structs.replace(self.request, deadline=left)


class Asker:
    """`step(event, now) -> effects`; wake it with a Tick at `deadline`."""

    def __init__(self, me: NodeId, settings: RouterSettings, now: float) -> None:
        self.me = me
        self._settings = settings
        self._mine: dict[RequestId, Mine] = {}
        self._asking: dict[RequestId, Mine] = {}  # those of them without a grant
        self._told: OrderedDict[RequestId, tuple[EdgeFrame, float]] = OrderedDict()  # how it ended here, and when
        self._follow = Follow(None, 0, ruling=False)
        self._lost_at: float | None = now  # no coordinator, or none that can be reached, since
        self._hold_s = settings.hold_s  # from then on until this node's own desk decides
        self._again_at = now  # next try to reach a coordinator whose link is gone
        self._first_due: float | None = None  # never after the first time that anything is due; None: to be looked for
        self._out: list[AskerEffect] = []

    # What can be asked

    @property
    def deadline(self) -> float | None:
        # What runs has no time of its own while there is a way to a desk: of a thousand streams nobody is looked at.
        if self._lost_at is None and not self._asking:
            return None
        if self._first_due is None:
            open_ = self._asking if self._lost_at is None else self._mine
            times = [due for mine in open_.values() for due in self._due(mine)]
            if self.unreachable and not self._follow.ruling and (self._mine or self._told):
                times.append(self._again_at)
            self._first_due = min(times, default=inf)
        return self._first_due if self._first_due < inf else None

    @property
    def unreachable(self) -> bool:
        """There is a coordinator, but its link is gone."""
        return self._follow.coordinator is not None and self._lost_at is not None

    def ended(self, request: RequestId) -> bool:
        """It was this edge's and is over, whatever a node still reports."""
        return request in self._told

    def standings(self) -> list[Standing]:
        """Every open request of this edge, for the account."""
        return [
            Standing(m.request.id, m.attempt, m.granted.node if m.granted is not None else None, m.taken)
            for m in self._mine.values()
        ]

    # What happens

    def rename(self, me: NodeId) -> None:
        """This node has another id from now on. The next Follow asks its desk anew for all that is open."""
        for mine in self._mine.values():
            if mine.granted is not None and mine.granted.node == self.me:
                mine.granted = structs.replace(mine.granted, node=me)
        self.me = me

    def step(self, event: AskerEvent, now: float) -> list[AskerEffect]:
        self._out = []
        match event:
            case Taken() | First():
                self._progress(event)
            case FromDesk(sender, frame):
                self._answer(sender, frame, now)
            case Ask():
                self._ask(event, now)
            case Done() | CancelAsk():
                self._end(event, now)
            case _:
                self._first_due = None
                self._whom(event, now)
        if self._lost_at is not None:
            self._first_due = None
        return self._out

    def _whom(self, event: Follow | LinkLost | LinkBack | Tick, now: float) -> None:
        """Who is to be asked may change."""
        match event:
            case Follow():
                self._new_reign(event, now)
            case LinkLost(node, lives):
                self._link_lost(node, lives, now)
            case LinkBack(node):
                self._link_back(node, now)
            case Tick():
                self._repeat(now)
            case _:
                assert_never(event)

    def _ask(self, event: Ask, now: float) -> None:
        if event.request.id not in self._mine and len(self._mine) >= self._settings.open_limit:
            text = f"{len(self._mine)} requests are open at this edge, that is its limit"
            error = Refusal(ErrorCode.MESH_SATURATED, text, self._settings.retry_after_s)
            self._out.append(Answer(Refused(event.request.id, event.attempt, error)))
            return
        mine = self._mine[event.request.id] = self._asking[event.request.id] = Mine(event, now)
        self._send(mine, now)
        if self._lost_at is None and len(self._asking) == 1:
            self._first_due = min(self._due(mine), default=inf)
        elif self._first_due is not None:  # The others are due when they were, or later.
            self._first_due = min(self._first_due, *self._due(mine))

    def _progress(self, event: Taken | First) -> None:
        mine = self._mine.get(event.id)
        if mine is None or mine.attempt != event.attempt:
            return
        mine.taken, mine.first = True, mine.first or isinstance(event, First)
        self._say(event)

    def _end(self, event: Done | CancelAsk, now: float) -> None:
        self._mine.pop(event.id, None)
        self._asking.pop(event.id, None)
        self._told[event.id] = event, now
        self._forget_ends(now)
        self._say(event)

    def _forget_ends(self, now: float) -> None:
        oldest = now - self._settings.done_memory_s
        while self._told and (
            len(self._told) > self._settings.done_limit or next(iter(self._told.values()))[1] <= oldest
        ):
            self._told.popitem(last=False)

    # From desks

    def _answer(self, sender: NodeId, frame: CoordinatorFrame, now: float) -> None:
        mine = self._mine.get(frame.id)
        if mine is None or mine.attempt != frame.attempt:
            if isinstance(frame, Granted):  # Nobody waits for it any more: without a word its slot would stay taken.
                self._out.append(Say(sender, Done(frame.id, frame.attempt, "cancelled")))
            return
        if isinstance(frame, Granted):
            self._granted(sender, frame, mine, now)
            return
        if mine.granted is not None or sender != mine.asked_of:
            return  # Overtaken by a grant, or from a desk that is asked no more.
        if isinstance(frame, Queued):
            mine.heard_at, self._first_due = now, None
        else:
            del self._mine[frame.id]
            del self._asking[frame.id]
        self._out.append(Answer(frame))

    def _granted(self, sender: NodeId, frame: Granted, mine: Mine, now: float) -> None:
        before = mine.granted
        if before is None:
            mine.granted, mine.granted_at = frame, now
            del self._asking[frame.id]
            if sender != mine.asked_of and mine.asked_of is not None:
                self._out.append(Say(mine.asked_of, mine.carrying(frame, now)))  # It still has our question.
            self._out.append(Answer(frame))
        elif (before.node, before.model) == (frame.node, frame.model):
            self._out.append(Say(sender, Taken(frame.id, frame.attempt)))
        else:
            self._out.append(Say(sender, mine.carrying(before, now)))  # It runs elsewhere already.

    # Whom to ask

    def _target(self, now: float) -> NodeId | None:
        if self._follow.ruling:
            return self.me
        if self._lost_at is None:
            return self._follow.coordinator
        return self.me if now >= self._lost_at + self._hold_s else None

    def _say(self, frame: EdgeFrame) -> None:
        """News of a request goes to everyone who may count it."""
        if self._follow.ruling and self._follow.coordinator == self.me:
            self._out.append(Say(self.me, frame))
            return
        desks = {self._follow.coordinator, self.me if self._follow.ruling or self._lost_at is not None else None}
        self._out += [Say(desk, frame) for desk in sorted(d for d in desks if d is not None)]

    def _send(self, mine: Mine, now: float) -> None:
        """Says what there is to say of `mine` to whoever decides now. A coordinator whose link is gone is tried first
        all the same: the shell answers with LinkBack, or with LinkLost, and then we fall back."""
        lost = self.unreachable and not self._follow.ruling
        to = self._follow.coordinator if lost else self._target(now)
        mine.asked_of, mine.asked_at, mine.heard_at = None if lost else to, now, None
        if to is not None:
            self._out.append(Say(to, mine.frame(now)))

    def _new_reign(self, event: Follow, now: float) -> None:
        if event == self._follow:
            return
        was_own = self._target(now) == self.me
        had = self._follow.coordinator is not None or self._follow.ruling
        has = event.coordinator is not None or event.ruling
        self._follow, self._hold_s = event, self._settings.hold_s
        if has:
            self._lost_at = None
        elif had and self._lost_at is None:
            self._lost_at = now
        if was_own and self._target(now) != self.me:
            self._out.append(Release())
        for mine in self._mine.values():
            self._send(mine, now)

    def _link_lost(self, node: NodeId, lives: bool, now: float) -> None:
        if node != self._follow.coordinator or self._follow.ruling:
            return
        if self._lost_at is None:
            self._lost_at = now
        if self._target(now) != self.me:  # once this node decides, only a way back or a new reign ends that
            bounds = self._settings
            self._hold_s = min(bounds.cut_hold_s, bounds.hold_s) if lives else bounds.hold_s
        self._again_at = now + self._settings.answer_s
        self._fall_back(now)

    def _link_back(self, node: NodeId, now: float) -> None:
        """It may have missed anything since its link was lost: all is said again, ends included."""
        if node != self._follow.coordinator or self._lost_at is None:
            return
        self._lost_at = None
        self._out.append(Release())
        self._out += [Say(node, frame) for frame, _ in self._told.values()]
        for mine in self._mine.values():
            self._send(mine, now)

    def _fall_back(self, now: float) -> None:
        """Nobody can be reached: after a while this node's own desk decides."""
        if self._target(now) == self.me:
            for mine in self._mine.values():
                if mine.asked_of != self.me:
                    mine.asked_of, mine.asked_at, mine.heard_at = self.me, now, None
                    self._out.append(Say(self.me, mine.frame(now)))

    # By the clock

    def _due(self, mine: Mine) -> list[float]:
        """When something has to be done about it."""
        waits = mine.granted is None
        times = [mine.deadline + self._settings.answer_s] if waits and mine.deadline is not None else []
        if self._lost_at is not None and mine.asked_of != self.me:
            times.append(self._lost_at + self._hold_s)
        if waits and mine.asked_of is not None:
            times.append(self._silence_ends(mine))
        return times

    def _silence_ends(self, mine: Mine) -> float:
        if mine.heard_at is None:
            return mine.asked_at + self._settings.answer_s
        return max(mine.heard_at, mine.asked_at) + self._settings.quiet_s

    def _repeat(self, now: float) -> None:
        if self.unreachable and not self._follow.ruling and now >= self._again_at:
            self._probe(now)
        else:
            self._fall_back(now)
        for mine in list(self._asking.values()):
            if mine.deadline is not None and now >= mine.deadline + self._settings.answer_s:
                self._give_up(mine, now)
            elif mine.asked_of is not None and now >= self._silence_ends(mine):
                self._send(mine, now)

    def _probe(self, now: float) -> None:
        """One frame to a coordinator whose link is gone. It goes out: LinkBack; it does not: LinkLost, and we fall
        back then, not now, or both desks would be asked."""
        self._again_at = now + self._settings.answer_s
        self._forget_ends(now)
        frames = [m.frame(now) for m in self._mine.values()] or [frame for frame, _ in self._told.values()]
        if frames and self._follow.coordinator is not None:
            self._out.append(Say(self._follow.coordinator, frames[0]))

    def _give_up(self, mine: Mine, now: float) -> None:
        """No desk has said that the time is over, so we do."""
        what = "any answer from the coordinator" if mine.asked_of is not None else "a coordinator"
        text = f"waited {now - mine.since:.1f} s for {what} to place {mine.request.models[0]!r}"
        self._end(CancelAsk(mine.request.id, mine.attempt), now)
        error = Refusal(ErrorCode.DEADLINE_EXCEEDED, text)
        self._out.append(Answer(Refused(mine.request.id, mine.attempt, error)))
