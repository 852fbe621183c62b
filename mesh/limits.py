"""What this process takes of its machine, and holds for others: as config.yaml says, and its file descriptors allow.

A server that runs out of descriptors cannot accept, and cannot say so; it could not open a file or reach a worker
either. So there are always some left, whoever connects.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import Struct

from mesh.settings import DescriptorSettings, ServerSettings
from node.settings import CrowdSettings, DoorSettings, FrontSettings, NodeSettings
from router.settings import EdgeSettings, RouterSettings

if TYPE_CHECKING:
    from mesh.config import Config

MIB = 2**20


def node_settings(config: Config) -> NodeSettings:
    return NodeSettings(
        memory_budget_bytes=config.memory_budget or 0,
        request_gap_s=config.request_gap,
        idle_timeout_s=config.idle_timeout,
    )


class Limits(Struct, frozen=True, kw_only=True):
    """Settings of the parts that take what others send."""

    edge: EdgeSettings
    edge_server: ServerSettings
    peer_server: ServerSettings
    door: DoorSettings
    router: RouterSettings


def raise_descriptors(settings: DescriptorSettings | None = None) -> int:
    """Takes as many file descriptors as the system gives, up to what is wanted; how many there are then. macOS starts
    programs with 256, and takes no number above its `kern.maxfilesperproc`, which it does not tell."""
    s = settings or DescriptorSettings()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for tried in s.tries:
        wanted = tried if hard == resource.RLIM_INFINITY else min(tried, hard)
        if wanted <= soft:
            break
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            break
    return descriptors()


def descriptors() -> int:
    """How many file descriptors this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DescriptorSettings().tries[0] if soft == resource.RLIM_INFINITY else soft


def limits_of(config: Config, descriptors: int, settings: DescriptorSettings | None = None) -> Limits:
    """Half of the descriptors are for clients, and a quarter for the model servers and nodes that are asked for them;
    an eighth for peers, and one for what is asked for those."""
    s = settings or DescriptorSettings()
    shared = max(8, descriptors - min(s.kept, descriptors // 4))
    clients, peers = min(s.clients_max, config.connections or shared // 2), min(s.peers_max, shared // 8)
    streams, body = min(EdgeSettings().open_limit, shared // 4), config.body_limit
    bodies = max(EdgeSettings().bodies_limit_bytes, 4 * body)
    crowd = CrowdSettings(all_max=min(clients, shared // 2), address_max=config.connections_per_address)
    front = FrontSettings(crowd=crowd, untaken_s=config.slow_client_timeout)
    peer_crowd = CrowdSettings(all_max=peers, address_max=peers, loopback_max=peers)  # one edge may carry all there is
    return Limits(
        edge=EdgeSettings(
            request_timeout_s=config.request_timeout,
            open_limit=streams,
            open_address_limit=config.requests_per_address,
            body_limit_bytes=body,
            bodies_limit_bytes=bodies,
            bodies_address_bytes=bodies // 4,
        ),
        edge_server=ServerSettings(front=front),
        peer_server=ServerSettings(front=FrontSettings(crowd=peer_crowd)),
        door=DoorSettings(body_limit_bytes=body + MIB, bodies_limit_bytes=bodies, bodies_address_bytes=bodies),
        router=RouterSettings(queue_limit=config.queue_limit),
    )
