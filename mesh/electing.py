"""One node's election at work: its messages, its term on disk, and who must hear of a change. Nothing is decided here;
election/machine.py does that."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from election.machine import Election
from election.messages import Effect, Event, Follow, Leave, Remember, Role, Send, Tick
from election.peers import TERM_MAX
from election.settings import ElectionSettings
from mesh import clock
from mesh.driver import Driver
from mesh.files import read_or_set_aside
from mesh.log import event as log_event
from node.types import NodeId

if TYPE_CHECKING:
    from mesh.daemon import Daemon

_log = logging.getLogger("mesh.election")


class Electing:
    """One stay in the mesh. `ruled` is what the election said last; `changed(ruled)` is called when that differs;
    `late(seconds)` as Driver's."""

    def __init__(
        self,
        daemon: Daemon,
        *,
        rng: random.Random,
        send: Callable[[Send], None],
        changed: Callable[[Follow], None],
        failed: Callable[[Exception], None],
        late: Callable[[float], None],
    ) -> None:
        self._daemon, self._send, self._changed = daemon, send, changed
        self._election = Election(
            me=daemon.id,
            boot=daemon.boot,
            mesh=daemon.config.mesh_name,
            priority=daemon.config.mesh_priority,
            settings=ElectionSettings(),
            term=self._term_on_disk(),
            now=clock.now(),
            rng=rng,
        )
        self._driver: Driver[Event, Effect] = Driver(
            self._election, Tick(), self._perform, failed=failed, stepped=self._look, late=late
        )
        self._left = asyncio.Event()
        self.ruled = Follow(self._election.role, None, self._election.term, "started")

    def tell(self, event: Event) -> None:
        self._driver.tell(event)

    async def leave(self) -> None:
        """Hands over, if this node coordinates, and says goodbye. Returns when that is said."""
        self.tell(Leave())
        await self._left.wait()

    def close(self) -> None:
        self._driver.close()

    @property
    def rules(self) -> bool:
        """This node decides: as coordinator, or because it hears nobody."""
        return self.ruled.role is not Role.FOLLOWER

    @property
    def left(self) -> bool:
        """It said goodbye: what it says from now on is of no consequence to others."""
        return self._election.left

    @property
    def vouched(self) -> bool:
        """The coordinator is heard, here or by others."""
        return self._election.vouched(clock.now())

    @property
    def coordinator(self) -> NodeId | None:
        return NodeId(self.ruled.coordinator) if self.ruled.coordinator else None

    def _look(self) -> None:
        if self._election.left:
            self._left.set()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._send(effect)
            case Follow():
                self.ruled = effect
                self._changed(effect)
            case Remember(term):
                self._daemon.files.write(self._term_file, f"{term}\n".encode())
            case _:
                assert_never(effect)

    @property
    def _term_file(self) -> Path:
        return self._daemon.home.mesh / "term"

    def _term_on_disk(self) -> int:
        """0 when there is none; a file that holds no term, or one that nobody would believe, is moved aside."""

        def note(text: str) -> None:
            log_event(_log, logging.WARNING, "note", text)

        return read_or_set_aside(self._term_file, _term_of, note) or 0


def _term_of(data: bytes) -> int:
    term = int(data[:64].decode())
    if not 0 <= term < TERM_MAX:
        raise ValueError(f"{term} is no term")
    return term
