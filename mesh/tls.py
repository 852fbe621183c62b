"""TLS 1.3 between nodes: with which context each side speaks, and which member the other side is.

There is no authority whose signature is believed. A server believes the certificates of the members, a client that of
the member it means to reach; who a connection is with is read from the certificate, after the handshake.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from aiohttp import web

from node.types import NodeId

JOIN = "/mesh/v1/join"  # all that a stranger may ask for
MEMBER = web.RequestKey("member", NodeId)


class Certified(Protocol):
    """Whoever has a certificate (DER)."""

    @property
    def cert(self) -> bytes: ...


class Keys(Certified, Protocol):
    """This node's own certificate, and where it is on disk with its key (PEM)."""

    @property
    def cert_file(self) -> Path: ...
    @property
    def key_file(self) -> Path: ...


class Trusting(Protocol):
    """The part of Trust (mesh/trust.py) that this needs."""

    @property
    def identity(self) -> Keys: ...
    @property
    def members(self) -> Mapping[NodeId, Certified]: ...
    def member_of(self, cert: bytes) -> NodeId | None: ...


class PeerTls:
    """The contexts of one node. Call `renew` when its members, or its own key, have changed.

    `ssl` reads keys from files only: a context costs about 1 ms, so each is made once. Making one raises OSError
    (SSLError is one) when the key on disk is not what it was.
    """

    def __init__(self, trust: Trusting) -> None:
        self._trust = trust
        self._own = b""  # the certificate that the contexts present
        self._server: ssl.SSLContext | None = None
        self._clients: dict[NodeId, tuple[bytes, ssl.SSLContext]] = {}
        self._stranger: ssl.SSLContext | None = None

    def renew(self) -> list[ssl.SSLContext]:
        """Drops contexts of who is no member any more, or has another key, and those made with a key of our own that is
        no more; they are returned, so that connections made with them can be ended."""
        members, own = self._trust.members, self._trust.identity.cert
        self._server = None
        gone = {
            node: context
            for node, (cert, context) in self._clients.items()
            if self._own != own or (found := members.get(node)) is None or found.cert != cert
        }
        for node in gone:
            del self._clients[node]
        self._own = own
        return list(gone.values())

    def server(self) -> ssl.SSLContext:
        """For who connects here. A member shows a certificate, a stranger none; any other ends the handshake."""
        if self._server is None:
            context = _bare(ssl.PROTOCOL_TLS_SERVER)
            context.num_tickets = 0  # nobody here resumes: each is 250 bytes, and work, for nothing
            context.verify_mode = ssl.CERT_OPTIONAL
            self._own_chain(context)
            certs = {self._own, *(member.cert for member in self._trust.members.values())}
            _believe(context, certs)
            self._server = context
        return self._server

    def client(self, node: NodeId) -> ssl.SSLContext | None:
        """For a connection to this member, or to another process with this node's own key; None for a stranger.
        The same object each time, as long as nothing has changed: connections are kept by it."""
        own = self._trust.identity
        member = self._trust.members.get(node)
        if member is None:
            return None
        known = self._clients.get(node)
        if known is not None and known[0] == member.cert and self._own == own.cert:
            return known[1]
        context = _bare(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # a node is its key, wherever it is
        self._own_chain(context)
        _believe(context, [member.cert])
        self._clients[node] = member.cert, context
        return context

    def stranger(self) -> ssl.SSLContext:
        """For the join call: no certificate is shown, and any is taken. Who it is must be proven in what is said."""
        if self._stranger is None:
            context = _bare(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self._stranger = context
        return self._stranger

    def member_at(self, transport: TransportLike | None) -> NodeId | None:
        """The member at the other end of a connection, as of now; None for a stranger, and without TLS."""
        cert = cert_at(transport)
        return self._trust.member_of(cert) if cert else None

    def _own_chain(self, context: ssl.SSLContext) -> None:
        own = self._trust.identity
        if self._own != own.cert:
            self.renew()
        context.load_cert_chain(own.cert_file, own.key_file)


class TransportLike(Protocol):
    """What both event loops' transports, and their WebSockets, can tell."""

    def get_extra_info(self, name: str, default: object = None) -> object: ...


def cert_at(transport: TransportLike | None) -> bytes | None:
    """The certificate (DER) that the other end has shown, None when it has shown none."""
    shown = transport.get_extra_info("ssl_object") if transport is not None else None
    return shown.getpeercert(True) if isinstance(shown, ssl.SSLObject | ssl.SSLSocket) else None


def members_only(tls: PeerTls) -> Callable[..., Awaitable[web.StreamResponse]]:
    """A middleware: notes in the request which member asks (MEMBER); who is none may make the join call, and learns
    nothing else, not even what there is."""

    @web.middleware
    async def member(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        node = tls.member_at(request.transport)
        if node is not None:
            request[MEMBER] = node
        elif (request.method, request.path) != ("POST", JOIN):
            raise web.HTTPForbidden(text="members only\n", headers={"Server": "-"})
        return await handler(request)

    return member


def _bare(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _believe(context: ssl.SSLContext, certs: Iterable[bytes]) -> None:
    """These certificates, and nothing that they signed: they say that they are no authorities."""
    context.load_verify_locations(cadata=b"".join(sorted(certs)))
