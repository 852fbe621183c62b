"""Who holds the coordinator's host names: when to ask, claim, say again, give way. Pure; docs/wire.md has the reasons.

In mDNS the last announcer wins. So only a coordinator contradicts, and a moment later, when it is known whether it is
one still; whoever lost the name stays silent, answers until the winner is heard, and says no goodbye.
"""

from __future__ import annotations

from math import inf
from typing import assert_never

from election.messages import Role
from mesh import name_events
from mesh.settings import NameSettings


class NameRules:
    """One node's part. Wake it with Tick at `deadline`; early is harmless, and a late one says nothing it had planned.

    `hosts` are the names of this mesh, the one for people first; `fallback` stands in for that one while another mesh
    has it. `held`: what this node answers for now, the name for people first; () for none.
    """

    def __init__(self, me: str, hosts: tuple[str, ...], fallback: str, settings: NameSettings, now: float) -> None:
        self._me, self._hosts, self._fallback, self._settings = me, hosts, fallback, settings
        self.held: tuple[str, ...] = ()
        self.deadline = now
        self._role, self._may, self._open = Role.FOLLOWER, False, False
        self._before: str | None = None  # the last other coordinator
        self._mine: tuple[str, ...] = ()
        self._former: set[str] = set()  # addresses of mine that are gone
        self._nodes: dict[str, tuple[str, ...]] = {}
        self._rivals: dict[str, float] = {}
        self._heard: dict[str, dict[str, float]] = {host: {} for host in (*hosts, fallback)}  # host -> address -> when
        self._ceded: dict[str, int] = {}  # names that strangers have -> questions in a row they left unanswered
        self._claimed_at = self._defended_at = -inf
        self._asked_at: float | None = None
        self._alone_at = self._foreign_at = self._gateway_at = -inf
        self._says: list[float] = []  # when to say it again, the next first
        self._contest_at = self._cede_at = self._drop_at = inf
        self._again_at = self._probe_at = now  # the next question for the names, and for the gateway
        self._out: list[name_events.Effect] = []

    def step(self, event: name_events.Event, now: float) -> list[name_events.Effect]:
        self._out = []
        if now - self.deadline > self._settings.late_s and (self._says or self._contest_at < inf):
            # Stalled: somebody may have taken over meanwhile.
            self._says, self._contest_at = [], now + self._settings.contest_s
        match event:
            case name_events.Ruled():
                self._rule(event, now)
            case name_events.Known(mine, nodes):
                self._know(mine, dict(nodes), now)
            case name_events.Opened():
                self._reopen(now)
            case name_events.Said(records):
                self._hear(records, now)
            case name_events.Rival(node):
                self._see_rival(node, now)
            case name_events.Foreign(at):
                self._foreign_at = max(self._foreign_at, at)
            case name_events.GatewayAnswered():
                self._gateway_at = now
            case name_events.Tick():
                pass
            case _:
                assert_never(event)
        self._settle(now)
        self.deadline = self._due(now)
        return self._out

    @property
    def ceded(self) -> bool:
        """Another mesh, or another machine, has the name for people."""
        return self._hosts[0] in self._ceded

    def deaf(self, now: float) -> bool:
        """Alone, and nothing shows that the network is heard: the names are not for this node."""
        return self._may and self._role is Role.ALONE and not self.held and not self._hears(now)

    # What happens

    def _rule(self, ruled: name_events.Ruled, now: float) -> None:
        s, was = self._settings, self._role
        self._role = ruled.role
        self._may = ruled.role is not Role.FOLLOWER and ruled.coordinator == self._me
        if ruled.coordinator not in (None, self._me):
            self._before = ruled.coordinator
        self._drop_at = inf
        if not self._may:
            self._asked_at, self._says, self._contest_at, self._cede_at = None, [], inf, inf
            if self.held and ruled.coordinator is not None:
                self._drop_at = now + s.lost_s
        elif ruled.role is Role.ALONE:
            self._says, self._contest_at = [], inf
            self._alone_at = self._probe_at = self._again_at = now
        elif was is not Role.COORDINATOR:
            self._again_at = now
            if self.held:
                self._announce(now)
            elif self._open and self._mine and (self._before or any(map(self._friends, self._heard))):
                self._claim(now)  # it is known whose the name was: no question first

    def _know(self, mine: tuple[str, ...], nodes: dict[str, tuple[str, ...]], now: float) -> None:
        if mine != self._mine:
            if self._mine:
                self._probe_at = now
                self._gateway_at = -inf
            self._former = (self._former | set(self._mine)) - set(mine)
            self._mine = mine
            if self.held and mine:
                self._out.append(name_events.Claim(self.held))
            elif self.held:
                self._let_go("this node has no address", now)
        self._nodes = nodes
        for host in [h for h in self._ceded if not self._strangers(h)]:
            del self._ceded[host]

    def _reopen(self, now: float) -> None:
        """The sockets are new, and while they were gone anything may have happened."""
        self._open, self._again_at = True, now
        if self.held and self._may and self._role is Role.COORDINATOR:
            self._out.append(name_events.Claim(self.held))
            self._contest_at = now + self._settings.contest_s
        elif self.held:
            if self._is_alone:
                self._alone_at = self._probe_at = now
            self._let_go("the network was gone for a while", now)

    def _hear(self, records: tuple[tuple[str, str, bool], ...], now: float) -> None:
        claims = []
        for host, address, alive in records:
            known = self._heard.get(host)
            if known is None or address in self._mine:
                continue
            known.pop(address, None)
            if alive:
                if len(known) >= self._settings.owners_max:
                    known.pop(next(iter(known)))
                known[address] = now
                claims.append((host, address))
        for host, address in claims:
            if host not in self.held:
                continue
            if self._is_friend(address):
                self._hear_friend(address, now)
            elif self._may:
                self._cede_at = min(self._cede_at, now + self._settings.cede_s)

    def _hear_friend(self, address: str, now: float) -> None:
        """Another node of this mesh announces or answers a name that I hold."""
        s = self._settings
        if not self._may:
            self._let_go("its successor has it", now)
        elif self._role is Role.COORDINATOR:
            self._contest_at = min(self._contest_at, now + s.contest_s)
        elif min(self._mine) > address or now - self._claimed_at > 2 * s.question_s:
            self._let_go("another node of this mesh answers for it", now)
            self._again_at = now + s.again_soon_s

    def _see_rival(self, node: str, now: float) -> None:
        if self._role is not Role.COORDINATOR or not self.held:
            return
        seen = self._rivals.pop(node, -inf)
        self._rivals = {node: now, **dict(list(self._rivals.items())[: self._settings.owners_max])}
        if now - seen > self._settings.rival_s:
            self._contest_at = min(self._contest_at, now + self._settings.contest_s)

    # What follows from it

    def _settle(self, now: float) -> None:
        s = self._settings
        if now >= self._probe_at:
            self._out.append(name_events.AskGateway())
            known = self._gateway_at > -inf
            self._probe_at = now + (s.gateway_every_s if self._is_alone else inf if known else s.gateway_again_s)
        if not (self._open and self._mine):
            return
        if not self._may:
            if self.held and now >= self._drop_at:
                self._let_go("it has a successor", now)
        elif self._is_alone and not (self._keeps(now) if self.held else self._hears(now)):
            self._asked_at = None
            if self.held:
                self._let_go("nothing is heard from this network", now)
        else:
            self._own(now)

    def _own(self, now: float) -> None:
        """The names are for this node: find out whether they are free, hold them, say so."""
        if self._asked_at is not None and now >= self._asked_at + self._settings.question_s:
            self._conclude(self._asked_at, now)
        if self._asked_at is None and now >= self._again_at:
            self._ask(now)
        if now >= self._cede_at:
            self._contest_strangers(now)
        if self.held and self._names() != self.held:
            self._hold(now)
        if now >= self._contest_at:
            self._announce(now)
        if self._says and now >= self._says[0]:
            self._says = [at for at in self._says if at > now]
            self._swap()

    def _ask(self, now: float) -> None:
        """For the names before the first claim, later for those that strangers have."""
        hosts = tuple(self._ceded) if self.held else self._hosts
        self._again_at = inf
        if hosts:
            self._asked_at = now
            self._out.append(name_events.Ask(hosts))

    def _conclude(self, asked_at: float, now: float) -> None:
        """The time for answers is over."""
        s, self._asked_at = self._settings, None
        answered = any(at >= asked_at for host in self._hosts for at in self._friends(host).values())
        if not self.held and self._is_alone and answered:
            self._again_at = now + s.again_soon_s
            return
        if not self.held:
            self._claim(now)
            return
        for host in list(self._ceded):
            quiet = all(at < asked_at for at in self._strangers(host).values())
            self._ceded[host] = self._ceded[host] + 1 if quiet else 0
            if self._ceded[host] >= s.questions:
                self._forget_strangers(host)
                del self._ceded[host]
        self._again_later(now)

    def _again_later(self, now: float) -> None:
        s = self._settings
        if self._ceded:
            self._again_at = now + (s.again_soon_s if any(self._ceded.values()) else s.again_s)

    def _claim(self, now: float) -> None:
        self._asked_at, self._cede_at = None, inf
        self._ceded = {host: 0 for host in self._hosts if self._strangers(host)}
        self._hold(now)
        self._again_at = inf
        if self._ceded:  # what was heard of them may be long ago
            self._again_at = now + self._settings.again_soon_s

    def _hold(self, now: float) -> None:
        self.held, self._claimed_at = self._names(), now
        self._out.append(name_events.Claim(self.held))
        self._announce(now)

    def _names(self) -> tuple[str, ...]:
        """What is this mesh's: the fallback while it is needed, and as long as clients may know it."""
        free = tuple(host for host in self._hosts if host not in self._ceded)
        if self.ceded:
            return (self._fallback, *free)
        known = self._fallback in self.held or self._friends(self._fallback)
        return (*free, self._fallback) if known else free

    def _contest_strangers(self, now: float) -> None:
        """Two meshes hold one name (RFC 6762 section 9): the lower address says it once more, the other gives way; so
        does the lower one when that was not heeded."""
        s, self._cede_at = self._settings, inf
        defends = now - self._defended_at > s.defend_s
        for host in [h for h in self._hosts if h in self.held]:
            if not (strangers := self._strangers(host)):
                continue
            if defends and min(self._mine) < min(strangers):
                self._defended_at = now
                self._forget_strangers(host)
                self._announce(now)
            else:
                self._ceded[host] = 0
                self._again_later(now)

    def _announce(self, now: float) -> None:
        """From now on, several times: multicast is lost at times, on Wi-Fi above all."""
        self._says = [now + at for at in self._settings.swap_at_s]
        self._contest_at = inf

    def _swap(self) -> None:
        gone = {*self._nodes.get(self._before or "", ()), *self._former}
        for node in self._rivals:
            gone.update(self._nodes.get(node, ()))
        for host in self._heard:
            gone.update(self._friends(host))
        self._out.append(name_events.Swap(self.held, tuple(sorted(gone - set(self._mine)))))
        if not self._says:  # the last of the series
            self._former.clear()
            self._rivals.clear()
            for host, known in self._heard.items():
                self._heard[host] = {a: at for a, at in known.items() if not self._is_friend(a)}

    def _let_go(self, why: str, now: float) -> None:
        self.held, self._says = (), []
        self._contest_at = self._cede_at = self._drop_at = inf
        self._asked_at, self._again_at = None, now
        self._out.append(name_events.Release(why))

    # What is known

    @property
    def _is_alone(self) -> bool:
        return self._may and self._role is Role.ALONE

    def _hears(self, now: float) -> bool:
        """Since it is alone something came from outside, a moment ago. Where no gateway ever answered, what came
        before counts too: two Macs on one cable have nobody else to ask."""
        s, last = self._settings, max(self._foreign_at, self._gateway_at)
        if last >= self._alone_at - s.fresh_s:
            return now - last <= s.heard_s
        return self._gateway_at == -inf and now - self._foreign_at <= s.heard_s

    def _keeps(self, now: float) -> bool:
        """Who has the names when it is left alone keeps them, but not where the gateway has fallen silent."""
        return (
            self._gateway_at == -inf
            or now - max(self._alone_at, self._foreign_at, self._gateway_at) <= self._settings.heard_s
        )

    def _is_friend(self, address: str) -> bool:
        return any(address in addresses for addresses in self._nodes.values())

    def _friends(self, host: str) -> dict[str, float]:
        return {a: at for a, at in self._heard[host].items() if self._is_friend(a)}

    def _strangers(self, host: str) -> dict[str, float]:
        return {a: at for a, at in self._heard[host].items() if not self._is_friend(a)}

    def _forget_strangers(self, host: str) -> None:
        self._heard[host] = self._friends(host)

    def _due(self, now: float) -> float:
        if not (self._open and self._mine):
            return self._probe_at
        if not self._may:
            return min(self._probe_at, self._drop_at)
        due = min([self._probe_at, self._cede_at, self._contest_at, *self._says[:1]])
        if self._is_alone and self.held and self._gateway_at > -inf:
            due = min(due, max(self._foreign_at, self._gateway_at, self._alone_at) + self._settings.heard_s + 0.001)
        if self._asked_at is not None:
            return min(due, self._asked_at + self._settings.question_s)
        return min(due, self._again_at) if self.held or not self._is_alone or self._hears(now) else due
