"""Dispatch: the two machines of "where shall this run?" on asyncio. It owns their timers, the way between them when
both sit in this process, and the callbacks of the requests that this edge carries. It decides nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from node.types import NodeId, NodeStatus, RequestId, RunningReport, Usage
from router.account import Account, Place, Standing, account
from router.asker import Answer, Asker, AskerEvent, Follow, FromDesk, LinkBack, LinkLost, Release
from router.desk import Desk, DeskEvent, EdgeLost, FromEdge, Reported, Rule
from router.events import NodeChanged, NodeDown, NodeUp, Outcome, Request, Tick
from router.frames import Ask, CancelAsk, CoordinatorFrame, Done, EdgeFrame, First, Granted, Queued, Refused, Say, Taken
from router.settings import RouterSettings

OnAnswer = Callable[[CoordinatorFrame], None]
Send = Callable[[NodeId, EdgeFrame | CoordinatorFrame], bool]


class Dispatch:
    """Made and used inside one running loop. Works from the start; `run` ends its timers.

    `send` hands a frame to the link of a node; False: there is none now, or what is said there does not arrive.
    `lives` says of a node without a link whether it is heard all the same, here or by others.
    """

    def __init__(
        self,
        *,
        self_id: NodeId,
        settings: RouterSettings,
        rng: random.Random,
        send: Send,
        lives: Callable[[NodeId], bool] = lambda _: False,
    ) -> None:
        self._me, self._send, self._lives = self_id, send, lives
        self._settings, self._rng = settings, rng
        self._loop = asyncio.get_running_loop()
        self._asker = Asker(self_id, settings, self._loop.time())
        self._desk = Desk(self_id, settings, rng)
        self._followed = Follow(None, 0, ruling=False)
        self._answers: dict[RequestId, tuple[int, OnAnswer]] = {}
        self._inbox: deque[EdgeFrame | CoordinatorFrame] = deque()  # said here, to be heard here
        self._asking: RequestId | None = None  # by whom we were called
        self._stepping = self._closed = False
        self._timers: dict[str, tuple[float, asyncio.Handle]] = {}  # when (uvloop does not tell), and

    async def run(self) -> None:
        """Until cancelled; then no timer is left."""
        try:
            await self._loop.create_future()
        finally:
            self._closed = True
            for _, timer in self._timers.values():
                timer.cancel()

    # The edge's side

    def ask(
        self, request: Request, attempt: int, age_s: float, last_outcome: Outcome | None, on_answer: OnAnswer
    ) -> None:
        """Where shall this run? `on_answer` hears `Queued`, maybe several times, then `Granted` or `Refused`, maybe
        before this returns. `request.deadline` is seconds left. A higher attempt replaces the one before."""
        self._answers[request.id] = attempt, on_answer
        self._asking = request.id
        self._ask_of(Ask(request, attempt, age_s, last_outcome))
        self._asking = None

    def taken(self, request: RequestId, attempt: int) -> None:
        """The grant is being carried out."""
        self._ask_of(Taken(request, attempt))

    def first(self, request: RequestId, attempt: int, cached_tokens: int) -> None:
        """Its first byte has come."""
        self._ask_of(First(request, attempt, cached_tokens))

    def done(self, request: RequestId, attempt: int, outcome: Outcome, usage: Usage) -> None:
        """The request is over, and will not be asked again."""
        self._answers.pop(request, None)
        self._ask_of(Done(request, attempt, outcome, usage))

    def cancel(self, request: RequestId, attempt: int) -> None:
        """The client left while it waited."""
        self._answers.pop(request, None)
        self._ask_of(CancelAsk(request, attempt))

    # The link's side

    def received(self, sender: NodeId, frame: EdgeFrame | CoordinatorFrame) -> None:
        """A frame came over the link from `sender`."""
        if isinstance(frame, Queued | Granted | Refused):
            self._ask_of(FromDesk(sender, frame))
        else:
            self._tell_desk(FromEdge(sender, frame))

    def link_lost(self, node: NodeId) -> None:
        """The link to that node is gone, or nothing gets through to it; which says nothing about the node itself."""
        self._ask_of(LinkLost(node, self._lives(node)))
        self._tell_desk(EdgeLost(node))

    def link_up(self, node: NodeId) -> None:
        """There is a link to that node, or frames get through to it again: nobody waits for the next try."""
        if self._asker.unreachable:
            self._ask_of(LinkBack(node))

    # The mesh's side

    def follow(self, coordinator: NodeId | None, term: int, ruling: bool) -> None:
        """Who decides from now on. `ruling`: this node does, as coordinator or alone in its mesh."""
        reign = Follow(coordinator, term, ruling)
        if reign == self._followed:
            return
        if ruling != self._followed.ruling:
            self._tell_desk(Rule(ruling))
        self._followed = reign
        self._ask_of(reign)

    def node_up(self, status: NodeStatus) -> None:
        """A node takes part, this one too. Its `foreign_in_flight` is counted here, from `node_running`."""
        self._tell_desk(NodeUp(status))

    def node_changed(self, status: NodeStatus) -> None:
        self._tell_desk(NodeChanged(status))

    def node_down(self, node: NodeId) -> None:
        self._tell_desk(NodeDown(node))

    def node_running(self, node: NodeId, running: Sequence[RunningReport]) -> None:
        """What `node` itself reports; say it on every change and each second."""
        self._tell_desk(Reported(node, tuple(running)))

    def account(self) -> Account:
        """Every open request known here, each in exactly one number: those of this edge, those the desk was told of,
        and what nodes report beside them."""
        own = self._asker.standings()
        reports = [
            (n, r) for n, r in self._desk.reports() if not self._desk.has_ended(r) and not self._asker.ended(r.id)
        ]
        bound = [s for s in own if s.node is not None]  # This edge knows best what it carries itself,
        return account([*bound, *self._desk_standings({s.id for s in own}), *own], reports)  # the desk all else.

    def _desk_standings(self, own: set[RequestId]) -> Iterator[Standing]:
        for request, known in self._desk.open():
            if known.edge == self._me and request not in own:
                continue  # It is over; the desk hears of it in a moment.
            yield Standing(request, known.attempt, known.node if known.holds else None, known.place is Place.RUNNING)

    def rename(self, me: NodeId, status: NodeStatus, running: Sequence[RunningReport]) -> None:
        """This node has another id, and is alone with it. A new desk begins; it hears of all that is open here as one
        that takes over does, so nothing is lost but what it had learned."""
        assert self._followed.ruling, "only a node that decides alone can change its id"
        self._inbox.clear()
        self._me, self._desk = me, Desk(me, self._settings, self._rng)
        self._asker.rename(me)
        term, self._followed = self._followed.term, Follow(None, 0, ruling=False)
        self.node_up(status)
        self.follow(me, term, ruling=True)
        self.node_running(me, running)

    # Stepping

    def _ask_of(self, event: AskerEvent) -> None:
        for effect in self._asker.step(event, self._loop.time()):
            match effect:
                case Say():
                    self._say(effect)
                case Answer(frame):
                    self._hand_over(frame)
                case Release():
                    self._inbox = deque(f for f in self._inbox if isinstance(f, Queued | Granted | Refused))
                    self._tell_desk(Rule(self._followed.ruling))
        if not self._stepping:
            self._settle()

    def _tell_desk(self, event: DeskEvent) -> None:
        for say in self._desk.step(event, self._loop.time()):
            self._say(say)
        if not self._stepping:
            self._settle()

    def _settle(self) -> None:
        """Frames from this node to itself are heard, the same as over a link, once what brought them is done; and then
        both machines say when they are due. Nearly always all is said in here that a request needs to begin."""
        self._stepping = True
        try:
            while self._inbox:
                self.received(self._me, self._inbox.popleft())
        finally:
            self._stepping = False
        self._wake("asker", self._asker.deadline, self._ask_of)
        self._wake("desk", self._desk.deadline, self._tell_desk)

    def _say(self, say: Say) -> None:
        frame = say.frame
        if say.to == self._me:
            self._inbox.append(frame)
            return
        from_edge = not isinstance(frame, Queued | Granted | Refused)
        sent = self._send(say.to, frame)
        if from_edge and sent and self._asker.unreachable:
            self._loop.call_soon(self._ask_of, LinkBack(say.to))
        elif from_edge and not sent:
            self._loop.call_soon(self._ask_of, LinkLost(say.to, self._lives(say.to)))
        elif not sent:
            self._loop.call_soon(self._tell_desk, EdgeLost(say.to))

    def _hand_over(self, frame: CoordinatorFrame) -> None:
        """To whoever asks now, at once. To any other in its own turn of the loop: no request runs inside another's."""
        attempt, on_answer = self._answers.get(frame.id, (0, None))
        if on_answer is None or attempt != frame.attempt:
            return
        if not isinstance(frame, Queued):
            del self._answers[frame.id]
        if frame.id == self._asking:
            on_answer(frame)
        else:
            self._loop.call_soon(on_answer, frame)

    def _wake(self, name: str, at: float | None, step: Callable[[Tick], None]) -> None:
        """One timer per machine, at its deadline or before it: each request moves that, mostly away again, and a tick
        that comes early is harmless."""
        known = self._timers.get(name)
        if at is None or self._closed or (known is not None and known[0] <= at):
            return
        if known is not None:
            known[1].cancel()
        self._timers[name] = at, self._loop.call_at(at, self._fire, name, step)

    def _fire(self, name: str, step: Callable[[Tick], None]) -> None:
        """The timer is over before its machine says when the next is due: maybe at the same time, as uvloop counts
        whole milliseconds and comes up to half of one early."""
        del self._timers[name]
        step(Tick())
