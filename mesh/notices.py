"""What a person should know of the mesh here: gathered from its parts for `mesh status`, and said once in the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mesh import clock, notes
from mesh.log import event as log_event
from mesh.noise import Noise
from mesh.settings import DiscoverySettings

if TYPE_CHECKING:
    from mesh.clone_watch import CloneWatch
    from mesh.discovery import Discovery
    from mesh.join import Joins
    from mesh.links import Links
    from mesh.membership import Membership
    from mesh.static import StaticPeers
    from mesh.title import Title

_log = logging.getLogger("mesh.notices")


class Notices:
    """The notes of one stay in the mesh `name`."""

    def __init__(
        self,
        name: str,
        *,
        membership: Membership,
        links: Links,
        discovery: Discovery,
        title: Title,
        clones: CloneWatch,
        static: StaticPeers,
        noise: Noise,
        joins: Joins,
    ) -> None:
        self._joins = joins
        self._name, self._membership, self._links, self._discovery = name, membership, links, discovery
        self._title, self._clones, self._static, self._noise = title, clones, static, noise
        self._began = clock.now()
        self._said: list[str] = []

    def all(self) -> list[str]:
        """One line each, with what to do: why others cannot be found, whom this node misses, who disturbs."""
        problems = [f"mesh-peers {address}: {why}" for address, why in self._static.problems.items()]
        coordinator = self._membership.view().coordinator
        named = self._title.notes(self._discovery.name_of_mesh(self._name, coordinator))
        others = [*self._clones.notes(), *self._noise.notes(clock.now())]
        return [*self._joins.notes(), *self._discovery.notes(), *self._missed(), *named, *others, *problems]

    def look(self) -> None:
        """Logs what is missed since the last look. Call it now and then: the parts log what they note themselves."""
        before, self._said = self._said, self._missed()
        for text in self._said:
            if text not in before:
                note(text)

    def _missed(self) -> list[str]:
        view, after_s = self._membership.view(), DiscoverySettings().unheard_s
        found = notes.forbidden(view, {**self._joins.forbidden, **self._links.forbidden})
        if clock.now() - self._began >= after_s:
            found += notes.unheard(view, self._membership.alive(), self._discovery.heard, after_s)
        return found


def note(text: str) -> None:
    log_event(_log, logging.WARNING, "note", text)
