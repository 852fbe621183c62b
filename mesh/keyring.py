"""The keys of clients on this node: kept in mesh/keys.json, made and revoked here, told to the other nodes."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from mesh.errors import MeshError
from mesh.files import read_or_set_aside, write_atomic
from mesh.keys import RANDOM_BYTES, ClientKey, Keys
from mesh.log import event, utc
from mesh.wire import KeysFrame

Json = dict[str, Any]

_log = logging.getLogger("mesh.keys")


class KeyFile(Struct, frozen=True):
    """mesh/keys.json."""

    version: int = 1
    keys: tuple[ClientKey, ...] = ()
    lost: bool = False  # a file before this one was damaged: a node that forgot its keys must not let everybody in


class KeyRing:
    """The keys of one home. `write` is LateWriter's, `flush` waits for it; `spread` tells every node that is linked.
    A file that cannot be read is told of, and keys are then needed until another node brings them, or `off`."""

    def __init__(
        self,
        folder: Path,
        *,
        tell: Callable[[str], None],
        write: Callable[[Path, bytes], None],
        spread: Callable[[KeysFrame], None],
    ) -> None:
        self._path, self._write, self._spread = folder / "keys.json", write, spread
        self._watchers: list[Callable[[], None]] = []
        existed = self._path.exists()
        file = read_or_set_aside(self._path, msgspec.json.Decoder(KeyFile).decode, tell)
        if file is None and existed:
            tell(
                "keys of clients are lost here: those on other machines are refused until another node of the mesh "
                "brings the keys, or `mlx-stack keys off` says that none are needed"
            )
            file = KeyFile(lost=True)
            if not self._path.exists():
                with suppress(OSError):  # then the next start asks for no key, which a full disk may not be told of
                    write_atomic(self._path, _encoded(file))
        file = file or KeyFile()
        self._keys, self._lost = Keys(file.keys), file.lost

    # For the guard

    @property
    def needed(self) -> bool:
        return self._lost or self._keys.needed

    def name_of(self, presented: str) -> str | None:
        return self._keys.name_of(presented)

    def id_of(self, presented: str) -> str:
        return self._keys.id_of(presented)

    def counts(self, id_: str) -> bool:
        return self._keys.counts(id_)

    def watch(self, changed: Callable[[], None]) -> None:
        """`changed` is called when any key was made or revoked, here or elsewhere."""
        self._watchers.append(changed)

    # Between nodes

    @property
    def frame(self) -> KeysFrame | None:
        """All that is known, for a node that was met; None: nothing."""
        return KeysFrame(self._keys.all) if self._keys.all else None

    def take(self, frame: KeysFrame) -> None:
        """What another node knows. What is new here goes on to the others: not each is linked with each."""
        before, found = self.needed, self._lost and bool(frame.keys)
        if self._keys.merge(frame.keys) or found:
            self._lost = self._lost and not found
            self._changed()
            if self.needed is not before:
                self._said("another node says so")

    # What people ask for

    def listed(self) -> Json:
        live = [_shown(key) for key in self._keys.live]
        return {"needed": self.needed, "keys": live, "revoked": len(self._keys.all) - len(live)}

    def create(self, name: str, *, first: bool) -> Json:
        """A new key with its text, which nobody can tell later. Raises MeshError; `first_key` unless `first`: from this
        one on others are refused."""
        if not self.needed and not first:
            raise MeshError(
                "first_key",
                "this is the first key: clients on other machines that do not send one are refused from now on",
                hint="`mlx-stack keys create NAME --yes` if that is wanted",
                status=409,
            )
        was_needed = self.needed
        text, key = self._keys.create(name, secrets.token_bytes(RANDOM_BYTES), int(time.time()))
        self._changed()
        event(_log, logging.INFO, "key", f"key '{key.name}' ({key.id}) was made")
        if not was_needed:
            self._said("the first one was made")
        return {**_shown(key), "key": text}

    def revoke(self, wanted: str) -> Json:
        """By name or id. Raises MeshError."""
        key = self._keys.revoke(wanted, int(time.time()))
        self._changed()
        event(_log, logging.INFO, "key", f"key '{key.name}' ({key.id}) was revoked")
        return {"revoked": key.name, "id": key.id, "left": len(self._keys.live)}

    def off(self) -> Json:
        """No key is needed any more, anywhere in the mesh."""
        if self.needed:
            self._keys.off(int(time.time()))
            self._lost = False
            self._changed()
            self._said("they were switched off")
        return self.listed()

    def _changed(self) -> None:
        self._write(self._path, _encoded(KeyFile(keys=self._keys.all, lost=self._lost)))
        self._spread(KeysFrame(self._keys.all))
        for changed in self._watchers:
            changed()

    def _said(self, why: str) -> None:
        what = "need a key from now on" if self.needed else "need no key any more"
        event(_log, logging.WARNING, "keys", f"clients on other machines {what}: {why}")


def _encoded(file: KeyFile) -> bytes:
    return msgspec.json.format(msgspec.json.encode(file))


def _shown(key: ClientKey) -> Json:
    return {"id": key.id, "name": key.name, "created": utc(key.made)}
