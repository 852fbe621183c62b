"""What must hold after every step of every node. A ViolationError says what broke, when and where."""

from __future__ import annotations

from election.messages import Event, Retune, Role
from tests.sim.world import Node, World

Holder = tuple[str, str]  # node, boot


class ViolationError(AssertionError):
    """An invariant is broken."""


class OneHolderPerTerm:
    """A reign (a term with its holder's rank, which orders two holders of one number) has one holder, for ever;
    and a follower's coordinator did hold the reign it is followed in."""

    def __init__(self) -> None:
        self._holders: dict[object, Holder] = {}
        self._retuned: dict[str, float] = {}

    def started(self, world: World, node: Node) -> None:
        self._retuned.pop(node.id, None)

    def stepped(self, world: World, node: Node, event: Event) -> None:
        machine = node.machine
        reign = machine.reign
        if isinstance(event, Retune):
            self._retuned[node.id] = world.now  # from here it may hand over, and stay until its heir is heard
        if machine.role is Role.COORDINATOR:
            me = (node.id, f"boot {node.boots}")
            holder = self._holders.setdefault(reign.key(), me)
            if holder != me:
                raise ViolationError(f"{world.now:.3f}: {me} and {holder} both hold term {reign.term}")
            retuned = self._retuned.get(node.id, 0.0)
            if machine.rank(world.now).priority == 0 and world.now > retuned + world.settings.handover_s + 0.2:
                raise ViolationError(f"{world.now:.3f}: {node.id} coordinates with priority 0")
        elif machine.role is Role.FOLLOWER and machine.coordinator is not None:
            known = self._holders.get(reign.key())
            if known is None or known[0] != machine.coordinator:
                raise ViolationError(
                    f"{world.now:.3f}: {node.id} follows {machine.coordinator} in {reign}, held by {known}"
                )


class NoTermGoesBack:
    """Not within a boot, and not over a restart: it starts from what was Remembered."""

    def __init__(self) -> None:
        self._terms: dict[str, int] = {}

    def started(self, world: World, node: Node) -> None:
        self.stepped(world, node, None)

    def stepped(self, world: World, node: Node, event: Event | None) -> None:
        term = node.machine.term
        if term < self._terms.get(node.id, 0):
            raise ViolationError(f"{world.now:.3f}: {node.id} goes back from term {self._terms[node.id]} to {term}")
        if term != node.disk_term:
            raise ViolationError(f"{world.now:.3f}: {node.id} is in term {term}, its disk holds {node.disk_term}")
        self._terms[node.id] = term


class TheDeafDeposeNobody:
    """Who takes a term hears somebody at that moment."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Role, int]] = {}

    def started(self, world: World, node: Node) -> None:
        self._last.pop(node.id, None)

    def stepped(self, world: World, node: Node, event: Event) -> None:
        machine = node.machine
        now = (machine.role, machine.term)
        if self._last.get(node.id) != now:
            self._last[node.id] = now
            if machine.role is Role.COORDINATOR and not machine.live(world.now):
                raise ViolationError(f"{world.now:.3f}: {node.id} took term {machine.term} and hears nobody")


def all_checkers() -> list[OneHolderPerTerm | NoTermGoesBack | TheDeafDeposeNobody]:
    return [OneHolderPerTerm(), NoTermGoesBack(), TheDeafDeposeNobody()]
