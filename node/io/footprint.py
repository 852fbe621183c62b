"""The bytes of one model: guessed from its files, corrected by what its workers took, and seen while one runs."""

from __future__ import annotations

import hashlib

from msgspec import structs

from node import headroom
from node.errors import NodeError
from node.headroom import Shape, Taken
from node.io import weights
from node.io.engine import ModelSpec
from node.io.flags import number_of
from node.io.measured import Measured
from node.settings import NodeSettings

_TYPICAL_TOKENS = 4096  # of one text in a prompt cache: a window makes longer ones cheaper per token


class Footprint:
    """Sizes in bytes. `size` is what a worker needs reserved, `cache` what of it its keys and values may take
    (`cache_tokens` of them), `measured` what the running worker was last seen to take, 0 when none runs."""

    def __init__(self, settings: NodeSettings, measured: Measured) -> None:
        self._settings, self._measured = settings, measured
        self.shape = Shape(weight_bytes=0)
        self.size = self.cache = self.cache_tokens = self.measured = 0
        self._identity = ""
        self._taken: Taken | None = None
        self.reserved = 0  # for the running worker, when it was started
        self._fresh = True  # the next measurement is the first of a worker

    def look(self, spec: ModelSpec, budget_bytes: int) -> None:
        """Reads the model's files and what is remembered. Blocks on the disk. Raises NodeError (for an engine that is
        a command of the user's too; then what is remembered counts alone) and OSError."""
        settings = self._settings
        self._identity = hashlib.blake2b("\0".join((spec.path, *spec.command)).encode(), digest_size=16).hexdigest()
        try:
            directory = weights.locate(spec.path)
            self.shape = weights.shape(directory)
            self._identity = weights.identity(directory)
        except (NodeError, OSError):
            self.shape = Shape(weight_bytes=0)
            self._taken = self._measured.get(self._identity)
            self.size = self._sized()
            raise
        self._taken = self._measured.get(self._identity)
        shape = self.shape = structs.replace(self.shape, context=spec.context or self.shape.context)
        self.cache = number_of(spec.extra_args, "--prompt-cache-bytes") or headroom.cache_bytes(
            shape,
            budget_bytes=budget_bytes,
            kv_tokens=settings.kv_tokens,
            least=settings.cache_bytes_min,
            most=settings.cache_bytes_max,
        )
        self.cache_tokens = self.cache * _TYPICAL_TOKENS // max(1, headroom.kv_bytes(shape, _TYPICAL_TOKENS))
        if not headroom.kv_bytes(shape, 1):
            self.cache_tokens = 0  # Unknown.
        self.size = self._sized()

    def started(self) -> None:
        """A worker is about to start."""
        self._fresh, self.reserved = True, self.size

    @property
    def needs(self) -> int:
        """Bytes that have to be reserved now."""
        return max(self.size, self.measured)

    def grown(self, taken_bytes: int) -> bool:
        """Whether a worker that takes so much has grown too far to be left alone."""
        return bool(self.reserved) and taken_bytes > self._settings.leak_factor * self.reserved

    def ended(self) -> None:
        self.measured = 0

    def see(self, taken_bytes: int, *, grown: bool) -> bool:
        """A worker was measured. True when it is worth remembering (`remember`): the first measurement of a worker,
        or one well above all before. A worker that has `grown` too far is not a measure of the next one."""
        self.measured = taken_bytes
        known = self._taken or Taken(0)
        if self._fresh:
            self._fresh = False
            self._taken = Taken(taken_bytes, max(taken_bytes, known.peak_bytes))
            self.reserved = max(self.reserved, self._sized())  # A guess too low is not its worker's leak.
        elif not grown and taken_bytes > known.peak_bytes * 1.02:
            self._taken = Taken(known.base_bytes or taken_bytes, taken_bytes)
        else:
            return False
        self.size = self._sized()
        return self._taken != known

    def remember(self) -> None:
        """Keeps what was seen for later loads. Blocks on the disk."""
        assert self._taken is not None
        self._measured.put(self._identity, self._taken)

    def _sized(self) -> int:
        taken = self._taken
        if self.shape.weight_bytes:
            return headroom.model_bytes(self.shape, self.cache, taken)
        return max(taken.base_bytes, taken.peak_bytes) if taken else 0
