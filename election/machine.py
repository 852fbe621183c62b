"""Election: who coordinates. Every transition is in this file; docs/election.md has the rules, timers and sources.

Nobody votes, because two Macs have no majority and a coordinator holds nothing durable: succession goes by rank with
a skew, a later reign always wins, a silent coordinator is given up only after asking the others, and a node that
hears nobody rules only itself, so a deaf one cannot depose anyone.
"""

from __future__ import annotations

from math import inf
from random import Random
from typing import assert_never

from election.messages import (
    Effect,
    Event,
    Follow,
    Heard,
    Id,
    Kind,
    Leave,
    LinkClosed,
    Message,
    PeerForgotten,
    PeerKnown,
    Rank,
    Reign,
    Remember,
    Retune,
    Role,
    Tick,
)
from election.peers import Peer, Peers, Terms
from election.settings import ElectionSettings
from election.voice import Voice


class Election:
    """One node's part in the election. Wake it with Tick at `deadline`; an early or late wake-up is harmless.

    `boot` is new for each Election ever built (a restarted node must not pass for its former self), `term` the last
    one Remembered. Effects are in order: what is to be kept comes before what is said because of it.
    """

    def __init__(
        self, *, me: Id, boot: str, mesh: str, priority: int, settings: ElectionSettings, term: int, now: float,
        rng: Random,
    ) -> None:  # fmt: skip
        self.me, self.role, self.left = me, Role.FOLLOWER, False
        self.coordinator: Id | None = None
        self.reign = Reign(term)
        self._boot, self._mesh, self._priority = boot, mesh, priority
        self._settings, self._rng = settings, rng
        self._peers = Peers(settings)
        self._voice = Voice(me, boot, mesh, self._peers, settings)
        self._born = self._since = now  # start or last wake, for uptime; when the running reign began, as seen here
        self._heard = self._awake = now  # the coordinator was last heard; start, or end of the last stall
        self._patient = now + settings.listen_s + settings.floor_s  # its silence means nothing before this
        self._suspect: float | None = None  # it has been silent for too long since
        self._asks, self._next_ask = 0, inf
        self._claim: float | None = None  # it is gone, and this is when I take its place
        self._doubt = now  # somebody must have spoken to me since then, or it is I who is deaf
        self._heir: Id | None = None  # I am handing over to it until _handover
        self._handover = 0.0
        self._leaving, self._byes = False, settings.byes
        self._terms = Terms(term, settings)
        self._next_beat = now
        self._why = "started"
        self.deadline = now

    @property
    def term(self) -> int:
        return self.reign.term

    @property
    def alone(self) -> bool:
        return self.role is Role.ALONE

    def vouched(self, now: float) -> bool:
        """The coordinator was heard lately, here or by somebody who says so: nobody is about to succeed it."""
        within_s = self._silence_s() + self._settings.confirm_s
        return self.coordinator is not None and now - self._heard < within_s

    def live(self, now: float) -> list[Id]:
        """Peers heard lately, without this node."""
        return [p.id for p in self._peers.live(now)]

    def rank(self, now: float) -> Rank:
        """This node's own rank."""
        steps = int((now - self._born) // self._settings.uptime_step_s)
        return Rank(not self._peers.call_me_far, self._priority, steps, self.me, self._boot)

    def step(self, event: Event, now: float) -> list[Effect]:
        if self.left:
            return []
        role, coordinator, reign = self.role, self.coordinator, self.reign
        self._voice.out = []
        if now - self.deadline > self._settings.lag_s:
            self._notice_lag(now)
        match event:
            case Heard():
                self._hear(event.message, now)
            case LinkClosed(peer) | PeerForgotten(peer):
                self._lose(peer, isinstance(event, PeerForgotten), now)
            case PeerKnown(peer, far):
                self._peers.know(peer, far)
            case Leave():
                self._leave(now)
            case Retune(priority):
                self._retune(priority, now)
            case Tick():
                pass
            case _:
                assert_never(event)
        self._run_timers(now)
        if self.reign is reign and self.role is role and self.coordinator == coordinator:
            return self._voice.out
        term = self.reign.term
        changes: list[Effect] = [Remember(term)] if term > reign.term else []
        if (role, coordinator, reign.term) != (self.role, self.coordinator, term):
            changes.append(Follow(self.role, self.coordinator, term, self._why))
        return changes + self._voice.out

    # Timers

    def _run_timers(self, now: float) -> None:
        while now >= (due := self._due()):
            if due == self._next_beat:
                self._beat(now)
            elif due == self._claim:
                self._take(now)
            else:
                self._press(now)
        self.deadline = due

    def _due(self) -> float:
        if self.left:
            return inf
        due = self._next_beat
        if self._claim is not None:
            return min(due, self._claim)
        if self.role is not Role.FOLLOWER or self._leaving:
            return due
        if self._suspect is not None:
            return min(due, self._next_ask)
        if self._heard + self._settings.floor_s > due:  # no patience is shorter: this is the usual case, made cheap
            return due
        return min(due, max(self._heard + self._silence_s(), self._patient))

    def _silence_s(self) -> float:
        return self._peers.patience(self.coordinator).silence_s

    def _notice_lag(self, now: float) -> None:
        """A timer this late means I was stalled or asleep: believe no timer, hear what came meanwhile first."""
        late_s = now - self.deadline
        asleep, stalled = late_s > self._settings.wake_s, late_s > self._silence_s()
        if asleep:
            self._born = now
        self._peers.excuse(self.deadline, now)
        self._suspect = self._claim = None
        self._awake, self._patient = now, now + self._settings.listen_s
        if (self.role is Role.COORDINATOR and stalled) or (self.role is Role.ALONE and asleep):
            why = f"{'slept' if asleep else 'was stalled'} {late_s:.1f} s, listening"  # there may be a successor
            self._become(Role.FOLLOWER, None, self.reign, why)

    def _beat(self, now: float) -> None:
        s = self._settings
        self._next_beat += s.bye_gap_s if self._leaving else s.heartbeat_s
        if self._next_beat <= now:  # at the start, and after a stall: the beats of the nodes must not fall together
            self._next_beat = now + s.heartbeat_s * self._rng.uniform(0.5, 1.0)
        if self._leaving and self._heir is None:
            self._say_bye(now)
            return
        self._say("hb", now, paced=True)
        if self.role is not Role.COORDINATOR:
            return
        if not self._peers.live(now):
            self._become(Role.ALONE, self._myself(), self.reign, "hears nobody")
        elif self._heir is not None:
            self._hand_over(now)
        else:
            self._look_for_heir(now)

    # What is heard

    def _hear(self, message: Message, now: float) -> None:
        if message.mesh != self._mesh or message.sender == self.me or not self._peers.hear(message, now):
            return
        if message.reign.term > self._terms.highest and not self._terms.believe(message.reign.term):
            return
        if message.kind == "bye":
            self._peers.gone(message.sender)
            if message.sender == self.coordinator:
                self._give_up("coordinator said goodbye", now)
        elif message.kind == "yield":
            self._accept(message, now)
        elif message.role is Role.COORDINATOR:
            self._hear_coordinator(message, now)
        else:
            self._hear_other(message, now)
        if message.kind == "ask":
            self._answer(message, now)

    def _hear_coordinator(self, message: Message, now: float) -> None:
        """A coordinator speaks: mine, a later one, or one that has been deposed and does not know it."""
        if message.sender == self.coordinator and message.reign == self.reign:
            self._learn(self.coordinator, now)
            self._heard, self._suspect = now, None
        elif message.reign == self.reign and self.role is not Role.COORDINATOR:
            self._follow(message.sender, message.reign, now, now, "coordinator heard again")
        elif message.reign.key() > self.reign.key():
            self._follow(message.sender, message.reign, now, now, f"coordinator of term {message.reign.term} heard")
        elif self.role is Role.COORDINATOR:
            self._say("hb", now, to=message.sender)
        elif self.coordinator is None or self.role is Role.ALONE:  # settle it in a new term; it may renew its own first
            why = f"only a coordinator of an older term is heard ({message.reign.term})"
            self._give_up(why, now, extra_s=self._settings.skew_s)

    def _hear_other(self, message: Message, now: float) -> None:
        """A follower or a lone node speaks: of a coordinator it hears, or of having none."""
        one_mind = message.coordinator == self.coordinator and message.reign == self.reign
        if one_mind and message.role is Role.FOLLOWER and self.role is not Role.ALONE and self._suspect is None:
            return
        lost = message.coordinator is None or message.role is Role.ALONE
        reign, mine = message.reign, message.coordinator == self.me and message.reign == self.reign
        if self.role is Role.ALONE and mine and self._priority > 0:
            self._become(Role.COORDINATOR, self.me, self.reign, "heard by others again")
        elif message.sender == self.coordinator and message.coordinator is None:
            self._give_up("coordinator stepped down", now)
        elif lost and self.role is Role.COORDINATOR and reign.key() > self.reign.key() and self._priority > 0:
            self._take_office(now, f"a node remembers a later term {reign.term}")
        elif lost and self.role is Role.ALONE:
            self._give_up("another node without a coordinator is heard", now)
        elif not lost and message.age_s < self._silence_s() - self._settings.heartbeat_s:
            self._hear_report(message, now)

    def _hear_report(self, message: Message, now: float) -> None:
        """Somebody has just heard a coordinator. The heartbeat that "just" leaves out keeps two nodes from refreshing
        each other's memory of a dead one: a report is younger than that when it arrives, or it is not believed."""
        if message.coordinator is None or message.coordinator == self.me:
            return
        heard, reign = now - message.age_s, message.reign
        if reign == self.reign and message.coordinator == self.coordinator:
            if self._suspect is not None:
                self._heard, self._suspect = max(self._heard, heard), None
        elif reign.key() > self.reign.key() or (reign == self.reign and self.role is Role.ALONE):
            self._follow(message.coordinator, reign, heard, now, f"coordinator of term {reign.term} known to others")

    def _answer(self, message: Message, now: float) -> None:
        """ "Who hears the coordinator?" Itself, or a follower that has."""
        asked = self.coordinator is not None and message.coordinator == self.coordinator
        if asked and not self.alone and (self.coordinator == self.me or now - self._heard < self._silence_s()):
            self._say("alive", now, to=message.sender)

    def _lose(self, peer: Id, forget: bool, now: float) -> None:
        (self._peers.forget if forget else self._peers.gone)(peer)
        if peer == self.coordinator and self.role is Role.FOLLOWER:
            self._peers.failed(self.coordinator, now - self._since)
            self._give_up("coordinator removed" if forget else "coordinator's process ended", now)

    # A coordinator is silent, gone, succeeded

    def _press(self, now: float) -> None:
        """The coordinator is silent for too long: ask the others, then give it up."""
        s = self._settings
        if self.coordinator is None:
            self._give_up("no coordinator heard", now)
        elif self._suspect is None or self._asks < s.asks:
            if self._suspect is None:
                self._suspect, self._asks = now, 0
            self._asks += 1
            self._next_ask = self._suspect + s.confirm_s * self._asks / s.asks
            self._say("ask", now)
        else:
            self._peers.failed(self.coordinator, now - self._since)
            self._give_up(f"coordinator silent {now - self._heard:.2f} s, confirmed", now, doubt=self._suspect)

    def _give_up(self, why: str, now: float, *, doubt: float | None = None, extra_s: float = 0.0) -> None:
        """The coordinator is certainly not there: queue for succession, best rank first."""
        if self._claim is not None or self._leaving:
            return
        self._claim = now + self._peers.turn_s(self.rank(now), self.coordinator, now) + extra_s
        self._doubt = max(now - self._settings.listen_s, self._awake) if doubt is None else doubt
        self._suspect, self._why = None, why
        if self.role is Role.FOLLOWER:
            self.coordinator = None

    def _take(self, now: float) -> None:
        """My turn. Who was spoken to since the doubt began takes over; who was not may be deaf, and rules itself."""
        self._claim, why = None, self._why
        if not any(p.heard > self._doubt for p in self._peers.live(now)):
            self._become(Role.ALONE, self._myself(), self.reign, f"{why}; nobody else is heard")
        elif self._priority > 0:
            self._take_office(now, why)
        else:
            self._stand_by(f"{why}; priority 0 never coordinates", now)

    def _take_office(self, now: float, why: str) -> None:
        reign = Reign(max(self.reign.term, self._terms.highest) + 1, self.rank(now))
        self._since = now
        self._become(Role.COORDINATOR, self.me, reign, why)
        self._say("hb", now)

    def _follow(self, coordinator: Id, reign: Reign, heard: float, now: float, why: str) -> None:
        if reign != self.reign:
            self._since = heard
        else:  # it was given up too early: more patience from now on
            self._learn(coordinator, now)
        self._become(Role.FOLLOWER, coordinator, reign, why)
        self._heard = heard

    def _learn(self, coordinator: Id, now: float) -> None:
        """It was silent until now; a stall of mine in between is not its habit."""
        if self._heard >= self._awake:
            self._peers.patience(coordinator).learn(now - self._heard, now)

    def _become(self, role: Role, coordinator: Id | None, reign: Reign, why: str) -> None:
        self.role, self.coordinator, self.reign, self._why = role, coordinator, reign, why
        self._suspect = self._claim = self._heir = None

    def _myself(self) -> Id | None:
        """Whom a lone node follows: itself, unless it never coordinates."""
        return self.me if self._priority > 0 else None

    # Handing over, leaving

    def _look_for_heir(self, now: float) -> None:
        """A live follower of better priority (or near, where I am far) takes over; uptime or id alone never does."""
        mine, reigned_s = self.rank(now), now - self._since
        better = [
            p
            for p in self._peers.followers(self.me, self.reign, now)
            if ((rank := self._peers.rank(p, now)).near, rank.priority) > (mine.near, mine.priority)
            and min(p.uptime_s(now), reigned_s) >= p.sticky_s
        ]
        self._offer(better, now)

    def _offer(self, heirs: list[Peer], now: float) -> None:
        """Make before break: I go on until the best of them is heard to coordinate."""
        if heirs:
            self._heir = max(heirs, key=lambda p: self._peers.rank(p, now)).id
            self._handover = now + self._settings.handover_s
            self._say("yield", now, to=self._heir)

    def _hand_over(self, now: float) -> None:
        """Repeats the offer until a later reign is heard or its time is over."""
        assert self._heir is not None
        if now < self._handover:
            self._say("yield", now, to=self._heir)
            return
        self._heir, self._since = None, now
        if self._priority == 0:
            self._stand_by("priority 0 never coordinates", now)

    def _accept(self, message: Message, now: float) -> None:
        """Asked to take over, by the coordinator of no older reign than mine."""
        asked = message.role is Role.COORDINATOR and message.reign.key() >= self.reign.key()
        if not asked or self._priority == 0 or self._leaving:
            return
        mine, its = self.rank(now), message.rank
        if mine.near > its.near:
            why = "near goes before far, handed over"
        elif mine.near == its.near and mine.priority > its.priority:
            why = f"priority {mine.priority} > {its.priority}, handed over"
        else:
            why = "the coordinator leaves, handed over"
        self._take_office(now, why)

    def _stand_by(self, why: str, now: float) -> None:
        self._become(Role.FOLLOWER, None, self.reign, why)
        self._patient = now + self._silence_s()

    def _retune(self, priority: int, now: float) -> None:
        self._priority = priority
        if self.role is Role.ALONE:
            self._become(Role.ALONE, self._myself(), self.reign, f"priority is now {priority}")
        elif self.role is Role.COORDINATOR and priority == 0:
            self._offer(self._peers.followers(self.me, self.reign, now), now)
            if self._heir is None:
                self._stand_by("priority 0 never coordinates", now)

    def _leave(self, now: float) -> None:
        if self._leaving:
            return
        self._leaving, self._claim, self._suspect = True, None, None
        if self.role is Role.COORDINATOR and self._heir is None:
            self._offer(self._peers.followers(self.me, self.reign, now), now)
        if self._heir is None:
            self._next_beat = now

    def _say_bye(self, now: float) -> None:
        self._say("bye", now)
        self._byes -= 1
        if self._byes == 0:
            self._become(Role.ALONE, self._myself(), self.reign, "left the mesh")
            self.left = True

    # What is said

    def _say(self, kind: Kind, now: float, *, to: Id | None = None, paced: bool = False) -> None:
        age_s = 0.0 if self.coordinator == self.me else max(0.0, now - self._heard)
        self._voice.say(
            kind, now, to=to, paced=paced, role=self.role, coordinator=self.coordinator, reign=self.reign,
            rank=self.rank(now), uptime_s=now - self._born, age_s=age_s,
        )  # fmt: skip
