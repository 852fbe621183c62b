"""Is this datagram said by that member, to this process, now? A seal on each, and what it takes to believe one. Pure.

A datagram is head, payload and tag. The tag is keyed BLAKE2b under the key of this pair of nodes (RFC 7693). Freshness
needs no clocks: each side gives the other a random challenge and believes only what repeats it, so that what was said
to a former process, or by one, is worth nothing. `seq` grows with everything that a process says.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from struct import Struct as Layout
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from mesh.settings import SealSettings
from mesh.wire import DATAGRAM_BYTES_MAX, DATAGRAM_MARK, MESSAGE_BYTES_MAX, PROTOCOL, SEAL_BYTES
from node.types import NodeId

HINT_BYTES: Final = 8  # the start of a certificate's fingerprint: under whose key to look
NONCE_BYTES: Final = 8  # boots and challenges
TAG_BYTES: Final = 16
_HEAD: Final = Layout("!3sB8s8s8s8sQ")  # mark, protocol, sender's hint, echo, sender's boot, sender's challenge, seq
_NO_ECHO: Final = bytes(NONCE_BYTES)  # nothing of that node was heard yet; no challenge is that
_PERSON: Final = b"mlx-mesh datagrm"  # at most 16 bytes: no tag of another use of the key is one of these
assert _HEAD.size + TAG_BYTES == SEAL_BYTES

RefusalCode: TypeAlias = Literal[
    "garbled", "too_large", "other_version", "stranger", "bad_tag", "stale", "replayed", "repeated"
]


class Opened(Struct, frozen=True):
    """`payload` is what `node` says, b"" when it only shows its challenge. `answer`: what it should hear at once."""

    node: NodeId
    payload: bytes
    answer: bytes | None = None


class Refused(Struct, frozen=True):
    """Why a datagram is not believed.

    garbled, too_large, other_version: it is none of ours · stranger: of no member · bad_tag: not made with this pair's
    key, or not as it was made · stale: said to or by a process that is no more; also of one that has not heard this one
    yet, which is what `answer` is for · replayed: older than the last `window` that were believed · repeated: among
    these, as networks do when there are two ways.
    """

    code: RefusalCode
    node: NodeId | None = None  # who made it, when the tag shows that
    answer: bytes | None = None


@dataclass(slots=True)
class _Pair:
    """What is known of one member."""

    hint: bytes
    key: bytes
    challenge: bytes  # what it must repeat
    former: bytes = _NO_ECHO  # what it may repeat too, if it is
    former_of: bytes = b""  # this boot
    theirs: bytes = _NO_ECHO  # its challenge
    boots: dict[bytes, int] = field(default_factory=dict)  # its last seq, by boot; the one believed last comes last
    answered: dict[bytes, float] = field(default_factory=dict)  # when, by boot


class Seals:
    """Of one process. `hint` is that of its own certificate; `key_of` the key it has with a member, 32 bytes, asked
    once; `nonce(n)` gives n random bytes."""

    def __init__(
        self,
        hint: bytes,
        *,
        key_of: Callable[[NodeId], bytes],
        nonce: Callable[[int], bytes],
        settings: SealSettings | None = None,
    ) -> None:
        self._hint, self._key_of, self._nonce = hint, key_of, nonce
        self._settings = settings or SealSettings()
        self._boot, self._seq = nonce(NONCE_BYTES), 0
        self._pairs: dict[NodeId, _Pair] = {}
        self._hints: dict[NodeId, bytes] = {}
        self._by_hint: dict[bytes, NodeId] = {}

    def admit(self, hints: Mapping[NodeId, bytes]) -> None:
        """These are the other members, and the starts of their certificates' fingerprints. All else is forgotten."""
        self._pairs = {node: pair for node, pair in self._pairs.items() if hints.get(node) == pair.hint}
        self._hints = {node: hint for node, hint in hints.items() if hint != self._hint}
        self._by_hint = {hint: node for node, hint in self._hints.items()}

    def seal(self, node: NodeId, payload: bytes) -> bytes | None:
        """A datagram for `node`; None when it is no member. `payload` is at most MESSAGE_BYTES_MAX."""
        pair = self._pair(node)
        return None if pair is None else self._sealed(pair, payload, pair.theirs)

    def open(self, data: bytes, now: float) -> Opened | Refused:
        """Raises nothing. `now` in seconds; it bounds how often is answered, and decides nothing else."""
        if len(data) > DATAGRAM_BYTES_MAX:
            return Refused("too_large")
        if data[: len(DATAGRAM_MARK)] != DATAGRAM_MARK or len(data) <= len(DATAGRAM_MARK):
            return Refused("garbled")
        if data[len(DATAGRAM_MARK)] != PROTOCOL:
            return Refused("other_version")
        if len(data) < SEAL_BYTES:
            return Refused("garbled")
        _, _, hint, echo, boot, challenge, seq = _HEAD.unpack_from(data)
        node = self._by_hint.get(hint)
        pair = None if node is None else self._pair(node)
        if node is None or pair is None:
            return Refused("stranger")
        if not hmac.compare_digest(_tag(pair.key, data[:-TAG_BYTES]), data[-TAG_BYTES:]):
            return Refused("bad_tag")
        if echo != pair.challenge and not (echo == pair.former and boot == pair.former_of):
            # Its own challenge may be as old as the rest: the answer repeats it, and nobody else is told it.
            return Refused("stale", node, self._answer(pair, boot, challenge, now))
        last = pair.boots.pop(boot, None)
        if last is not None and seq <= last:
            pair.boots[boot] = last
            return Refused("repeated" if last - seq < self._settings.window else "replayed", node)
        pair.boots[boot], pair.theirs = seq, challenge
        return Opened(node, data[_HEAD.size : -TAG_BYTES], None if last is not None else self._met(pair, boot, now))

    def _met(self, pair: _Pair, boot: bytes, now: float) -> bytes | None:
        """Another process of that node: what was said by any before it is worth nothing from now on. One that still
        lives (a copied disk) hears the new challenge, and goes on."""
        if len(pair.boots) > self._settings.boots_max:
            del pair.boots[next(iter(pair.boots))]
        pair.former, pair.former_of, pair.challenge = pair.challenge, boot, self._nonce(NONCE_BYTES)
        return self._answer(pair, boot, pair.theirs, now)

    def _answer(self, pair: _Pair, boot: bytes, challenge: bytes, now: float) -> bytes | None:
        """Shows our challenge to who said that; each process of it so often only, whatever others repeat of it."""
        before = pair.answered.pop(boot, None)
        if before is not None and now - before < self._settings.answer_every_s:
            pair.answered[boot] = before
            return None
        pair.answered[boot] = now
        if len(pair.answered) > self._settings.answered_max:
            del pair.answered[next(iter(pair.answered))]
        return self._sealed(pair, b"", challenge)

    def _sealed(self, pair: _Pair, payload: bytes, echo: bytes) -> bytes:
        assert len(payload) <= MESSAGE_BYTES_MAX
        self._seq += 1
        head = _HEAD.pack(DATAGRAM_MARK, PROTOCOL, self._hint, echo, self._boot, pair.challenge, self._seq)
        return head + payload + _tag(pair.key, head, payload)

    def _pair(self, node: NodeId) -> _Pair | None:
        pair = self._pairs.get(node)
        if pair is None and node in self._hints:
            pair = self._pairs[node] = _Pair(self._hints[node], self._key_of(node), self._nonce(NONCE_BYTES))
        return pair


def _tag(key: bytes, *parts: bytes) -> bytes:
    tag = blake2b(key=key, digest_size=TAG_BYTES, person=_PERSON)
    for part in parts:
        tag.update(part)
    return tag.digest()
