"""Who answers at the address a person gave: its name by DNS, else on the tailnet; `/.well-known/mlx-stack` tells the
rest. Every way to fail is one line that says what to do."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from mesh.addresses import Addresses, in_tailnet
from mesh.errors import MeshError
from mesh.settings import PeersSettings
from mesh.tailnet import Machine, Tailnet, Tailscale
from mesh.wire import PeerSeen, WellKnown
from node.types import NodeId

WELL_KNOWN = "/.well-known/mlx-stack"


class Running(Struct, frozen=True):
    """A machine of the tailnet that runs a node. `name` is what `mesh add` takes."""

    name: str
    address: str
    node: WellKnown


class _There(Struct, frozen=True):
    """Somebody answers: the addresses where it does first, then the others of its name."""

    known: WellKnown
    addresses: tuple[str, ...]


def bare_address(text: str) -> str:
    """A URL without all that is no address, as `mesh-peers` has it."""
    return text.strip().removeprefix("http://").removeprefix("https://").rstrip("/").removesuffix("/v1").rstrip("/")


def split_address(text: str, default_port: int) -> tuple[str, int]:
    """Host and port of `host`, `host:port`, `::1`, `[::1]` or `[::1]:port`, and of a URL with these.

    Raises MeshError(bad_address)."""
    bare = bare_address(text)
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


class Lookup:
    """For the node `me` of mesh `mesh`. `on_self(addresses, peer_port)`: who answers there has the id of `me`; that may
    be a copied disk."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        me: NodeId,
        mesh: str = "default",
        addresses: Addresses | None = None,
        tailscale: Tailscale | None = None,
        on_self: Callable[[tuple[str, ...], int], None] = lambda _addresses, _peer_port: None,
        settings: PeersSettings | None = None,
    ) -> None:
        self._on_self = on_self
        self._session, self._me, self._mesh = session, me, mesh
        self._addresses, self._tailscale = addresses or Addresses(), tailscale or Tailscale()
        self._settings = settings or PeersSettings()

    async def node(self, text: str, *, any_mesh: bool = False) -> PeerSeen:
        """The node at this edge address, whose peer port answers too. One of another protocol is returned as well:
        membership shows it as incompatible. `any_mesh`: an invite leads into a mesh of another name, too.

        Raises MeshError: bad_address, cannot_resolve, ambiguous_address, ambiguous_machine, refused, unreachable,
        not_a_node, self, other_mesh, peer_port_unreachable, and those of Tailscale.
        """
        host, port = split_address(text, self._settings.port)
        there, by_tailnet = await self._there(host, port)
        known, where = there.known, f"{host}:{port}"
        if known.id == self._me:
            self._on_self(there.addresses, known.peer_port)
            hint = "give the address of another; a Mac with a copy of this disk takes an id of its own by itself"
            raise MeshError("self", f"{where} is this node itself", hint=hint, status=409)
        if known.mesh != self._mesh and not any_mesh:
            raise MeshError(
                "other_mesh", f"{known.name} at {where} belongs to mesh '{known.mesh}', this node to '{self._mesh}'",
                hint=f"give both the same `mesh-name`: `mlx-stack mesh enable --name {known.mesh}` here joins it",
                status=409,
            )  # fmt: skip
        first = there.addresses[0]
        await self._peer_port(known, first)
        return PeerSeen(
            id=known.id, name=known.name, mesh=known.mesh, addresses=there.addresses, port=port,
            peer_port=known.peer_port, version=known.version, protocol=known.protocol,
            via="tailscale" if by_tailnet or in_tailnet(first) else "static",
            far=self._addresses.is_far(first), added=True, mesh_id=known.mesh_id,
        )  # fmt: skip

    async def running(self) -> tuple[Running, ...]:
        """The other machines of the tailnet that run a node at the usual port; only those that are online are asked.
        Raises MeshError when Tailscale does not tell who is there."""
        return await self._probed(await self._tailscale.tailnet())

    async def _probed(self, tailnet: Tailnet) -> tuple[Running, ...]:
        s, turns = self._settings, asyncio.Semaphore(self._settings.probes)

        async def probe(machine: Machine) -> Running | None:
            with suppress(MeshError, TimeoutError):
                async with turns, asyncio.timeout(s.probe_s):
                    there = await self._asked(machine.dns_name, s.port, machine.addresses[:2])
                    return Running(tailnet.name_of(machine), there.addresses[0], there.known)
            return None

        asked = [m for m in tailnet.machines if m.online and m.addresses and not m.own]
        found = await asyncio.gather(*(probe(m) for m in asked[: s.probed_max]))
        return tuple(f for f in found if f is not None and f.node.id != self._me)

    # From a name to a node

    async def _there(self, host: str, port: int) -> tuple[_There, bool]:
        """Who answers, and whether only Tailscale knew where. A name that DNS knows may still be another machine's (a
        router's, an advertiser's), so the tailnet is asked whenever DNS leads to no node."""
        try:
            return await self._asked(host, port, await self._resolved(host)), False
        except MeshError as error:
            if error.code == "ambiguous_address":
                raise
            by_dns = error
        if _is_ip(host) and not in_tailnet(host):
            raise by_dns
        try:
            tailnet = await self._tailscale.tailnet()
            machine = tailnet.find(host)
        except MeshError as error:
            if _is_ip(host):
                raise _also(by_dns, error) if error.code.startswith("tailscale") else by_dns from error
            if by_dns.code != "cannot_resolve":
                raise by_dns from error
            raise await self._nowhere(by_dns, error) from error
        if machine.own:
            raise MeshError("self", f"{host} is this machine itself", hint="give the address of another", status=409)
        try:
            return await self._asked(host, port, machine.addresses), True
        except MeshError as error:
            raise _told_of(machine, error) from error

    async def _nowhere(self, by_dns: MeshError, by_tailnet: MeshError) -> MeshError:
        """Neither DNS nor the tailnet knows this name: who is there instead?"""
        if by_tailnet.code != "unknown_machine":
            if by_tailnet.code.startswith("ambiguous"):
                return by_tailnet
            return _also(by_dns, by_tailnet)
        with suppress(MeshError):
            names = [running.name for running in await self.running()]
            if names:
                listed = ", ".join(names[: self._settings.suggested_max])
                return MeshError("cannot_resolve", f"{by_dns.message}, nor on your tailnet",
                                 hint=f"there mlx-stack runs on: {listed}", status=502)  # fmt: skip
        return MeshError("cannot_resolve", f"{by_dns.message}, nor on your tailnet", hint=by_dns.hint, status=502)

    async def _resolved(self, host: str) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._settings.name_s):
                found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            why = "not a host name" if isinstance(error, UnicodeError) else error.strerror or "DNS does not answer"
            raise MeshError("cannot_resolve", f"the name '{host}' is not known here: {why}",
                            hint="check the spelling, or give the IP address", status=502) from error  # fmt: skip
        return tuple(dict.fromkeys(_scoped(f[4]) for f in found))

    async def _asked(self, host: str, port: int, ips: Sequence[str]) -> _There:
        """What /.well-known/mlx-stack says, at all addresses of one name together. Raises MeshError."""
        answers = await asyncio.gather(*(self._well_known(host, port, ip) for ip in ips), return_exceptions=True)
        nodes = [(a, ip) for a, ip in zip(answers, ips, strict=True) if isinstance(a, WellKnown)]
        problems = [a for a in answers if isinstance(a, MeshError)]
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, MeshError):
                raise answer
        if not nodes:
            order = ("not_a_node", "refused", "unreachable")
            problems.append(MeshError("unreachable", f"'{host}' has no address", status=502))
            raise min(problems, key=lambda p: order.index(p.code))
        if len({known.id for known, _ in nodes}) > 1:
            who = ", ".join(f"{known.name} at {ip}" for known, ip in nodes)
            raise MeshError("ambiguous_address", f"'{host}' is more than one node: {who}",
                            hint="add one of these addresses", status=409)  # fmt: skip
        return _There(nodes[0][0], tuple(dict.fromkeys((*(ip for _, ip in nodes), *ips))))

    async def _well_known(self, host: str, port: int, ip: str) -> WellKnown:
        s, where = self._settings, f"{host}:{port}" if host == ip else f"{host}:{port} ({ip})"
        try:
            async with asyncio.timeout(s.connect_s):
                try:
                    status, body = await self._get("http", ip, port)
                except aiohttp.ClientConnectorError:
                    raise
                except (OSError, aiohttp.ClientError) as error:  # it takes TLS only, perhaps
                    try:
                        status, body = await self._get("https", ip, port)
                    except (OSError, aiohttp.ClientError):
                        raise error from None
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            raise _why_not(where, error) from error
        if status == 200:
            with suppress(ValueError, RecursionError):  # else some other program's answer
                return msgspec.json.decode(body, type=WellKnown)
        raise MeshError("not_a_node", f"{where} answers HTTP but is no mlx-stack node",
                        hint=f"give the address and `port` of its edge, by default {s.port}", status=502)  # fmt: skip

    async def _get(self, scheme: str, ip: str, port: int) -> tuple[int, bytes]:
        """Status and body. Whose certificate it is does not matter: what is said here is believed of nobody, it only
        leads to a peer port."""
        url = URL.build(scheme=scheme, host=ip, port=port, path=WELL_KNOWN)
        async with self._session.get(url, allow_redirects=False, ssl=False) as answer:
            return answer.status, await body_of(answer, self._settings.answer_bytes)

    async def _peer_port(self, known: WellKnown, ip: str) -> None:
        """The edge answers, but the mesh needs the peer port: a firewall between the two is a common fault."""
        try:
            async with asyncio.timeout(self._settings.connect_s):
                _, writer = await asyncio.open_connection(ip, known.peer_port)
        except (TimeoutError, OSError) as error:
            why = "it does not answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
            raise MeshError(
                "peer_port_unreachable",
                f"{known.name} answers, but its peer port {ip}:{known.peer_port} cannot be reached: {why}",
                hint="is `mlx-stack mesh enable` done there, and TCP and UDP "
                f"{known.peer_port} open in its firewall and the tailnet's rules?",
                status=502,
            ) from error
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def body_of(answer: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """All of it, at most `bytes_max`; `read(n)` alone gives what happens to be there. Raises ClientError."""
    try:
        return await answer.content.readexactly(bytes_max)
    except asyncio.IncompleteReadError as short:
        return short.partial


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


def _also(first: MeshError, then: MeshError) -> MeshError:
    """One line of two reasons; what to do is the second's."""
    return MeshError(first.code, f"{first.message}; {then.message}", hint=then.hint or first.hint, status=first.status)


def _told_of(machine: Machine, error: MeshError) -> MeshError:
    """What Tailscale says of a machine that does not answer."""
    why = "its key has expired: log in there again" if machine.expired else "" if machine.online else "it is offline"
    return _also(error, MeshError("", f"Tailscale says {why}")) if why and error.code == "unreachable" else error


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _scoped(address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> str:
    host = str(address[0])
    if len(address) == 4 and address[3] and "%" not in host:
        with suppress(OSError):
            return f"{host}%{socket.if_indextoname(address[3])}"
    return host
