"""One request's attempts: ask where, open, first byte, retry, end. Pure; `io/exchange.py` drives it.

Before the first byte of a stream a failure is the mesh's own business: the request is asked for again elsewhere and
the client sees nothing. A non-streamed answer can be retried until it is whole, because nothing of it was sent.
Attempts are numbered from 1, one per ask, so whatever arrives for an earlier one is recognised and dropped.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from node.errors import NodeErrorCode
from node.types import NodeId, RequestId, Usage
from router.errors import ErrorCode, Refusal
from router.events import Outcome, Why
from router.facts import AttemptFact
from router.frames import CancelAsk, Done, First, Taken
from router.settings import EdgeSettings

# Events


class Placed(Struct, frozen=True):
    """The coordinator says where."""

    attempt: int
    node: NodeId
    model: str
    why: Why


class Denied(Struct, frozen=True):
    """The coordinator refuses this ask; it has forgotten the request."""

    attempt: int
    refusal: Refusal


class FirstByte(Struct, frozen=True):
    """The first `data:` event has arrived and will be the next thing the client gets. `cached_tokens` where the engine
    says it so early (few do; the usage at the end has it)."""

    attempt: int
    cached_tokens: int = 0


class Broke(Struct, frozen=True):
    """The upstream is closed, and not because it was complete."""

    attempt: int
    code: NodeErrorCode
    message: str


class Completed(Struct, frozen=True):
    """The upstream has said `[DONE]`."""

    attempt: int
    usage: Usage


class NodeLost(Struct, frozen=True):
    """Membership says that `node` is dead: sooner than its connections do."""

    node: NodeId


class ClientLeft(Struct, frozen=True):
    pass


class Tick(Struct, frozen=True):
    pass


Event: TypeAlias = Placed | Denied | FirstByte | Broke | Completed | NodeLost | ClientLeft | Tick

# Effects. Taken, First, Done and CancelAsk are what the coordinator is told, as they stand on the link.


class AskFor(Struct, frozen=True):
    """Ask where to run it, without `excluded`. `last_outcome` is how the attempt before ended, if one ran."""

    attempt: int
    excluded: tuple[NodeId, ...]
    last_outcome: Outcome | None


class Open(Struct, frozen=True):
    attempt: int
    node: NodeId
    model: str


class CloseUpstream(Struct, frozen=True):
    """Stop the upstream that is open; nothing it still says counts."""


class Comfort(Struct, frozen=True):
    """The client has waited long: send the head if it is not out yet, and a comment."""


class Finish(Struct, frozen=True):
    outcome: Literal["ok", "cancelled"]
    usage: Usage = Usage()


class Fail(Struct, frozen=True):
    refusal: Refusal


Effect: TypeAlias = AskFor | Open | CloseUpstream | Taken | First | Done | CancelAsk | Comfort | Finish | Fail

# What a failed attempt says about the node, for the coordinator. Default: failed.
_OUTCOMES: dict[NodeErrorCode, Outcome] = {
    NodeErrorCode.NODE_BUSY: "busy",
    NodeErrorCode.DRAINING: "busy",
    NodeErrorCode.BAD_REQUEST: "cancelled",  # the client's fault: nothing against the node
    NodeErrorCode.PATH_NOT_SERVED: "cancelled",  # nor is this
}

# What the client is told when that was the last word. Default: no_node_available.
_LAST_WORDS: dict[NodeErrorCode, ErrorCode] = {
    NodeErrorCode.MODEL_FAILED: ErrorCode.MODEL_FAILED,
    NodeErrorCode.INTERNAL: ErrorCode.MODEL_FAILED,
    NodeErrorCode.PATH_NOT_SERVED: ErrorCode.PATH_NOT_FOUND,
}

# Refusals that mean "nobody is left". Once somebody was tried they are worth another round: workers restart in seconds.
_NOBODY_LEFT = {ErrorCode.NO_NODE_AVAILABLE, ErrorCode.MODEL_FAILED, ErrorCode.MODEL_NOT_FOUND}


class Attempts:
    """Ends in exactly one Finish or Fail, at `deadline_s` after `now` at the latest; wake it at `deadline`.

    `barred` nodes cannot serve this request at all (they lack its path). The first Tick starts it.
    """

    def __init__(
        self,
        request: RequestId,
        *,
        settings: EdgeSettings,
        streamed: bool,
        deadline_s: float,
        now: float,
        barred: tuple[NodeId, ...] = (),
    ) -> None:
        self._id, self._settings, self._streamed, self._barred = request, settings, streamed, barred
        self._ends_at = now + deadline_s
        self._last_word_at = self._ends_at - min(settings.last_word_s, 0.1 * deadline_s)
        self._comfort_at = now + settings.head_hold_s if streamed else None
        self._attempt = 0
        self._resume_at: float | None = now  # pausing until then; None: not pausing
        self._asking = False
        self._node: NodeId | None = None  # where the upstream is open
        self._first = False  # this attempt's first byte has come
        self._opened_at = 0.0
        self._waiting_since = now
        self._failed: list[NodeId] = []
        self._busy: list[NodeId] = []
        self._failures = self._busies = self._rounds = self._pauses = 0
        self._last: Broke | None = None
        self.over = False
        self.waited_s = 0.0  # without a grant, in all
        self.facts: list[AttemptFact] = []  # one per grant; `node` is its id

    @property
    def deadline(self) -> float:
        """When to Tick next. Seconds, on the clock of `now`; infinity when it is over."""
        if self.over:
            return float("inf")
        comfort = None if self._first else self._comfort_at
        return min(t for t in (self._ends_at, self._resume_at, comfort) if t is not None)

    def step(self, event: Event, now: float) -> list[Effect]:
        if self.over:
            return []
        match event:
            case Placed() if self._asking and event.attempt == self._attempt:
                return self._placed(event, now)
            case Denied() if self._asking and event.attempt == self._attempt:
                self._asking = False
                return self._denied(event.refusal, now)
            case FirstByte() if self._runs(event.attempt) and not self._first:
                self._first = True
                return [First(self._id, self._attempt, event.cached_tokens)]
            case Broke() if self._runs(event.attempt):
                return self._broke(event, now)
            case Completed() if self._runs(event.attempt):
                self._close("ok", None, now)
                return [
                    Done(self._id, self._attempt, "ok", event.usage),
                    *self._end(Finish("ok", event.usage), now),
                ]
            case NodeLost() if event.node == self._node:
                lost = Broke(self._attempt, NodeErrorCode.UNREACHABLE, "the node is gone")
                return [CloseUpstream(), *self._broke(lost, now)]
            case ClientLeft():
                return self._abandon(Finish("cancelled"), "the client left", now)
            case Tick():
                return self._tick(now)
            case _:
                return []  # It belongs to an attempt that is over.

    def _runs(self, attempt: int) -> bool:
        return self._node is not None and attempt == self._attempt

    def _placed(self, grant: Placed, now: float) -> list[Effect]:
        self._asking, self._node, self._first = False, grant.node, False
        self._opened_at = now
        self.waited_s += now - self._waiting_since
        return [Taken(self._id, self._attempt), Open(self._attempt, grant.node, grant.model)]

    def _denied(self, refusal: Refusal, now: float) -> list[Effect]:
        if refusal.code not in _NOBODY_LEFT or self._last is None:
            return self._end(Fail(refusal), now)  # Nobody was tried: what the coordinator says is all there is to say.
        if self._busy:  # Full is not failed: those are asked again, as long as the limit of grants allows.
            self._busy.clear()
            pause_s = min(self._settings.busy_pause_s * 2**self._pauses, self._settings.busy_pause_cap_s)
            self._pauses += 1
        else:
            self._rounds += 1
            if self._rounds >= self._settings.rounds:
                return self._end(Fail(self._last_word(refusal.retry_after_s)), now)
            self._failed.clear()
            pause_s = self._settings.round_pause_s
        self._resume_at = now + pause_s
        return []

    def _broke(self, broke: Broke, now: float) -> list[Effect]:
        assert self._node is not None
        node, cut = self._node, self._first and self._streamed
        outcome = _OUTCOMES.get(broke.code, "failed")
        self._last = broke
        self._close("busy" if outcome == "busy" else "failed", f"{broke.code.value}: {broke.message}", now)
        done = Done(self._id, self._attempt, outcome)
        if broke.code is NodeErrorCode.BAD_REQUEST:
            return [done, *self._end(Fail(Refusal(ErrorCode.INVALID_REQUEST, broke.message)), now)]
        if cut:
            # What the client has cannot be taken back: only continuing from exactly there could save this stream.
            return [done, *self._end(Fail(Refusal(ErrorCode.STREAM_LOST, self._last_message())), now)]
        if outcome == "busy":
            self._busies += 1
            self._busy.append(node)
        else:
            self._failures += 1
            self._failed.append(node)
        if self._failures >= self._settings.failures_limit or self._busies >= self._settings.busy_limit:
            return [done, *self._end(Fail(self._last_word()), now)]
        if outcome == "busy" and now >= self._last_word_at:
            return [done, *self._end(Fail(self._last_word()), now)]  # What it waited for says more than "too late".
        return [self._ask(outcome)]

    def _ask(self, last_outcome: Outcome | None) -> AskFor:
        self._attempt += 1
        self._asking, self._resume_at = True, None
        return AskFor(self._attempt, (*self._barred, *self._failed, *self._busy), last_outcome)

    def _close(self, outcome: Literal["ok", "busy", "failed", "cancelled"], error: str | None, now: float) -> None:
        assert self._node is not None
        ms = round((now - self._opened_at) * 1e3, 1)
        self.facts.append(AttemptFact(node=self._node, outcome=outcome, error=error, ms=ms))
        self._node, self._first, self._waiting_since = None, False, now

    def _abandon(self, end: Finish | Fail, why: str, now: float) -> list[Effect]:
        """End it while something may still be under way."""
        effects: list[Effect] = []
        if self._asking:
            effects.append(CancelAsk(self._id, self._attempt))
        elif self._node is not None:
            self._close("cancelled", why, now)
            effects += [CloseUpstream(), Done(self._id, self._attempt, "cancelled")]
        return [*effects, *self._end(end, now)]

    def _end(self, end: Finish | Fail, now: float) -> list[Effect]:
        self.waited_s += now - self._waiting_since  # nothing when it ended right after its attempt
        self.over, self._asking, self._resume_at = True, False, None
        return [end]

    def _tick(self, now: float) -> list[Effect]:
        if now >= self._ends_at:
            refusal = Refusal(ErrorCode.DEADLINE_EXCEEDED, "no whole answer before the request's deadline")
            return self._abandon(Fail(refusal), "deadline", now)
        effects: list[Effect] = []
        if self._comfort_at is not None and not self._first and now >= self._comfort_at:
            self._comfort_at = now + self._settings.comfort_every_s
            effects.append(Comfort())
        if self._resume_at is not None and now >= self._resume_at:
            effects.append(self._ask(None))
        return effects

    def _last_word(self, retry_s: float | None = None) -> Refusal:
        """Why it ends unanswered: the last failure stands for all; the route has each. `retry_s`: not before."""
        assert self._last is not None
        code = _LAST_WORDS.get(self._last.code, ErrorCode.NO_NODE_AVAILABLE)
        return Refusal(code, self._last_message(), max(self._settings.retry_after_s, retry_s or 0.0))

    def _last_message(self) -> str:
        assert self._last is not None
        tries = len(self.facts)
        return f"{self._last.message} (after {tries} {'attempt' if tries == 1 else 'attempts'})"
