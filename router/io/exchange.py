"""One request on its way: reads it, drives its attempts, carries the answer back, and reports what happened, once.

Events step the machine at the place where they happen, mostly in the callbacks of sockets, so that nothing is written
to the client that the machine does not know of. The task of a request waits for its body and for its end.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Callable

from node.continuation import continued
from node.http_reply import Answer
from node.io.calls import Call
from node.io.turn import Incoming, Outgoing
from node.types import NodeId, RequestId, Usage
from router import asked as asking
from router import catalog
from router.attempt_events import (
    AskFor,
    ClientLeft,
    CloseUpstream,
    Comfort,
    Denied,
    Effect,
    Event,
    Fail,
    Finish,
    Hopeless,
    NodeLost,
    Open,
    Placed,
    Tick,
    Unkept,
)
from router.attempts import Attempts
from router.errors import ErrorCode, Refusal, RouterError
from router.events import Request, Why
from router.explain import compact
from router.facts import Mode
from router.frames import CancelAsk, CoordinatorFrame, Done, First, Granted, Queued, Refused, Taken
from router.handover import Handover, Plan
from router.io import envelope
from router.io.carrier import Carrier
from router.io.means import Means
from router.io.record import CLIENT_LEFT, NOBODY, Record
from router.io.replies import Reply, StreamReply, WholeReply
from router.io.said import Said
from router.nesting import Nesting, is_flat

log = logging.getLogger(__name__)
_ids = random.Random()  # noqa: S311 - tells requests apart, keeps no secret; asking the system for each took 2 % of one


class Exchange:
    """One POST to `path` (below /v1), by who brought the key of that name. `run` it once."""

    def __init__(self, means: Means, incoming: Incoming, outgoing: Outgoing, path: str, key: str | None = None) -> None:
        self._means, self._in, self._out, self._path = means, incoming, outgoing, path
        self._settings = means.settings
        self._clock = asyncio.get_running_loop().time
        self._record = Record(RequestId(f"req-{_ids.getrandbits(64):016x}"), self._clock(), key)
        self._ends_at = self._record.began + means.settings.request_timeout_s
        self._body = b""
        self._wanted = catalog.Wanted(())
        self._machine: Attempts | None = None
        self._reply: Reply | None = None

        self._inbox: deque[Event] = deque()
        self._stepping = self._dismissed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf  # the machine's deadline when it was set, which mostly moves away
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handover: Handover | None = None
        self._carrier: Carrier | None = None  # of the attempt that is open

    def node_lost(self, node: NodeId) -> None:
        """Membership says that `node` is dead."""
        self.feed(NodeLost(node))

    def last(self) -> None:
        """The client's next request shall look for another node: its connection closes after this one."""
        self._out.last()

    def dismiss(self) -> None:
        """Its client may not ask any more: it is cut off, and nothing goes on running for it."""
        self._dismissed = True
        self.feed(ClientLeft())

    def headers(self) -> dict[str, str]:
        """Of the response, as far as known: which node answers is certain once its first byte is there."""
        record, machine = self._record, self._machine
        fields = {"x-request-id": str(record.id)}
        if record.first_at is None and record.end is None and record.refusal is None:
            return fields  # the head goes out before anything is certain
        if (explained := self._explained()) is not None:
            fields["x-mesh-decision"] = explained
        if record.first_at is not None and record.granted is not None:
            node = record.granted.node
            fields["x-mesh-node"] = self._means.view().names().get(node, node)
            fields["x-mesh-model"] = record.granted.model
        if machine is not None:
            fields["x-mesh-attempts"] = str(len(machine.facts) + machine.open)
            fields["x-mesh-queue-ms"] = str(round(machine.waited_s * 1e3))
        return fields

    def _explained(self) -> str | None:
        """The decision, when the client wants to know."""
        if self._record.said is None or not self._record.said.explain:
            return None
        why = self._record.why(self._means.view())
        return compact(why.decision, self._settings.explain_limit_bytes) if why is not None else None

    async def run(self, closed: Refusal | None, leaving: Callable[[], Refusal | None]) -> Answer | None:
        """What is still to be sent; None: at most the end of what was. `closed`: it is refused with this, unread;
        `leaving` says so of one that was read.
        Raises nothing but CancelledError. The RouteFact is reported before it returns."""
        record = self._record
        answer: Answer | None = None
        try:
            if closed is not None:
                raise RouterError.of(closed)
            async with self._means.bodies.hold(self._in) as self._body:
                if (late := leaving()) is not None:
                    raise RouterError.of(late)
                answer = await self._run()
        except RouterError as error:
            record.refusal = error.refusal
            answer = envelope.refused(error.refusal, self.headers(), retry_after_s=self._settings.retry_after_s)
        except ConnectionError:
            log.debug("request %s: the client left while it sent the body", record.id)
        except asyncio.CancelledError:
            self.feed(ClientLeft())
            record.status = self._reply.status if self._reply is not None else 0
            raise
        except Exception:
            log.exception("request %s failed in the edge", record.id)
            self.feed(ClientLeft())
            record.defect = True
            answer = None if self._out.status else envelope.defect(self.headers())
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._carrier is not None:
                self._carrier.close()
                self._carrier = None
            if record.kept is not None:
                record.kept.close()
            record.status = record.status or (answer.status if answer is not None else self._out.status or CLIENT_LEFT)
            self._means.report(record.fact(self._means.view(), self._clock()))
            self._let_go()
        return answer

    def _let_go(self) -> None:
        """These hold it as it holds them: but for this, each request would stay until the collector finds it, and
        finding fifty objects a request took it 25 us."""
        self._machine = self._reply = self._carrier = self._handover = self._timer = self._record.kept = None

    async def _run(self) -> Answer | None:
        record = self._record
        self._means.count("client_in", len(self._body))
        record.said = said = Said.of(self._in.head.fields, self._in.client, record.key)
        if said.deadline_s is not None:
            self._ends_at = record.began + min(said.deadline_s, self._settings.request_timeout_s)
        await self._check_depth(said.content_type)
        record.asked = asked = asking.read(self._path, self._body, said.content_type, self._settings.prompt)
        self._wanted = self._want(asked)
        streamed = asked.stream and self._generates
        if streamed:
            self._reply = StreamReply(self._out, self.headers, self._settings, self._means.count)
        else:
            self._reply = WholeReply(self._out, self.headers, self._settings, self._means.count)
        record.kept = self._means.keep.begin(self._unkept)
        self._handover = Handover(record.kept, self._wanted.models, streamed=streamed)
        now = self._clock()
        self._machine = record.machine = Attempts(
            record.id,
            settings=self._settings,
            streamed=streamed,
            deadline_s=self._ends_at - now,
            now=now,
            barred=self._wanted.barred,
        )
        self.feed(ClientLeft() if self._dismissed else Tick())
        await self._over
        return await self._ended(self._reply)

    async def _check_depth(self, content_type: str) -> None:
        """Raises RouterError of a body that nests too deep. Others have their turn while a long one is looked at."""
        limit, body, size = self._settings.json_depth, self._body, self._settings.json_slice_bytes
        if is_flat(body, limit) or asking.is_form(self._path, content_type):
            return
        nesting = Nesting()
        for at in range(0, len(body), size):
            if at:
                await asyncio.sleep(0)
            if nesting.feed(body[at : at + size]) > limit:
                self._means.limited("json_depth")
                raise RouterError(ErrorCode.INVALID_REQUEST, f"the body nests more than {limit} levels deep")

    def _want(self, asked: asking.Asked) -> catalog.Wanted:
        """Raises RouterError: nobody has the model, or can serve this. One whose nodes were lost a short while ago is
        asked for all the same: somebody may come back."""
        try:
            return catalog.wanted(self._means.view(), self._path, asked, self._settings.names_listed)
        except RouterError as error:
            if error.refusal.code not in NOBODY or not self._means.lately.served(asked.model, self._clock()):
                raise
            return catalog.Wanted((asked.model,))

    async def _ended(self, reply: Reply) -> Answer | None:
        """What its end leaves to be said, and waits until that is taken: a client that does not read need not hear."""
        end = self._record.end
        if isinstance(end, Fail):
            try:
                if self._record.first_at is None:
                    self.explain_late()
                if (answer := reply.fail(end.refusal)) is not None:
                    return answer
                async with asyncio.timeout(self._settings.farewell_s):
                    await self._out.drained()
            except (ConnectionError, TimeoutError):
                self._out.abort()
        elif end is None or end.outcome == "cancelled":
            self._out.abort()
        return None

    @property
    def _generates(self) -> bool:
        return self._path in (asking.CHAT, asking.COMPLETIONS)

    # The machine and what it wants done

    def feed(self, event: Event) -> None:
        """Step the machine. What happens because of it (an answer given at once) is stepped after it, not inside."""
        if self._machine is None:
            return
        self._inbox.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._inbox:
                for effect in self._machine.step(self._inbox.popleft(), self._clock()):
                    self._perform(effect)
        except Exception as error:  # noqa: BLE001 - whoever brought the event must not end of it
            self.defect(error)
        finally:
            self._stepping = False
        if not self._machine.over and self._machine.deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = self._machine.deadline
            self._timer = asyncio.get_running_loop().call_at(self._timer_at, self._tick)

    def _tick(self) -> None:
        """May be early, as the deadline may have moved: that is harmless."""
        self._timer, self._timer_at = None, math.inf
        self.feed(Tick())

    def _perform(self, effect: Effect) -> None:
        dispatch = self._means.dispatch
        match effect:
            case AskFor():
                self._ask(effect)
            case Open():
                self._open(effect)
            case CloseUpstream():
                self._close()
            case Taken(id_, attempt):
                dispatch.taken(id_, attempt)
            case First(id_, attempt, cached):
                dispatch.first(id_, attempt, cached)
            case Done(id_, attempt, outcome, usage):
                dispatch.done(id_, attempt, outcome, usage)
            case CancelAsk(id_, attempt):
                dispatch.cancel(id_, attempt)
            case Comfort():
                self._comfort()
            case Finish() | Fail():
                self._close()
                self._record.end = effect
                if not self._over.done():
                    self._over.set_result(None)

    def _ask(self, ask: AskFor) -> None:
        """Ask the coordinator where; of an answer that has begun, where it can go on."""
        plan = Plan(models=self._wanted.models)
        if ask.begun and self._generates:
            assert self._handover is not None
            plan = self._handover.plan(self._means.view(), ask.excluded, ask.cannot, refused=ask.refused)
        if plan.lost is not None:
            self.feed(Hopeless(ask.attempt, plan.lost, plan.why))
            return
        self._record.left_out = plan.left_out
        request = self._placing(ask.excluded, plan)
        age_s = self._clock() - self._record.began
        self._means.dispatch.ask(request, ask.attempt, age_s, ask.last_outcome, self._answered)

    def _placing(self, excluded: tuple[NodeId, ...], plan: Plan) -> Request:
        asked, said = self._record.asked, self._record.said
        assert asked is not None
        assert said is not None
        lengths, model = self._means.lengths, self._wanted.models[0]
        left_s = max(0.0, self._ends_at - self._clock())
        return Request(
            id=self._record.id,
            models=plan.models,
            prompt_tokens=lengths.tokens(model, asked.prompt) + plan.given,
            blocks=asked.prompt.blocks,
            block_tokens=lengths.block_tokens(model),
            whole=asked.prompt.whole,
            follows=asked.prompt.follows,
            max_tokens=max(1, asked.max_tokens - plan.given) if asked.max_tokens else 0,
            client=said.client,
            priority=said.priority,
            deadline=left_s - min(self._settings.placed_ahead_s, left_s / 20),
            excluded=tuple(dict.fromkeys((*excluded, *plan.left_out))),
        )

    def _answered(self, frame: CoordinatorFrame) -> None:
        match frame:
            case Queued():
                return
            case Granted():
                if self._record.end is None:
                    self._record.granted = frame
                    self._decided(frame.why)
                mode: Mode = "start"
                if self._handover is not None and self._handover.begun:
                    mode = self._handover.mode(self._means.view(), frame.node, frame.model)
                self.feed(Placed(frame.attempt, frame.node, frame.model, frame.why, mode))
            case Refused():
                if frame.error.code is ErrorCode.MESH_SATURATED:
                    self._means.limited("queue")
                if self._record.end is None and frame.decision is not None:
                    self._decided(Why(frame.decision))
                self.feed(self._denied(frame))

    def _denied(self, frame: Refused) -> Denied:
        """A coordinator that never met the nodes that had the model does not know its name; this edge does."""
        lately, now, error = self._means.lately, self._clock(), frame.error
        served = next((name for name in self._wanted.models if lately.served(name, now)), None)
        if served is not None and error.code is ErrorCode.MODEL_NOT_FOUND:
            error = catalog.nobody(self._means.view(), served, self._settings.names_listed)
        return Denied(frame.attempt, error, served is not None)

    def _decided(self, why: Why) -> None:
        self._record.decided, self._record.coordinator = why, self._means.view().coordinator

    def explain_late(self) -> None:
        """The head went out before the decision was known."""
        reply = self._reply
        if reply is not None and reply.status and (explained := self._explained()) is not None:
            reply.keep_alive(f": x-mesh-decision {explained}\n\n".encode())

    def defect(self, error: Exception) -> None:
        """Of ours, in a callback: `run` says so."""
        if self._over.done():
            log.error("request %s failed in the edge at its end", self._record.id, exc_info=error)
        else:
            self._over.set_exception(error)

    def _unkept(self, why: str) -> None:
        self.feed(Unkept(why))

    def _comfort(self) -> None:
        assert self._reply is not None
        try:
            self._reply.comfort()
        except ConnectionError:
            self.feed(ClientLeft())

    # Carrying

    def _open(self, opened: Open) -> None:
        asked, said, reply = self._record.asked, self._record.said, self._reply
        assert asked is not None
        assert said is not None
        assert reply is not None
        assert self._handover is not None
        view = self._means.view()
        on = self._handover.continuation if opened.mode == "continue" else None
        assert on is not None or opened.mode != "continue"
        call = Call(
            id=self._record.id,
            attempt=opened.attempt,
            edge=view.self_id,
            model=opened.model,
            path=self._path,
            body=self._body if on is None else continued(self._body, on),
            wants_usage=asked.include_usage or not asked.stream,
            content_type="application/json" if self._generates else said.content_type,
            deadline_s=max(0.001, self._ends_at - self._clock()),
            keep_alive=asked.keep_alive,
            alone=view.alone,
            resumes=on is not None,
        )
        self._carrier = carrier = Carrier(
            self, self._means, opened, record=self._record, handover=self._handover, reply=reply
        )
        if isinstance(reply, WholeReply) and not self._generates:
            carrier.post(call, reply)
        else:
            carrier.stream(call)

    def _close(self) -> None:
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.close()

    def learn(self, served: str, usage: Usage) -> None:
        """How long the prompt really was, under the name asked for and the one that answered."""
        assert self._record.asked is not None
        for name in {self._wanted.models[0], served}:
            self._means.lengths.learn(name, self._record.asked.prompt, usage.prompt)
