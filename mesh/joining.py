"""Which mesh this node belongs to: it founds one, looks for another of its name, joins, waits, merges. Pure.

Every node founds a mesh of its own and calls it founded after a look around. Of two that may be joined the better one
is joined, and that order is total (`rank`), so all end in one: settled before unsettled, then the lower mesh id.
Nodes leave a mesh one by one, each by its own decision; a mesh that a person has accepted somebody into is never left.
"""

from __future__ import annotations

from random import Random
from typing import Literal, TypeAlias, assert_never

from msgspec import Struct

from mesh.join_settings import JoinSettings
from node.types import NodeId

# A mesh as its node says it: founded and not settled; open; open, and not to be left; closed; and a node that waits
# outside of one.
Stance: TypeAlias = Literal["looking", "open", "kept", "closed", "out"]
Outcome: TypeAlias = Literal["joined", "waiting", "busy", "refused", "failed"]
_RANK = {"kept": 0, "open": 1, "looking": 2}


class Sight(Struct, frozen=True, kw_only=True):
    """A node of another mesh of this name, and where it is. `may`: it may be joined by itself: it is near, or a machine
    of the same owner's tailnet, or a person here has named it."""

    node: NodeId
    name: str
    mesh: str
    stance: Stance
    addresses: tuple[str, ...] = ()
    port: int = 4000
    peer_port: int = 4001
    hint: str = ""  # how its certificate's fingerprint begins
    may: bool = True
    by_hand: bool = False  # a person here has named this very node, or a fellow member goes there


class Home(Struct, frozen=True, kw_only=True):
    """This node's own mesh, and how many other members it has. `removed`: it has put this node out."""

    mesh: str
    others: int = 0
    open: bool = True
    kept: bool = False
    removed: bool = False


class Call(Struct, frozen=True):
    """How a join call to `node` ended. `joined` comes as a new Home as well. `revealed`: this node has told its nonce,
    so who answered knows the check number; each such call is one try to meet another number."""

    node: NodeId
    outcome: Outcome
    revealed: bool = False


class Hurry(Struct, frozen=True):
    """That node says that something has changed for this one: it was accepted."""

    node: NodeId


class Stay(Struct, frozen=True):
    """A person wants this mesh as it is: waits for no other one any more."""


class Tick(Struct, frozen=True):
    pass


class Ask(Struct, frozen=True):
    """Make a join call; a Call must come of it."""

    sight: Sight


class Settle(Struct, frozen=True):
    """This founding counts from now on."""

    why: str


Event: TypeAlias = Home | Sight | Call | Hurry | Stay | Tick
Effect: TypeAlias = Ask | Settle


class Waits(Struct, frozen=True):
    """This node waits to be let in by `mesh`; `node` said so, at `at`."""

    mesh: str
    node: NodeId
    at: float


class Joining:
    """One stay with the mesh on. Wake it at `deadline` (seconds on the clock of `now`). `settled`: this mesh was there
    before; a founding that is not looks around first."""

    def __init__(
        self, home: Home, rng: Random, now: float, *, settled: bool = False, settings: JoinSettings | None = None
    ) -> None:
        self._settings, self._rng = settings or JoinSettings(), rng
        self._home, self._since = home, now
        self.settled = settled or home.others > 0
        self._sights: dict[NodeId, Sight] = {}
        self._fails: dict[NodeId, int] = {}
        self._asks: dict[str, int] = {}  # of a mesh: how often it was asked in vain
        self._next: dict[str, float] = {}  # and when it may be asked again
        self._reveals = self._hurries = 0
        self._not_before = now  # calls to others than whom this node waits for
        self._calling: Sight | None = None
        self._calling_until = 0.0
        self._ignored: frozenset[str] = frozenset()  # meshes that a person does not want to wait for
        self.waits: Waits | None = None
        self.deadline: float | None = now

    def step(self, event: Event, now: float) -> list[Effect]:
        """`now` never goes back. Raises nothing."""
        match event:
            case Home():
                self._at_home(event, now)
            case Sight():
                self._sighted(event)
            case Call():
                self._called(event, now)
            case Hurry(node):
                self._hurry(node, now)
            case Stay():
                self._ignored |= {s.mesh for s in self._sights.values()}
                self.waits, self.settled = None, True
            case Tick():
                pass
            case _:
                assert_never(event)
        return self._decide(now)

    # What it is told

    def _at_home(self, home: Home, now: float) -> None:
        if home.mesh != self._home.mesh:
            self.waits, self._since, self.settled = None, now, True
            self._reveals, self._hurries, self._not_before = 0, 0, now
            self._asks.clear()
            self._next.clear()
            self._fails.clear()
        if home.removed and not self._home.removed:
            self._next.pop(home.mesh, None)
            self._asks.pop(home.mesh, None)
        self._home = home
        if home.others and not home.removed:
            self.waits, self.settled = None, True

    def _sighted(self, sight: Sight) -> None:
        before = self._sights.pop(sight.node, None)
        self._sights[sight.node] = sight  # the latest last: the oldest gives way
        if before is None or (before.mesh, before.stance, before.addresses) != (
            sight.mesh, sight.stance, sight.addresses,
        ):  # fmt: skip
            self._fails.pop(sight.node, None)
            if before is not None and sight.stance in _RANK and before.stance not in _RANK:
                self._next.pop(sight.mesh, None)  # its window was opened
        if len(self._sights) > self._settings.sights_max:
            gone = next(iter(self._sights))
            del self._sights[gone]
            self._fails.pop(gone, None)
        for kept in (self._asks, self._next):
            if len(kept) > self._settings.sights_max:
                for mesh in kept.keys() - {s.mesh for s in self._sights.values()}:
                    del kept[mesh]

    def _called(self, call: Call, now: float) -> None:
        sight, self._calling = self._calling, None
        if sight is None or sight.node != call.node:
            self._calling = sight  # one that was given up; its answer comes late
            return
        s, mesh = self._settings, sight.mesh
        if call.revealed:
            self._reveals += 1
            self._not_before = now + min(s.ask_max_s, s.ask_first_s * 2.0 ** min(self._reveals, 10))
        match call.outcome:
            case "joined":
                self._fails.pop(sight.node, None)
            case "waiting":
                self._fails.pop(sight.node, None)
                if sight.stance in _RANK:  # open, but not to this node by that way: another of its nodes may be near
                    self._fails[sight.node] = 1
                self._asks[mesh] = self._asks.get(mesh, 0) + 1
                self._next[mesh] = now + min(s.ask_max_s, s.ask_first_s * 4.0 * 2.0 ** min(self._asks[mesh], 10))
                if not self._home.others or self._home.removed:
                    self.waits, self.settled = Waits(mesh, sight.node, now), self.settled and self._home.removed
            case "busy":
                self._next[mesh] = now + s.busy_s * self._rng.uniform(0.5, 1.0)
            case "refused" | "failed":
                self._fails[sight.node] = self._fails.get(sight.node, 0) + 1
                self._asks[mesh] = self._asks.get(mesh, 0) + 1
                longest_s = min(s.ask_max_s, s.ask_first_s * 2.0 ** min(self._asks[mesh], 10))
                self._next[mesh] = now + longest_s * self._rng.uniform(0.5, 1.0)
            case _:
                assert_never(call.outcome)

    def _hurry(self, node: NodeId, now: float) -> None:
        """Anybody may say so, so it helps a few times only."""
        sight = self._sights.get(node)
        if sight is not None and self._asks.get(sight.mesh, 0) > 0 and self._hurries < self._settings.hurries_max:
            self._hurries += 1
            soon = now + self._settings.busy_s
            self._next[sight.mesh] = min(self._next.get(sight.mesh, now), soon)
            self._not_before = min(self._not_before, soon)  # whom it waits for may be gone by now

    # What it decides

    def _decide(self, now: float) -> list[Effect]:
        s = self._settings
        if self._calling is not None and now >= self._calling_until:
            self._called(Call(self._calling.node, "failed"), now)
        if self.waits is not None and now >= self.waits.at + s.out_kept_s and not self._home.removed:
            self.waits, self._since = None, now  # nobody of that mesh answers any more
        effects: list[Effect] = []
        wanted = self._wanted()
        if self._calling is None and (next_ := self._choice(wanted)) is not None and now >= next_[1]:
            self._calling, self._calling_until = next_[0], now + 2 * s.call_s
            effects.append(Ask(next_[0]))
        if self._may_settle(wanted, now):
            self.settled = True
            effects.append(Settle("no open mesh of this name was seen"))
        self.deadline = self._due_at(wanted, now)
        return effects

    def _may_settle(self, wanted: list[Sight], now: float) -> bool:
        if self.settled or self._home.removed or self.waits is not None or self._calling is not None:
            return False
        hopeful = any(self._fails.get(x.node, 0) < 2 for x in wanted)
        return now >= self._since + self._settings.look_s * (2.0 if hopeful else 1.0)

    def _due_at(self, wanted: list[Sight], now: float) -> float | None:
        s, times = self._settings, list[float]()
        if self._calling is not None:
            times.append(self._calling_until)
        elif (next_ := self._choice(wanted)) is not None:
            times.append(max(now, next_[1]))
        if self.waits is not None and not self._home.removed:
            times.append(self.waits.at + s.out_kept_s)
        elif not self.settled and not self._home.removed and self._calling is None:
            looked = self._since + s.look_s
            times.append(looked if now < looked else self._since + 2 * s.look_s)
        return min(times, default=None)

    def _choice(self, wanted: list[Sight]) -> tuple[Sight, float] | None:
        """Whom to ask next, and when. The best is waited for while it has not failed; else whoever is due first."""
        if not wanted:
            return None
        waits = self.waits.node if self.waits is not None else ""
        first = [self._not_before if x.node != waits else float("-inf") for x in wanted]
        met = self._since + self._settings.meet_s  # one that is founded may be heard until then, and goes before
        first = [max(at, met) if x.stance == "looking" else at for x, at in zip(wanted, first, strict=True)]
        when = [(max(first[i], self._next.get(x.mesh, first[i])), i) for i, x in enumerate(wanted)]
        at, i = when[0] if not self._fails.get(wanted[0].node, 0) else min(when)
        return wanted[i], at

    def _wanted(self) -> list[Sight]:
        """Whom to ask, best first: of those that were asked in vain less often, the best mesh, any of its nodes."""
        home = self._home
        if home.removed:
            found = [x for x in self._sights.values() if x.mesh == home.mesh and x.stance != "out"]
        else:
            found = [x for x in self._sights.values() if self._better(x) or self._asked_for(x)]
            if not found and (not self.settled or (home.open and not home.kept and not home.others)):
                found = [x for x in self._sights.values() if x.may and x.stance == "closed" and x.mesh != home.mesh]
                found = [x for x in found if x.mesh not in self._ignored]
                waits = self.waits.node if self.waits else None
                return sorted(found, key=lambda x: (self._fails.get(x.node, 0), x.node != waits, x.mesh, x.node))
        return sorted(found, key=lambda x: (self._fails.get(x.node, 0), *_rank(x.stance, x.mesh), x.node))

    def _better(self, sight: Sight) -> bool:
        """May it be joined by itself, and is it where both belong?"""
        home = self._home
        if not sight.may or sight.mesh == home.mesh or sight.stance not in _RANK or sight.mesh in self._ignored:
            return False
        if self.waits is not None:
            return sight.stance != "looking"  # that one is about to wait as well
        if not self.settled:
            return _rank(sight.stance, sight.mesh) < _rank("looking", home.mesh)
        return home.open and not home.kept and _rank(sight.stance, sight.mesh) < _rank("open", home.mesh)

    def _asked_for(self, sight: Sight) -> bool:
        """A node that is alone in its mesh goes where a person here has said."""
        lone = not self._home.others and not self._home.kept
        return sight.by_hand and lone and sight.mesh != self._home.mesh and sight.stance != "out"

    # Reading

    @property
    def stance(self) -> Stance:
        """This node's mesh, as others should see it."""
        home = self._home
        if home.removed or self.waits is not None:
            return "out"
        if not self.settled:
            return "looking"
        return "closed" if not home.open else "kept" if home.kept else "open"

    @property
    def calling(self) -> bool:
        """A join call is under way: this node may be gone from its mesh soon, so it lets nobody in."""
        return self._calling is not None

    def sight(self, node: NodeId) -> Sight | None:
        return self._sights.get(node)

    def sights(self) -> list[Sight]:
        return list(self._sights.values())


def _rank(stance: Stance, mesh: str) -> tuple[int, str]:
    return _RANK.get(stance, len(_RANK)), mesh
