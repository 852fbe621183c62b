"""The keys of clients of :4000: which are known, whom one belongs to, and how two nodes' sets become one. Pure.

A key is `sk-mesh-`, 12 hex digits that name it and 40 that are secret (160 random bits). Kept of it is a SHA-256: what
is random already needs no slow hash (docs/adr/0013-client-keys.md).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct
from msgspec.structs import replace

from mesh.errors import MeshError

PREFIX = "sk-mesh-"
KEYS_MAX = 4096  # of one mesh, revoked ones included: those must be known for ever
_ID, _SECRET = 12, 40  # hex digits
_FORM = re.compile(rf"{PREFIX}([0-9a-f]{{{_ID}}})[0-9a-f]{{{_SECRET}}}")
RANDOM_BYTES = (_ID + _SECRET) // 2

Seconds: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 53)]  # since 1970


class ClientKey(Struct, frozen=True, kw_only=True):
    """One key, as nodes tell each other and keep it. `revoked` is when it was: that never becomes None again. `off`: it
    was among those that `off` ended, so that clients need none because of it any more."""

    id: Annotated[str, Meta(pattern=f"^[0-9a-f]{{{_ID}}}$")]
    name: Annotated[str, Meta(max_length=63)]
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    made: Seconds
    revoked: Seconds | None = None
    off: bool = False


class Keys:
    """All keys of one mesh that this node knows of. Merging is a join: whatever comes in whatever order, and however
    often, the same telling makes the same set."""

    def __init__(self, keys: Iterable[ClientKey] = (), *, keys_max: int = KEYS_MAX) -> None:
        self._max = keys_max
        self._all: dict[str, ClientKey] = {}
        self._live: dict[str, ClientKey] = {}
        self.needed = False
        """Whether clients need one. Revoking the last does not end that: only `off` does, which says what it does."""
        self.merge(keys)

    @property
    def all(self) -> tuple[ClientKey, ...]:
        return tuple(self._all[id_] for id_ in sorted(self._all))

    @property
    def live(self) -> tuple[ClientKey, ...]:
        """Those that count, by name."""
        return tuple(sorted(self._live.values(), key=lambda k: (k.name, k.made, k.id)))

    def name_of(self, presented: str) -> str | None:
        """Whose key this is; None when it is none that counts. How long that takes tells nothing of a secret."""
        digest = _digest(presented)
        found = self._live.get(self.id_of(presented))
        return found.name if found is not None and hmac.compare_digest(digest, found.digest) else None

    @staticmethod
    def id_of(presented: str) -> str:
        """Of a key that counts: which it is. Of other texts anything."""
        return presented[len(PREFIX) : len(PREFIX) + _ID]

    def counts(self, id_: str) -> bool:
        """This very key does: another may have its name, made elsewhere at the same time, or after it was revoked."""
        return id_ in self._live

    def create(self, name: str, random: bytes, at: int) -> tuple[str, ClientKey]:
        """A new key, made of RANDOM_BYTES `random` ones, and what is kept of it. Raises MeshError key_exists,
        keys_full."""
        assert len(random) == RANDOM_BYTES
        if any(key.name == name for key in self._live.values()):
            hint = "choose another name, or revoke that one first"
            raise MeshError("key_exists", f"there is a key '{name}' already", hint=hint, status=409)
        if len(self._all) >= self._max:
            hint = "revoked ones have to be known for ever; a new home folder begins anew"
            raise MeshError("keys_full", f"{self._max} keys were made, which is the bound", hint=hint, status=409)
        text = PREFIX + random.hex()
        key = ClientKey(id=random.hex()[:_ID], name=name, digest=_digest(text), made=at)
        self.merge((key,))
        return text, key

    def revoke(self, wanted: str, at: int) -> ClientKey:
        """By name or id. Raises MeshError unknown_key, ambiguous_key."""
        found = [k for k in self._live.values() if k.id == wanted] or [k for k in self.live if k.name == wanted]
        if not found:
            there = ", ".join(k.name for k in self.live) or "none"
            raise MeshError("unknown_key", f"no key '{wanted}' counts here; there is: {there}", status=404)
        if len(found) > 1:
            ids = ", ".join(k.id for k in found)
            raise MeshError(
                "ambiguous_key", f"'{wanted}' is more than one key: {ids}", hint="use one of these", status=409
            )
        gone = replace(found[0], revoked=at)
        self.merge((gone,))
        return gone

    def off(self, at: int) -> None:
        """All keys that are known here are revoked, and none of them makes that clients need one. One that is made
        elsewhere at the same time still does: nobody who made a key finds everybody let in."""
        self.merge([replace(k, revoked=at if k.revoked is None else k.revoked, off=True) for k in self._all.values()])

    def merge(self, keys: Iterable[ClientKey]) -> bool:
        """What another node knows. True when something is new here. Past the bound those stay that were revoked, then
        those with the lowest ids: the same ones on every node."""
        merged = dict(self._all)
        for key in keys:
            merged[key.id] = _joined(merged[key.id], key) if key.id in merged else key
        if len(merged) > self._max:
            kept = sorted(merged.values(), key=lambda k: (k.revoked is None, k.id))[: self._max]
            merged = {key.id: key for key in kept}
        if merged == self._all:
            return False
        self._all = merged
        self._live = {key.id: key for key in merged.values() if key.revoked is None}
        self.needed = any(not key.off for key in merged.values())
        return True


def well_formed(presented: str) -> bool:
    """It could be a key of ours."""
    return _FORM.fullmatch(presented) is not None


def _digest(text: str) -> str:
    return hashlib.sha256(b"mlx-stack client key\0" + text.encode("utf-8", "replace")).hexdigest()


def _joined(one: ClientKey, other: ClientKey) -> ClientKey:
    """Revoked anywhere is revoked. Two keys of one id are nobody's mistake, but which counts is the same everywhere."""
    return max(one, other, key=lambda k: (k.revoked is not None, k.off, -(k.revoked or 0), k.made, k.name, k.digest))
