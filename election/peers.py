"""What is known of each peer, and how long a silence is normal. Bookkeeping only: machine.py decides."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf

from msgspec.structs import replace

from election.messages import Id, Message, Rank, Reign, Role
from election.settings import ElectionSettings

TERM_MAX = 2**53  # a later one is nonsense: a mesh that elects each second needs 285 million years for it


class Peer:
    """One peer. `heard` when its last message came (-inf: never, or it is gone)."""

    __slots__ = ("boot", "born", "far", "heard", "id", "known", "message", "next_beat", "seq", "sticky_s")

    def __init__(self, peer: Id, sticky_s: float) -> None:
        self.id, self.sticky_s = peer, sticky_s
        self.known = self.far = False
        self.heard, self.next_beat = -inf, -inf
        self.message: Message | None = None
        self.boot, self.seq, self.born = "", 0, -inf

    @property
    def distant(self) -> bool:
        """One of us regards the other as another site: slower heartbeats both ways."""
        return self.far or (self.message is not None and self.message.far)

    def rank(self, now: float, step_s: float) -> Rank:
        """As it would say now, but behind the near ones if we added it. Only for a peer that was heard."""
        assert self.message is not None
        rank, steps = self.message.rank, int(self.uptime_s(now) // step_s)
        near = rank.near and not self.far
        return rank if (near, steps) == (rank.near, rank.uptime_steps) else replace(rank, near=near, uptime_steps=steps)

    def uptime_s(self, now: float) -> float:
        return now - self.born

    def accepts(self, message: Message, silent_before: float) -> bool:
        """Of a datagram that is not simply the next one: it was repeated or overtaken, or comes from another boot. Of
        a restart the former one is silent; of a clone it must not be disturbed. So who has been silent that long may
        say anything, also because a forged number or boot would else silence it for ever; but not who is gone."""
        silent = self.heard < silent_before
        return silent and (message.boot != self.boot or self.heard > -inf)


def plausible(message: Message) -> bool:
    """What its sender can mean: times are finite and not negative, a coordinator coordinates in its own reign."""
    m, rank = message, message.rank
    if not (0.0 <= m.uptime_s < inf and 0.0 <= m.age_s < inf and 0 <= m.reign.term < TERM_MAX):
        return False
    if rank.id != m.sender or rank.boot != m.boot:
        return False
    if m.role is not Role.COORDINATOR:
        return True
    holder = m.reign.rank
    return m.coordinator == m.sender and holder is not None and holder.id == m.sender and holder.boot == m.boot


class Terms:
    """The latest term heard of. Terms grow by one: one far ahead is somebody's invention, and believing it once could
    use up the numbers. Should it be true after all, it is heard again and again, and each time comes within reach."""

    def __init__(self, term: int, settings: ElectionSettings) -> None:
        self.highest, self._jump = term, settings.term_jump
        self._credible = term + self._jump

    def believe(self, term: int) -> bool:
        if term > self._credible:
            self._credible += self._jump
            return False
        if term > self.highest:
            self.highest, self._credible = term, max(self._credible, term + self._jump)
        return True


class Patience:
    """Adaptive suspicion: how long this coordinator may be silent, learned from its longest recent gap."""

    def __init__(self, settings: ElectionSettings, *, far: bool) -> None:
        self._factor, self._memory_s = settings.gap_factor, settings.gap_memory_s
        self._beat_s = settings.far_heartbeat_s if far else settings.heartbeat_s
        self._floor_s = settings.far_floor_s if far else settings.floor_s
        self._cap_s = settings.far_cap_s if far else settings.cap_s
        self._small_s = (self._floor_s - self._beat_s) / self._factor  # a gap that teaches nothing
        self._gaps: deque[tuple[float, float]] = deque()  # (when, gap), gaps falling: the first is the longest
        self.silence_s = self._floor_s

    def learn(self, gap_s: float, now: float) -> None:
        """Two messages came `gap_s` apart, the second one now."""
        gaps, old = self._gaps, now - self._memory_s
        if gap_s < self._small_s:
            if not gaps or gaps[0][0] >= old:
                return  # the usual case
        elif gap_s <= self._cap_s:  # a longer one is an outage, not this network's habit
            while gaps and gaps[-1][1] <= gap_s:
                gaps.pop()
            gaps.append((now, gap_s))
        while gaps and gaps[0][0] < old:
            gaps.popleft()
        longest_s = gaps[0][1] if gaps else 0.0
        self.silence_s = min(self._cap_s, max(self._floor_s, self._factor * longest_s + self._beat_s))


class Peers:
    """All peers, at most `peers_max`. Iterates over those known or heard."""

    def __init__(self, settings: ElectionSettings) -> None:
        self._settings = settings
        self._all: dict[Id, Peer] = {}
        self._near, self._far = Patience(settings, far=False), Patience(settings, far=True)
        self._calling: set[Id] = set()  # peers that say this node is far

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._all.values())

    def get(self, peer: Id | None) -> Peer | None:
        return self._all.get(peer) if peer is not None else None

    def know(self, peer: Id, far: bool) -> None:
        entry = self._all.get(peer) or self._admit(peer, inf)
        if entry is not None:
            entry.known, entry.far = True, far

    def forget(self, peer: Id) -> None:
        self._all.pop(peer, None)
        self._calling.discard(peer)

    def hear(self, message: Message, now: float) -> bool:
        """Takes the message in; False if it is to be dropped (nonsense, repeated, overtaken, one stranger too many)."""
        if not plausible(message):
            return False
        peer = self._all.get(message.sender) or self._admit(message.sender, now)
        if peer is None:
            return False
        if message.boot != peer.boot or message.seq <= peer.seq:
            if not peer.accepts(message, now - self._live_s(distant=peer.distant)):
                return False
            peer.boot = message.boot
        if message.far != (peer.id in self._calling):
            (self._calling.add if message.far else self._calling.discard)(peer.id)
        peer.message, peer.seq, peer.heard, peer.born = message, message.seq, now, now - message.uptime_s
        return True

    def gone(self, peer: Id) -> None:
        """It is not live until it is heard again."""
        if peer in self._all:
            self._all[peer].heard = -inf

    def failed(self, peer: Id | None, reigned_s: float) -> None:
        """That coordinator failed: soon after taking over doubles what it must wait for before the next handover."""
        entry, s = self.get(peer), self._settings
        if entry is not None:
            soon = reigned_s < s.failed_within_s
            entry.sticky_s = min(s.sticky_max_s, 2 * entry.sticky_s) if soon else s.sticky_s

    def excuse(self, since: float, now: float) -> None:
        """This node was stalled since `since`: whoever was live then gets a moment to be heard again."""
        for peer in self.live(since):
            peer.heard = max(peer.heard, now - self._settings.listen_s / 2)

    def live(self, now: float) -> list[Peer]:
        """Heard within max(live_s, suspicion)."""
        near, far = now - self._live_s(distant=False), now - self._live_s(distant=True)
        return [p for p in self._all.values() if p.heard > (far if p.distant else near)]

    def _live_s(self, *, distant: bool) -> float:
        return max(self._settings.live_s, (self._far if distant else self._near).silence_s)

    def followers(self, me: Id, reign: Reign, now: float) -> list[Peer]:
        """Live peers that could succeed this coordinator: they hear it, follow it, and have a priority."""
        return [
            p
            for p in self.live(now)
            if (m := p.message) and m.coordinator == me and m.reign == reign and m.rank.priority > 0
        ]

    def rank(self, peer: Peer, now: float) -> Rank:
        return peer.rank(now, self._settings.uptime_step_s)

    def turn_s(self, mine: Rank, but: Id | None, now: float) -> float:
        """Seconds to leave to the live peers that go before `mine` in the succession of `but`; those on another
        site speak less often."""
        s = self._settings
        better = [p for p in self.live(now) if p.id != but and (r := self.rank(p, now)).priority > 0 and r > mine]
        return sum(s.skew_s + (s.far_heartbeat_s if p.distant else 0.0) for p in better)

    def patience(self, peer: Id | None) -> Patience:
        """How silent `peer` may be; None: as a near node."""
        entry = self.get(peer)
        return self._far if entry is not None and entry.distant else self._near

    @property
    def distant(self) -> bool:
        """Some peer is on another site."""
        return bool(self._calling) or any(p.far for p in self._all.values())

    @property
    def call_me_far(self) -> bool:
        """Some peer added this node: this side ranks last."""
        return bool(self._calling)

    def _admit(self, peer: Id, now: float) -> Peer | None:
        if len(self._all) >= self._settings.peers_max:
            old = now - self._settings.forget_s
            self._all = {p.id: p for p in self._all.values() if p.known or p.heard > old}
            self._calling &= self._all.keys()
            if len(self._all) >= self._settings.peers_max:
                return None
        return self._all.setdefault(peer, Peer(peer, self._settings.sticky_s))
