"""What a join proves, and the number that two people compare: commitment, transcript, signature, invite. Pure.

The newcomer commits to its nonce before it sees the member's, so nobody in between can choose a nonce that makes two
check numbers equal: one try succeeds with 1 in a million (a short authentication string, as in ZRTP, RFC 6189 4.4.1.1).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from msgspec import Struct

from mesh.errors import MeshError

NONCE_BYTES = 32
SECRET_BYTES = 16  # 128 bits
HINT_BYTES = 8  # of the inviter's fingerprint: whom to ask, and whom to believe
_LABEL = b"mlx-stack join 1"


class Seen(Struct, frozen=True):
    """What both sides of one join call have seen: certificates (DER) and nonces. N joins, M is a member."""

    newcomer: bytes
    member: bytes
    nonce_newcomer: bytes
    nonce_member: bytes

    def transcript(self) -> bytes:
        """32 bytes over both certificates and both nonces; equal at both ends unless somebody is in between."""
        parts = (_fingerprint(self.newcomer), _fingerprint(self.member), self.nonce_newcomer, self.nonce_member)
        return _hash(b"transcript", *parts)

    def number(self) -> str:
        """Six digits for people. 2**64 is no multiple of 10**6; the bias is 1 in 10**13."""
        return f"{int.from_bytes(_hash(b'number', self.transcript())[:8]) % 1_000_000:06d}"

    def signed(self) -> bytes:
        """What the newcomer signs: that it holds the key of its certificate, in this very call."""
        return _LABEL + b" signature" + self.transcript()


class Token(Struct, frozen=True):
    """An invite. `hint`: how the inviter's fingerprint begins."""

    hint: bytes
    secret: bytes

    def text(self) -> str:
        """39 letters and digits for copy and paste."""
        return base64.b32encode(self.hint + self.secret).decode().rstrip("=").lower()

    @classmethod
    def parse(cls, text: str) -> Token:
        """Raises MeshError(bad_invite)."""
        bare = "".join(text.split()).upper()
        try:
            data = base64.b32decode(bare + "=" * (-len(bare) % 8))
        except (binascii.Error, ValueError):
            data = b""
        if len(data) != HINT_BYTES + SECRET_BYTES:
            raise MeshError(
                "bad_invite", "this is no invite", hint="copy the whole line that `mlx-stack mesh invite` prints"
            )
        return cls(data[:HINT_BYTES], data[HINT_BYTES:])

    def made_by(self, cert: bytes) -> bool:
        """Is this the certificate of the node that made it?"""
        return hmac.compare_digest(_fingerprint(cert)[:HINT_BYTES], self.hint)

    def proof(self, role: str, seen: Seen) -> bytes:
        """That the side `role` ("newcomer" or "member") knows the secret, in this call, between these two keys."""
        return hmac.digest(self.secret, _LABEL + role.encode() + b"\0" + seen.transcript(), "sha256")


def commitment(nonce: bytes, cert: bytes) -> bytes:
    """What the newcomer says first: it binds the nonce, and does not tell it."""
    return _hash(b"commitment", nonce, _fingerprint(cert))


def matches(commit: bytes, nonce: bytes, cert: bytes) -> bool:
    return hmac.compare_digest(commit, commitment(nonce, cert))


def _fingerprint(cert: bytes) -> bytes:
    return hashlib.sha256(cert).digest()


def _hash(label: bytes, *parts: bytes) -> bytes:
    """Parts of fixed length, or one after a label: no two inputs are spelt alike."""
    found = hashlib.sha256(_LABEL + b"\0" + label)
    for part in parts:
        found.update(len(part).to_bytes(4))
        found.update(part)
    return found.digest()
