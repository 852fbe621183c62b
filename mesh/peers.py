"""Peers beyond mDNS: those reached before, kept on disk, and those a user names by address."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from mesh.addresses import Addresses, in_tailnet
from mesh.errors import MeshError
from mesh.files import read_or_set_aside
from mesh.settings import MembershipSettings, PeersSettings
from mesh.wire import PeerSeen, WellKnown
from node.types import NodeId

WELL_KNOWN = "/.well-known/mlx-stack"


class _Kept(Struct, frozen=True):
    peer: PeerSeen
    reached_at: float  # Unix seconds, so that a week is a week over restarts too


class _File(Struct, frozen=True):
    """mesh/peers.json."""

    version: int = 1
    peers: tuple[_Kept, ...] = ()
    removed: tuple[NodeId, ...] = ()


class PeerStore:
    """mesh/peers.json in `folder`. `tell` gets a sentence when the file is damaged (then it is moved aside); the mesh
    goes on without it. `write` is LateWriter's: it neither waits nor raises."""

    def __init__(
        self,
        folder: Path,
        tell: Callable[[str], None],
        write: Callable[[Path, bytes], None],
        *,
        kept_s: float | None = None,
    ) -> None:
        self._path, self._write = folder / "peers.json", write
        self._kept_s = MembershipSettings().dead_kept_s if kept_s is None else kept_s
        file = read_or_set_aside(self._path, msgspec.json.Decoder(_File).decode, tell) or _File()
        oldest = time.time() - self._kept_s
        self._kept = {k.peer.id: k for k in file.peers if k.reached_at >= oldest}
        self.removed: frozenset[NodeId] = frozenset(file.removed)

    def peers(self) -> tuple[PeerSeen, ...]:
        """Those reached within the last week."""
        return tuple(k.peer for k in self._kept.values())

    def save(self, peers: Sequence[PeerSeen], removed: Collection[NodeId], alive: Collection[NodeId] = ()) -> None:
        """Replaces the file. `alive` are reached now; the others keep the time they were last."""
        now = time.time()
        before = self._kept
        self._kept = {
            p.id: _Kept(p, before[p.id].reached_at if p.id in before and p.id not in alive else now) for p in peers
        }
        self.removed = frozenset(removed)
        file = _File(peers=tuple(self._kept.values()), removed=tuple(sorted(removed)))
        self._write(self._path, msgspec.json.format(msgspec.json.encode(file)))


def split_address(text: str, default_port: int) -> tuple[str, int]:
    """Host and port of `host`, `host:port`, `::1`, `[::1]` or `[::1]:port`, and of a URL with these.

    Raises MeshError(bad_address)."""
    bare = text.strip().removeprefix("http://").removeprefix("https://").removesuffix("/v1").rstrip("/")
    if bare.count(":") > 1 and not bare.startswith("["):
        host, port = bare, ""  # an IPv6 address as it is
    elif bare.startswith("["):
        host, _, rest = bare[1:].partition("]")
        port = rest.removeprefix(":") if not rest or rest.startswith(":") else "?"
    else:
        host, _, port = bare.partition(":")
    known = port.isascii() and port.isdigit() and 1 <= int(port) <= 65535
    if not host or any(c in host for c in "/ @?#") or not (known or not port):
        raise MeshError(
            "bad_address", f"'{text}' is no address", hint="HOST or HOST:PORT, IPv6 as [::1]:4000", status=422
        )
    return host, int(port) if port else default_port


async def resolve_node(
    session: aiohttp.ClientSession,
    text: str,
    *,
    me: NodeId,
    mesh: str = "default",
    addresses: Addresses | None = None,
    settings: PeersSettings | None = None,
) -> PeerSeen:
    """Who answers at this edge address, and that its peer port answers too.

    Raises MeshError: bad_address, cannot_resolve, refused, unreachable, not_a_node, other_mesh, self,
    peer_port_unreachable; each says what to do.
    """
    s = settings or PeersSettings()
    host, port = split_address(text, s.port)
    ips = await _resolved(host)
    known, ip = await _asked(session, host, port, ips, s)
    where = f"{host}:{port}"
    if known.id == me:
        raise MeshError("self", f"{where} is this node itself", status=409)
    if known.mesh != mesh:
        raise MeshError("other_mesh", f"{known.name} at {where} belongs to mesh '{known.mesh}', this node to '{mesh}'",
                        hint="give both the same `mesh-name`", status=409)  # fmt: skip
    await _peer_port(known, ip, s)
    order = tuple(dict.fromkeys((ip, *ips)))
    return PeerSeen(
        id=known.id, name=known.name, mesh=known.mesh, addresses=order, port=port, peer_port=known.peer_port,
        version=known.version, protocol=known.protocol,
        via="tailscale" if in_tailnet(ip) or host.rstrip(".").endswith(".ts.net") else "static",
        far=(addresses or Addresses()).is_far(ip),
    )  # fmt: skip


async def _resolved(host: str) -> tuple[str, ...]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        raise MeshError("cannot_resolve", f"the name '{host}' is not known here: {why}",
                        hint="check the spelling, or give the IP address", status=502) from error  # fmt: skip
    return tuple(dict.fromkeys(_scoped(f[4]) for f in found))


def _scoped(address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> str:
    host = str(address[0])
    if len(address) == 4 and address[3] and "%" not in host:
        with suppress(OSError):
            return f"{host}%{socket.if_indextoname(address[3])}"
    return host


async def _asked(
    session: aiohttp.ClientSession, host: str, port: int, ips: Sequence[str], s: PeersSettings
) -> tuple[WellKnown, str]:
    """What /.well-known/mlx-stack says, and at which address. The first address that answers at all decides."""
    problem: MeshError | None = None
    for ip in ips:
        where = f"{host}:{port}"
        try:
            async with asyncio.timeout(s.connect_s):
                url = URL.build(scheme="http", host=ip, port=port, path=WELL_KNOWN)
                async with session.get(url, allow_redirects=False) as answer:
                    body = await answer.content.read(s.answer_bytes)
                    status = answer.status
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            problem = _why_not(where, error)
            continue
        try:
            if status == 200:
                return msgspec.json.decode(body, type=WellKnown), ip
        except ValueError:
            pass  # some other program's answer
        raise MeshError("not_a_node", f"{where} answers HTTP but is no mlx-stack node",
                        hint=f"give the address and `port` of its edge, by default {s.port}", status=502)  # fmt: skip
    assert problem is not None, "getaddrinfo gives at least one address"
    raise problem


def _why_not(where: str, error: Exception) -> MeshError:
    number = error.os_error.errno if isinstance(error, aiohttp.ClientConnectorError) else getattr(error, "errno", None)
    if number == errno.ECONNREFUSED:
        return MeshError("refused", f"nothing listens at {where}", hint="is `mlx-stack up` running there?", status=502)
    if isinstance(error, TimeoutError):
        return MeshError("unreachable", f"{where} did not answer in time", hint="is the machine awake and its firewall "
                         "open?", status=502)  # fmt: skip
    if number is not None:
        return MeshError("unreachable", f"{where} cannot be reached: {error}", status=502)
    return MeshError("not_a_node", f"{where} does not speak HTTP: {error}", status=502)


async def _peer_port(known: WellKnown, ip: str, s: PeersSettings) -> None:
    """The edge answers, but the mesh needs the peer port: a firewall between the two is a common fault."""
    try:
        async with asyncio.timeout(s.connect_s):
            _, writer = await asyncio.open_connection(ip, known.peer_port)
    except (TimeoutError, OSError) as error:
        why = "it does not answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        raise MeshError(
            "peer_port_unreachable",
            f"{known.name} answers, but its peer port {ip}:{known.peer_port} cannot be reached: {why}",
            hint=f"is its mesh enabled, and TCP and UDP {known.peer_port} open in the firewall?",
            status=502,
        ) from error
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def find_static(
    text: str,
    resolve: Callable[[str], Awaitable[PeerSeen]],
    *,
    on_found: Callable[[PeerSeen], None],
    on_problem: Callable[[str, MeshError], None],
    settings: PeersSettings | None = None,
) -> None:
    """One address of `mesh-peers`: asks with growing pauses until a node answers there, then tells it and returns.

    `resolve` is resolve_node with all but the address filled in. Each MeshError goes to `on_problem(text, error)`.
    """
    s = settings or PeersSettings()
    pause_s = s.retry_first_s
    while True:
        try:
            peer = await resolve(text)
        except MeshError as error:
            on_problem(text, error)
        else:
            on_found(peer)
            return
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, s.retry_max_s)
