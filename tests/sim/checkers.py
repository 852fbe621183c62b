"""What must hold after every step of every node. A ViolationError says what broke, when and where."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from election.messages import Event, Retune, Role
from mesh.events import Down, Gone, Up
from tests.sim.node import Node
from tests.sim.world import Checker, World

REFUSED_S = 0.5  # the longest round trip, and more
NAME_S, FAR_NAME_S = 4.0, 12.0  # to agree, and for the loser to hear the winner's claim
Holder = tuple[str, str]  # machine, boot


class ViolationError(AssertionError):
    """An invariant is broken. `by`: who saw it."""

    def __init__(self, text: str, by: object = "") -> None:
        super().__init__(text)
        self.by = by if isinstance(by, str) else type(by).__name__


class Watcher:
    """Sees everything, minds nothing: what a checker leaves out."""

    def started(self, world: World, node: Node) -> None:
        pass

    def stepped(self, world: World, node: Node, event: Event) -> None:
        pass

    def judged(self, world: World, node: Node, verdict: Up | Down | Gone) -> None:
        pass

    def looked(self, world: World) -> None:
        pass


class OneHolderPerTerm(Watcher):
    """A reign (a term with its holder's rank, which orders two holders of one number) has one holder, for ever;
    a follower's coordinator did hold the reign it is followed in; and priority 0 holds none."""

    def __init__(self) -> None:
        self._holders: dict[object, Holder] = {}
        self._retuned: dict[str, float] = {}

    def started(self, world: World, node: Node) -> None:
        self._retuned.pop(node.name, None)

    def stepped(self, world: World, node: Node, event: Event) -> None:
        if isinstance(event, Retune):
            self._retuned[node.name] = world.now  # from here it may hand over, and stay until its heir is heard
        self._look(world, node)

    def looked(self, world: World) -> None:
        for node in world.nodes.values():
            if node.runs:
                self._look(world, node)

    def _look(self, world: World, node: Node) -> None:
        machine = node.election
        reign = machine.reign
        if machine.role is Role.COORDINATOR:
            me = (node.id, node.boot)
            holder = self._holders.setdefault(reign.key(), me)
            if holder != me:
                raise ViolationError(f"{world.now:.3f}: {me} and {holder} both hold term {reign.term}", self)
            retuned = self._retuned.get(node.name, 0.0)
            if node.priority == 0 and world.now > retuned + world.settings.handover_s + 0.2:
                raise ViolationError(f"{world.now:.3f}: {node.name} coordinates with priority 0", self)
        elif machine.role is Role.FOLLOWER and machine.coordinator is not None:
            known = self._holders.get(reign.key())
            if known is None or known[0] != machine.coordinator:
                raise ViolationError(
                    f"{world.now:.3f}: {node.name} follows {machine.coordinator} in {reign}, held by {known}",
                    self,
                )


class NoTermGoesBack(Watcher):
    """Not within a boot, and not over a restart: it starts from what was Remembered (or lost with the disk)."""

    def __init__(self) -> None:
        self._terms: dict[str, int] = {}

    def started(self, world: World, node: Node) -> None:
        self._terms[node.name] = node.disk_term
        self._look(world, node)

    def stepped(self, world: World, node: Node, event: Event) -> None:
        self._look(world, node)

    def _look(self, world: World, node: Node) -> None:
        term = node.election.term
        if term < self._terms.get(node.name, 0):
            raise ViolationError(
                f"{world.now:.3f}: {node.name} goes back from term {self._terms[node.name]} to {term}", self
            )
        if term > self._terms.get(node.name, 0) and term != node.disk_term:
            raise ViolationError(
                f"{world.now:.3f}: {node.name} is in term {term}, its disk holds {node.disk_term}", self
            )
        self._terms[node.name] = term


class TheDeafDeposeNobody(Watcher):
    """Who takes a term hears somebody at that moment."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Role, int]] = {}

    def started(self, world: World, node: Node) -> None:
        self._last.pop(node.name, None)

    def stepped(self, world: World, node: Node, event: Event) -> None:
        machine = node.election
        now = (machine.role, machine.term)
        if self._last.get(node.name) != now:
            self._last[node.name] = now
            if machine.role is Role.COORDINATOR and not machine.live(node.now):
                raise ViolationError(f"{world.now:.3f}: {node.name} took term {machine.term} and hears nobody", self)


class TheLivingAreNotBuried(Watcher):
    """Membership calls a process gone for certain only when it has ended or left; and it says up and down in turn,
    as those who give out work rely on."""

    def judged(self, world: World, node: Node, verdict: Up | Down | Gone) -> None:
        peer = verdict.node
        if isinstance(verdict, Gone):
            process = node.membership.view().node(peer)
            boot = process.report.boot if process is not None else ""
            just = world.now - REFUSED_S  # who was refused may be told so when another process is there again
            if any(n.id == peer and n.boot == boot and n.born < just and not n.election.left for n in world.up()):
                raise ViolationError(
                    f"{world.now:.3f}: {node.name} calls {peer} gone ({verdict.why}), but it runs", self
                )
        elif isinstance(verdict, Up) == (peer in node.members):
            raise ViolationError(f"{world.now:.3f}: {node.name} says {verdict} of {peer} twice", self)


class TheNameHasOneAnnouncer(Watcher):
    """No two nodes of a site that hear each other answer for one name for longer than it takes to agree and to give
    way: NAME_S, counted anew when they lose each other or stand still. While nobody can coordinate, whoever did goes
    on: clients without an answer would wait for seconds. Clones are to find out about each other first.

    Two hear each other when the network lets them and one knows where the other is. If both got new addresses, or new
    ids, while they were apart, no heartbeat can say that they are together again: that is for mDNS or a third node to
    find out, and there is no promise of how soon (finding is not liveness, mesh/discovery.py)."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}

    def looked(self, world: World) -> None:
        ids = Counter(n.id for n in world.up())
        holders = [n for n in world.up() if n.runs and n.title.answers and n.election.coordinator and ids[n.id] == 1]
        pairs = {
            (a.name, b.name)
            for a, b in combinations(holders, 2)
            if a.site == b.site and set(a.title.answers) & set(b.title.answers) and world.path(a, b)
            if world.addresses(a, b) or world.addresses(b, a)
        }
        self._since = {pair: self._since.get(pair, world.now) for pair in pairs}
        bound_s = NAME_S if len({n.site for n in world.nodes.values()}) == 1 else FAR_NAME_S
        for (a, b), since in self._since.items():
            if world.now - since > bound_s:
                raise ViolationError(
                    f"{world.now:.3f}: {a} and {b} both answer for the name, for {bound_s:.0f} s", self
                )


def all_checkers() -> list[Checker]:
    return [
        OneHolderPerTerm(),
        NoTermGoesBack(),
        TheDeafDeposeNobody(),
        TheLivingAreNotBuried(),
        TheNameHasOneAnnouncer(),
    ]
