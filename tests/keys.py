"""Nodes with real keys and certificates, and who of them belongs together: what a test needs for TLS and for seals."""

from __future__ import annotations

import secrets
import ssl
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import pytest
from msgspec import Struct

from mesh.seal import HINT_BYTES, Seals
from mesh.tls import PeerTls
from node.io import identity as identities
from node.io.identity import Identity
from node.types import NodeId


def identity_of(node: NodeId, key: int = 0) -> Identity:
    """Made once, with a fresh key; another one for another `key`."""
    return _identity(node, key)


@lru_cache(maxsize=256)
def _identity(node: NodeId, key: int) -> Identity:
    home = Path(tempfile.mkdtemp(prefix=f"keys-{node[:4]}-{key}-"))
    (home / "node").mkdir()
    (home / "node" / "id").write_text(node + "\n")
    return identities.load(home, pytest.fail)


class Member(Struct, frozen=True):
    cert: bytes


class Circle:
    """Nodes that are members of one mesh. Each sees the same list, at once."""

    def __init__(self, *nodes: NodeId) -> None:
        self.members: dict[NodeId, Member] = {}
        for node in nodes:
            self.add(node)

    def add(self, node: NodeId, key: int = 0) -> None:
        self.members[node] = Member(identity_of(node, key).cert)

    def remove(self, node: NodeId) -> None:
        del self.members[node]

    def trust(self, me: NodeId, key: int = 0) -> Trusted:
        return Trusted(self, identity_of(me, key))

    def tls(self, me: NodeId, key: int = 0) -> PeerTls:
        return PeerTls(self.trust(me, key))

    def server(self, me: NodeId) -> ssl.SSLContext:
        return self.tls(me).server()

    def client(self, me: NodeId, to: NodeId) -> ssl.SSLContext:
        """As `me` to the member `to`; `me` may be none."""
        found = self.tls(me).client(to)
        assert found is not None
        return found

    def seals(self, me: NodeId, key: int = 0) -> Seals:
        trust = self.trust(me, key)
        seals = Seals(hint(trust.identity.cert), key_of=trust.pair_key, nonce=secrets.token_bytes)
        seals.admit({node: hint(member.cert) for node, member in self.members.items()})
        return seals


class Trusted:
    """The part of Trust that TLS and seals need."""

    def __init__(self, circle: Circle, identity: Identity) -> None:
        self._circle, self.identity = circle, identity

    @property
    def members(self) -> Mapping[NodeId, Member]:
        return self._circle.members

    def member_of(self, cert: bytes) -> NodeId | None:
        return next((node for node, member in self.members.items() if member.cert == cert), None)

    def pair_key(self, node: NodeId) -> bytes:
        return self.identity.pair_key(self.members[node].cert, b"test")


def hint(cert: bytes) -> bytes:
    return bytes.fromhex(identities.fingerprint(cert))[:HINT_BYTES]
