"""What this node says of itself during one stay in a mesh: to a peer it links with, to the network by mDNS, and where
clients find the whole mesh."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mesh.addresses import Addresses
from mesh.advert import Advert, advert_of
from mesh.discovery import Discovery
from mesh.electing import Electing
from mesh.title import Title
from mesh.wire import PROTOCOL, Hello
from node.types import NodeId

if TYPE_CHECKING:
    from mesh.config import Config
    from mesh.daemon import Daemon


def mesh_id(name: str) -> str:
    """Two meshes of one name are one until nodes have keys (docs/adr/0003)."""
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


class Presence:
    """`hello` to a peer, `advert` to the network, `url` to clients."""

    def __init__(
        self, daemon: Daemon, addresses: Addresses, *, election: Electing, discovery: Discovery, title: Title
    ) -> None:
        self._daemon, self._addresses, self._config = daemon, addresses, daemon.config
        self._election, self._discovery, self._title = election, discovery, title

    def retune(self, config: Config) -> None:
        self._config = config

    def hello(self) -> Hello:
        d, config = self._daemon, self._config
        return Hello(
            id=d.id,
            boot=d.boot,
            name=d.config.node_name,
            mesh=config.mesh_name,
            mesh_id=mesh_id(config.mesh_name),
            version=d.version,
            protocol=PROTOCOL,
            peer_port=config.peer_port,
            port=config.port,
            uptime_s=d.uptime_s(),
        )

    def advert(self) -> Advert:
        role, host = self._election.ruled.role.value, self._title.name
        return advert_of(self._daemon.report(), self._config.mesh_name, role=role, host=host)

    def url(self, coordinator: NodeId | None) -> str:
        """Where the whole mesh answers: the coordinator's name, where others can resolve it."""
        found = self._daemon.membership.view().node(coordinator) if coordinator else None
        port = found.report.port if found else self._config.port
        scheme = "https" if (found.report.tls if found else self._daemon.edge_tls) else "http"
        host = self._discovery.name_of_mesh(self._config.mesh_name, coordinator)
        return f"{scheme}://{'localhost' if self._addresses.loopback_only else host}:{port}/v1"
