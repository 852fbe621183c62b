"""What a client has of an answer, kept so that the answer can go on elsewhere when its node is lost.

While a stream flows its blocks are only appended; they are read when it is cut. All of it is bounded: beyond its own
bound a stream is not kept any more, beyond the daemon's the oldest streams are not. Those cannot be saved then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from node.continuation import Continuation
from router.seam import SeamError, payload, read, says


class Keep:
    """All that one daemon keeps. Bounds in bytes."""

    def __init__(self, stream_limit_bytes: int, limit_bytes: int) -> None:
        self._stream_limit, self._limit = stream_limit_bytes, limit_bytes
        self._kept: dict[Kept, None] = {}  # the oldest stream first
        self.held_bytes = 0

    def begin(self, dropped: Callable[[str], None]) -> Kept:
        """A new answer. `dropped` is called, once, with the reason when it is not kept any more."""
        kept = Kept(self, dropped)
        self._kept[kept] = None
        return kept

    def grown(self, kept: Kept, size: int) -> None:
        """`kept` holds `size` bytes more."""
        self.held_bytes += size
        if kept.size > self._stream_limit:
            kept.drop(f"more than {self._stream_limit} bytes of it were sent")
        while self.held_bytes > self._limit:
            oldest = next(k for k in self._kept if k.size)
            oldest.drop(f"younger streams took the {self._limit} bytes that this daemon keeps of answers")

    def forget(self, kept: Kept) -> None:
        """`kept` holds nothing any more."""
        self.held_bytes -= kept.size
        self._kept.pop(kept, None)


class Kept:
    """One answer: each `data:` block that went to the client, `[DONE]` left out."""

    def __init__(self, keep: Keep, dropped: Callable[[str], None]) -> None:
        self._keep, self._dropped = keep, dropped
        self._data = bytearray()
        self._over = False
        self.why_not = ""  # it is not kept any more

    @property
    def size(self) -> int:
        return len(self._data)

    def add(self, block: bytes) -> None:
        if not self._over:
            self._data += block
            self._keep.grown(self, len(block))

    def drop(self, why: str) -> None:
        """Keep nothing of it from now on."""
        if not self._over:
            self.why_not = why
            self.close()
            self._dropped(why)

    def restart(self) -> None:
        """None of it counts: the answer begins again, and nobody has seen anything."""
        if not self._over:
            self._keep.held_bytes -= len(self._data)
            self._data.clear()

    def close(self) -> None:
        """The answer is over. Idempotent."""
        if not self._over:
            self._keep.forget(self)
            self._over, self._data = True, bytearray()

    def blocks(self) -> list[bytes]:
        """What was sent. SSE: a blank line ends a block and is never inside one."""
        return [block + b"\n\n" for block in bytes(self._data).split(b"\n\n") if block]


class _Named(Struct):
    """The chunk as far as it must be read when it names its tokens."""

    id: str | None = None
    created: int | None = None
    mesh_tokens: list[int] | None = None


_named = msgspec.json.Decoder(_Named)


def continuation(blocks: Sequence[bytes]) -> Continuation | None:
    """What a worker must know to go on after `blocks`; None when they do not carry the tokens of all their text.
    Raises SeamError when one is no chunk. Many long answers may break off at once, so little of each is read."""
    tokens: list[int] = []
    head: _Named | None = None
    carried = False
    for block in blocks:
        try:
            chunk = _named.decode(payload(block))
        except msgspec.ValidationError:
            chunk = _Named()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SeamError("a chunk of the answer is not understood") from error
        head = head or chunk
        if chunk.mesh_tokens is not None:
            tokens += chunk.mesh_tokens
            carried = True
        elif any(says(choice) for choice in read(block).get("choices") or ()):
            return None
    if head is None or not carried:
        return None
    return Continuation(id=head.id or "", created=head.created or 0, tokens=tuple(tokens), blocks=len(blocks))
