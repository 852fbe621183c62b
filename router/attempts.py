"""One request's attempts: ask where, open, first byte, retry, hand over, end. Pure; `io/exchange.py` drives it.

Before the first byte of a stream a failure is the mesh's own business: the request is asked for again elsewhere and
the client sees nothing. After it the answer is handed over: it is asked for again too, but goes on where it stopped.
A non-streamed answer goes on where that can be had, and else begins again, because nothing of it was sent.
Attempts are numbered from 1, one per ask, so whatever arrives for an earlier one is recognised and dropped.
"""

from __future__ import annotations

from typing import Literal

from msgspec import structs

from node.errors import NodeErrorCode
from node.types import NodeId, RequestId
from router.attempt_events import (
    AskFor,
    Broke,
    ClientLeft,
    CloseUpstream,
    Comfort,
    Completed,
    Denied,
    Effect,
    Event,
    Fail,
    Finish,
    FirstByte,
    Hopeless,
    Joined,
    Mismatch,
    NodeLost,
    Open,
    Placed,
    Tick,
    Unkept,
)
from router.errors import ErrorCode, Refusal
from router.events import Outcome
from router.facts import AttemptFact, Lost, Mode
from router.frames import CancelAsk, Done, First, Taken
from router.settings import EdgeSettings

# What a failed attempt says about the node, for the coordinator. Default: failed.
_OUTCOMES: dict[NodeErrorCode, Outcome] = {
    NodeErrorCode.NODE_BUSY: "busy",
    NodeErrorCode.DRAINING: "busy",
    NodeErrorCode.BAD_REQUEST: "cancelled",  # the client's fault: nothing against the node
    NodeErrorCode.PATH_NOT_SERVED: "cancelled",  # nor is this
    NodeErrorCode.CANNOT_RESUME: "cancelled",  # it can run it again
}

# What the client is told when that was the last word. Default: no_node_available.
_LAST_WORDS: dict[NodeErrorCode, ErrorCode] = {
    NodeErrorCode.MODEL_FAILED: ErrorCode.MODEL_FAILED,
    NodeErrorCode.INTERNAL: ErrorCode.MODEL_FAILED,
    NodeErrorCode.PATH_NOT_SERVED: ErrorCode.PATH_NOT_FOUND,
}

# Refusals that mean "nobody is left". Once somebody was tried they are worth another round: workers restart in seconds.
_NOBODY_LEFT = {ErrorCode.NO_NODE_AVAILABLE, ErrorCode.MODEL_FAILED, ErrorCode.MODEL_NOT_FOUND}

# Refusals of a model whose nodes are gone; a coordinator that never met those does not know the name.
_GONE = {ErrorCode.NO_NODE_AVAILABLE, ErrorCode.MODEL_NOT_FOUND}


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
        self._began, self._ends_at = now, now + deadline_s
        self._last_word_at = self._ends_at - min(settings.last_word_s, 0.1 * deadline_s)
        self._comfort_at = now + settings.head_hold_s if streamed else None
        self._attempt = 0
        self._resume_at: float | None = now  # pausing until then; None: not pausing
        self._asking = False
        self._node: NodeId | None = None  # where the upstream is open
        self._mode: Mode = "start"
        self._first = False  # this attempt's first byte has come,
        self._flows = False  # and what it says is new to the client
        self._begun = False  # some of the answer has come, from whichever attempt
        self._opened_at = 0.0
        self._waiting_since = now
        self._failed: list[NodeId] = []
        self._busy: list[NodeId] = []
        self._cannot: list[NodeId] = []
        self._failures = self._busies = self._rounds = self._pauses = self._cuts = 0
        self._last: Broke | None = None
        self._held: Refusal | None = None  # by the coordinator, before anybody was tried: somebody may come back
        self._last_done: Done | None = None  # how the attempt before ended; the next ask tells the coordinator
        self._refused = False  # since something new came, of an answer that has begun
        self._unkept = ""
        self.over = False
        self.waited_s = 0.0  # without a grant, in all
        self.facts: list[AttemptFact] = []  # one per grant; `node` is its id

    @property
    def deadline(self) -> float:
        """When to Tick next. Seconds, on the clock of `now`; infinity when it is over."""
        if self.over:
            return float("inf")
        comfort = None if self._flows else self._comfort_at
        return min(t for t in (self._ends_at, self._resume_at, comfort) if t is not None)

    @property
    def open(self) -> bool:
        """An attempt is under way."""
        return self._node is not None

    def step(self, event: Event, now: float) -> list[Effect]:
        if self.over:
            return []
        match event:
            case Placed() if self._asking and event.attempt == self._attempt:
                return self._placed(event, now)
            case Denied() if self._asking and event.attempt == self._attempt:
                self._asking = False
                return self._denied(event, now)
            case Hopeless() if self._asking and event.attempt == self._attempt and self._sent:
                assert self._last_done is not None
                self._asking = False
                return [self._last_done, *self._lose(event.lost, event.why, now)]
            case FirstByte() | Joined() | Mismatch() | Broke() | Completed():
                return self._upstream(event, now) if self._runs(event.attempt) else []
            case Unkept():
                return self._dropped(event.why, now)
            case NodeLost() if event.node == self._node:
                lost = Broke(self._attempt, NodeErrorCode.UNREACHABLE, "the node is gone")
                return [CloseUpstream(), *self._broke(lost, now)]
            case ClientLeft():
                return self._abandon(Finish("cancelled"), "the client left", now)
            case Tick():
                return self._tick(now)
            case _:
                return []  # It belongs to an attempt that is over.

    def _upstream(self, event: FirstByte | Joined | Mismatch | Broke | Completed, now: float) -> list[Effect]:
        match event:
            case FirstByte() if not self._first:
                self._first = True
                if self._mode == "start":
                    self._joined()
                return [First(self._id, self._attempt, event.cached_tokens)]
            case Joined() if self._first and not self._flows:
                self._joined()
                return []
            case Mismatch():
                self._close("failed", f"mismatch: {event.message}", now)
                done = Done(self._id, self._attempt, "cancelled")  # nothing against the node: it said what it says
                return [done, *self._lose("mismatch", event.message, now)]
            case Broke():
                return self._broke(event, now)
            case Completed():
                self._close("ok", None, now)
                return [
                    Done(self._id, self._attempt, "ok", event.own or event.usage),
                    *self._end(Finish("ok", event.usage), now),
                ]
            case _:
                return []  # It says so once more.

    def _runs(self, attempt: int) -> bool:
        return self._node is not None and attempt == self._attempt

    @property
    def _sent(self) -> bool:
        """The client has some of the answer, which cannot be taken back."""
        return self._begun and self._streamed

    def _placed(self, grant: Placed, now: float) -> list[Effect]:
        self._asking, self._node, self._mode = False, grant.node, grant.mode
        self._first = self._flows = False
        self._opened_at = now
        self.waited_s += now - self._waiting_since
        return [Taken(self._id, self._attempt), Open(self._attempt, grant.node, grant.model, grant.mode)]

    def _joined(self) -> None:
        """The client gets something new: what went wrong before counts no more, as long as that is not too often."""
        again = self._begun
        self._flows = self._begun = True
        self._refused = False
        if (self._mode == "start" and again) or self._cuts > self._settings.cuts_limit:
            return
        self._failures = self._busies = self._rounds = self._pauses = 0
        self._failed.clear()
        self._busy.clear()

    def _dropped(self, why: str, now: float) -> list[Effect]:
        """From now on a cut is the end; and of a hand-over that has not succeeded yet this is the end, too."""
        self._unkept = why
        if not self._sent or self._flows:
            return []
        refusal = Refusal(ErrorCode.STREAM_LOST, f"{self._last_message()}; {why}")
        return self._abandon(Fail(refusal, "not_kept"), why, now)

    def _denied(self, denied: Denied, now: float) -> list[Effect]:
        refusal = denied.refusal
        hard = refusal.code is ErrorCode.DEADLINE_EXCEEDED if self._sent else refusal.code not in _NOBODY_LEFT
        if self._last is None and denied.lately and refusal.code in _GONE:
            return self._hold(refusal, now)
        if hard or self._last is None:
            return self._end(Fail(refusal), now)  # Nobody was tried: what the coordinator says is all there is to say.
        self._refused = self._begun
        if self._busy:  # Full is not failed: those are asked again, as long as the limit of grants allows.
            self._busy.clear()
            pause_s = min(self._settings.busy_pause_s * 2**self._pauses, self._settings.busy_pause_cap_s)
            self._pauses += 1
        else:
            self._rounds += 1
            if self._rounds >= self._settings.rounds:
                return self._give_up("nobody", now, refusal.retry_after_s)
            self._failed.clear()
            pause_s = self._settings.round_pause_s
        self._resume_at = now + pause_s
        return []

    def _hold(self, refusal: Refusal, now: float) -> list[Effect]:
        """Whoever had the model is lost since a short while: as with one that failed, somebody may be back soon."""
        self._rounds += 1
        if self._rounds >= self._settings.rounds:
            return self._end(Fail(structs.replace(refusal, message=self._held_for(refusal, now))), now)
        self._held, self._resume_at = refusal, now + self._settings.round_pause_s
        return []

    def _held_for(self, refusal: Refusal, now: float) -> str:
        return f"{refusal.message}; waited {now - self._began:.1f} s for a node that has it to come back"

    def _broke(self, broke: Broke, now: float) -> list[Effect]:
        assert self._node is not None
        node, flowed = self._node, self._flows
        outcome = _OUTCOMES.get(broke.code, "failed")
        if self._begun and broke.code is NodeErrorCode.BAD_REQUEST and not self._unable(broke.code):
            outcome = "failed"  # The first node took the request: the fault is not the client's.
        self._last = broke
        error = f"{broke.code.value}: {broke.message}"
        self._close("busy" if outcome == "busy" else "failed", error, now, cut=flowed)
        done = self._last_done = Done(self._id, self._attempt, outcome)
        if broke.code is NodeErrorCode.BAD_REQUEST and not self._begun:
            return [done, *self._end(Fail(Refusal(ErrorCode.INVALID_REQUEST, broke.message)), now)]
        if self._sent and self._unkept:
            return [done, *self._lose("not_kept", f"{self._last_message()}; {self._unkept}", now)]
        if flowed:
            self._cuts += 1
            if self._sent and self._cuts > self._settings.cuts_limit:
                return [done, *self._lose("cuts", f"{self._last_message()}; it broke off {self._cuts} times", now)]
        self._note(node, broke.code, outcome)
        if self._failures >= self._settings.failures_limit or self._busies >= self._settings.busy_limit:
            return [done, *self._give_up("failures", now)]
        if outcome == "busy" and now >= self._last_word_at and not self._sent:
            return [done, *self._give_up("failures", now)]  # What it waited for says more than "too late".
        if self._sent:
            self._comfort_at = now + self._settings.comfort_every_s
        return [self._ask(outcome)]

    def _unable(self, code: NodeErrorCode) -> bool:
        """It cannot go on with what it was given, or takes that for nonsense: nothing against the node."""
        return self._mode == "continue" and code in (NodeErrorCode.CANNOT_RESUME, NodeErrorCode.BAD_REQUEST)

    def _note(self, node: NodeId, code: NodeErrorCode, outcome: Outcome) -> None:
        """What this says about `node` for the next ask."""
        if self._unable(code) and node not in self._cannot:
            self._cannot.append(node)  # It may run it again from the start.
        elif outcome == "busy":
            self._busies += 1
            self._busy.append(node)
        else:
            self._failures += 1
            self._failed.append(node)

    def _ask(self, last_outcome: Outcome | None) -> AskFor:
        self._attempt += 1
        self._asking, self._resume_at = True, None
        excluded = (*self._barred, *self._failed, *self._busy)
        return AskFor(self._attempt, excluded, last_outcome, self._begun, tuple(self._cannot), self._refused)

    def _close(
        self,
        outcome: Literal["ok", "busy", "failed", "cancelled"],
        error: str | None,
        now: float,
        *,
        cut: bool = False,
    ) -> None:
        assert self._node is not None
        ms = round((now - self._opened_at) * 1e3, 1)
        fact = AttemptFact(node=self._node, outcome=outcome, error=error, ms=ms, mode=self._mode, cut=cut)
        self.facts.append(fact)
        self._node, self._waiting_since = None, now
        self._first = self._flows = False

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
            message = "no whole answer before the request's deadline"
            if self._held is not None and self._node is None and self._last is None:
                message = f"{message}: {self._held_for(self._held, now)}"
            refusal = Refusal(ErrorCode.DEADLINE_EXCEEDED, message)
            return self._abandon(Fail(refusal), "deadline", now)
        effects: list[Effect] = []
        if self._comfort_at is not None and not self._flows and now >= self._comfort_at:
            self._comfort_at = now + self._settings.comfort_every_s
            effects.append(Comfort())
        if self._resume_at is not None and now >= self._resume_at:
            effects.append(self._ask(None))
        return effects

    def _give_up(self, lost: Lost, now: float, retry_s: float | None = None) -> list[Effect]:
        """Why it ends unanswered: the last failure stands for all; the route has each. `retry_s`: not before."""
        assert self._last is not None
        if self._sent:
            return self._lose(lost, f"{self._last_message()}; nobody could go on with it", now)
        code = _LAST_WORDS.get(self._last.code, ErrorCode.NO_NODE_AVAILABLE)
        retry_s = max(self._settings.retry_after_s, retry_s or 0.0)
        return self._end(Fail(Refusal(code, self._last_message(), retry_s)), now)

    def _lose(self, lost: Lost, message: str, now: float) -> list[Effect]:
        return self._end(Fail(Refusal(ErrorCode.STREAM_LOST, message), lost), now)

    def _last_message(self) -> str:
        assert self._last is not None
        tries = len(self.facts)
        return f"{self._last.message} (after {tries} {'attempt' if tries == 1 else 'attempts'})"
