"""Node a on a made-up clock, with the rules of the names: shared by the tests of mesh/name_rules.py."""

from __future__ import annotations

from election.messages import Role
from mesh.name_events import (
    AskGateway,
    Effect,
    Event,
    Known,
    Opened,
    Ruled,
    Said,
    Swap,
    Tick,
)
from mesh.name_rules import NameRules
from mesh.settings import NameSettings

HOSTS = ("mlx-mesh.local.", "coordinator.local.")
NAME, OTHER = HOSTS
FALLBACK = "mlx-mesh-abcd.local."
S = NameSettings()
L, F, ALONE = Role.COORDINATOR, Role.FOLLOWER, Role.ALONE
NODES = {"b": ("10.0.0.2",), "c": ("10.0.0.3",)}
STRANGER = "10.0.0.99"


class One:
    """Node a, 10.0.0.1, with its clock. `do` steps it; time passes with `let`."""

    def __init__(self, address: str = "10.0.0.1", *, at: float = 100.0) -> None:
        self.now = at
        self.rules = NameRules("a", HOSTS, FALLBACK, S, at)
        self.all: list[tuple[float, Effect]] = []
        self.do(Known((address,), NODES))
        self.do(Opened())

    def do(self, event: Event) -> list[Effect]:
        effects = self.rules.step(event, self.now)
        self.all += [(self.now, e) for e in effects]
        return effects

    def let(self, seconds: float) -> list[Effect]:
        """What it does while nothing happens, beside asking the gateway."""
        end, effects = self.now + seconds, list[Effect]()
        while self.rules.deadline <= end:
            self.now = max(self.now, self.rules.deadline)
            effects += self.do(Tick())
        self.now = end
        return [e for e in effects if e != AskGateway()]

    def coordinator(self, after: str | None = "b") -> One:
        if after is not None:
            self.do(Ruled(F, after))
        self.do(Ruled(L, "a"))
        return self

    def said(self, host: str, address: str, alive: bool = True) -> list[Effect]:
        return self.do(Said(((host, address, alive),)))


def swaps(effects: list[Effect]) -> list[Swap]:
    return [e for e in effects if isinstance(e, Swap)]
