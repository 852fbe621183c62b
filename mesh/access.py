"""Who may ask at :4000 of this daemon: the guard, with the names of now, and what is said of those it turns away."""

from __future__ import annotations

import logging
import socket
from collections import OrderedDict
from collections.abc import Callable

from mesh import clock
from mesh.config import Config
from mesh.log import event
from mesh.name_owner import fallback_of, hosts_of
from mesh.settings import AccessSettings
from router.guard import Denied, Guard, KeyBook, names_of

_log = logging.getLogger("mesh.access")


class Access:
    """`count` is told what kind of thing was wrong, each time."""

    def __init__(self, keys: KeyBook, *, count: Callable[[str], None], settings: AccessSettings | None = None) -> None:
        self.guard = Guard(keys)
        self._count, self._settings = count, settings or AccessSettings()
        self._rules: object = None
        self._said: OrderedDict[tuple[str, str], float] = OrderedDict()  # what and who, and when it was said last

    def look(self, config: Config, mesh_id: str) -> None:
        """The settings and names of now; cheap when they are those of before."""
        host = socket.gethostname()
        rules = (config.node_name, host, config.mesh_name, mesh_id, config.allowed_hosts, config.cors_origins)
        if rules == self._rules:
            return
        self._rules = rules
        ours = {name.rstrip(".") for name in (*hosts_of(config.mesh_name), fallback_of(mesh_id))}
        names = names_of(config.node_name, host) | ours
        self.guard.retune(names=names, hosts=config.allowed_hosts, origins=config.cors_origins)

    def turned_away(self, denied: Denied, client: str) -> None:
        """Counted each time, said once in a while: whoever asks in vain may ask very often."""
        self._count(denied.what)
        who, now, s = (denied.what, client), clock.now(), self._settings
        if now - self._said.get(who, float("-inf")) < s.say_every_s:
            return
        self._said[who] = now
        self._said.move_to_end(who)
        if len(self._said) > s.clients_max:
            self._said.popitem(last=False)
        event(_log, logging.WARNING, "turned_away", f"{client}: {denied.refusal.message}", client=client)
