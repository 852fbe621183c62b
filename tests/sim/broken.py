"""Rules of the machine broken on purpose, one at a time: what a checker is worth shows in who catches them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from election.machine import Election
from election.messages import Message, Role
from election.settings import ElectionSettings
from tests.sim import runs
from tests.sim.checkers import ViolationError
from tests.sim.runs import Setup

SETTINGS = ElectionSettings()


class DeafUsurper(Election):
    """Who is spoken to by nobody takes over all the same."""

    def _take(self, now: float) -> None:
        self._claim = None
        self._take_office(now, self._why)


class Follower(Election):
    """Any coordinator that is heard is followed, of an older reign too."""

    def _hear_coordinator(self, message: Message, now: float) -> None:
        if self.role is not Role.COORDINATOR and message.reign != self.reign:
            self._follow(message.sender, message.reign, now, now, "heard")
        else:
            super()._hear_coordinator(message, now)


class Forgetful(Election):
    """The term on disk is not read at the start."""

    def __init__(self, *, term: int, **others: Any) -> None:
        super().__init__(term=0, **others)


class Immortal(Election):
    """Priority 0 takes over like any other."""

    def __init__(self, *, priority: int, **others: Any) -> None:
        super().__init__(priority=priority or 1, **others)


def _chaos(seed: int, setup: Setup) -> None:
    runs.chaos(seed, setup=setup)


def _quiet(seed: int, setup: Setup) -> None:
    runs.quiet(seed, "deaf", 5, 0.5, setup=setup)


@dataclass(frozen=True)
class Broken:
    """A rule, how it is broken, and the run that should show it."""

    rule: str
    election: type[Election] = Election
    settings: ElectionSettings = SETTINGS
    run: Callable[[int, Setup], None] = _chaos


RULES = (
    Broken("who hears nobody rules only itself", DeafUsurper),
    Broken("a later reign wins", Follower),
    Broken("a term is kept over a restart", Forgetful),
    Broken("priority 0 never coordinates", Immortal),
    Broken("suspicion adapts to the longest gap", settings=ElectionSettings(gap_factor=0.01), run=_quiet),
)


@dataclass(frozen=True)
class Caught:
    """`seeds` were run until one was violated; None: none was. `by` the checker, `what` it said."""

    rule: str
    by: str
    what: str
    seeds: int | None


def catch(broken: Broken, seeds_max: int = 200) -> Caught:
    for seed in range(seeds_max):
        try:
            broken.run(seed, Setup(broken.election, broken.settings))
        except ViolationError as error:
            return Caught(broken.rule, error.by, str(error), seed + 1)
    return Caught(broken.rule, "", "", None)
