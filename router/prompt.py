"""What does a prompt look like? Its length, and hashes of its starts; never its text.

The prompt is laid out as the model will roughly read it: tools, then the messages in their order, each behind a mark of
its role. Every `block_bytes` of that are one block, and each block's hash is made over the one before, so it names the
whole prompt up to its end: a conversation that goes on keeps the blocks it had, and two that share a system prompt
share its blocks and no more. What a client may change from turn to turn without the model seeing it (spaces, ids,
`cache_control`, text as one part or as a string) is not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec
from msgspec import Raw, Struct

from router.settings import PromptSettings

_HASH_BYTES = 8
_MARK_BYTES = 16  # of each message: about what a chat template puts around it
_ROLE_LENGTH = 32  # a longer one is nobody's, and not remembered
_RUN_BLOCKS = 16  # hashed, and remembered, together: some 4 KiB
_UNSEEN = frozenset({"type", "cache_control"})  # fields of a part that its model does not see


class Message(Struct):
    """Its content may be text, parts, or null beside tool calls; what other parts mean is the engine's business."""

    role: str
    content: str | list[dict[str, Raw]] | None = None
    name: Raw = Raw()
    tool_calls: Raw = Raw()


class Prompt(Struct, frozen=True, kw_only=True):
    """`size_bytes` of text, `tokens` of a prompt that is given in tokens. `guessed`: part of the size is a guess (an
    image, a form), so it says nothing about bytes per token. `whole`: hash of all of it; `follows`: the `whole` of the
    request whose answer this one goes on from, 0 = it goes on from none."""

    size_bytes: int = 0
    tokens: int = 0
    guessed: bool = False
    blocks: tuple[int, ...] = ()
    whole: int = 0
    follows: int = 0


class _Function(Struct):
    name: str = ""
    arguments: str = ""


class _Call(Struct):
    function: _Function


_calls = msgspec.json.Decoder(list[_Call])


class _Layout:
    """The prompt laid end to end. Only as much is kept as is hashed."""

    def __init__(self, bounds: PromptSettings) -> None:
        self._bounds = bounds
        self._kept: list[bytes] = []
        self._room = bounds.block_bytes * bounds.blocks_limit
        self._answered: tuple[int, int] | None = None  # bytes kept, and in all, where the last answer begins
        self.size = 0
        self.guessed = False

    def add(self, data: bytes) -> None:
        self.size += len(data)
        if self._room > 0:
            kept = data[: self._room]
            self._room -= len(kept)
            self._kept.append(kept)

    def mark(self, role: str, name: bytes = b"") -> None:
        """Begins a message; no text can look like it."""
        if name or len(role) > _ROLE_LENGTH:
            self.add(_mark(role, name))
        else:
            self.add(_role(role))

    def answered(self) -> None:
        """An answer begins here; the last one counts."""
        self._answered = self._bounds.block_bytes * self._bounds.blocks_limit - self._room, self.size

    def text(self, text: str) -> None:
        self.add(text.encode("utf-8", "surrogatepass"))

    def media(self, part: Mapping[str, Raw]) -> None:
        """An image, a sound: as long as one is taken to be, and not the same for two of them."""
        self.guessed = True
        hashed = hashlib.blake2b(digest_size=_MARK_BYTES, person=b"media")
        for field in sorted(part.keys() - _UNSEEN):
            value = memoryview(part[field])
            hashed.update(f"{field}\0{value.nbytes}\0".encode("utf-8", "surrogatepass"))
            hashed.update(value[: self._bounds.media_hashed_bytes])
        self.add(hashed.digest() * (self._bounds.media_bytes // _MARK_BYTES))

    def prompt(self) -> Prompt:
        data = b"".join(self._kept)
        blocks = chain(data, self._bounds.block_bytes)
        whole = self._hash(blocks, data, len(data), self.size)
        follows = self._hash(blocks, data, *self._answered) if self._answered is not None else 0
        return Prompt(size_bytes=self.size, guessed=self.guessed, blocks=blocks, whole=whole, follows=follows)

    def _hash(self, blocks: tuple[int, ...], data: bytes, kept: int, size: int) -> int:
        """Of the first `kept` bytes, whose blocks are hashed already, and of the length of all up to there."""
        width = self._bounds.block_bytes
        full = kept // width
        before = blocks[full - 1].to_bytes(_HASH_BYTES) if full else b""
        said = before + data[full * width : kept] + size.to_bytes(8)
        return int.from_bytes(hashlib.blake2b(said, digest_size=_HASH_BYTES, person=b"whole").digest())


def _mark(role: str, name: bytes) -> bytes:
    said = role.encode("utf-8", "surrogatepass") + b"\0" + name
    return hashlib.blake2b(said, digest_size=_MARK_BYTES, person=b"message").digest()


@lru_cache(maxsize=64)
def _role(role: str) -> bytes:
    """There are four or five."""
    return _mark(role, b"")


def chain(data: bytes, block_bytes: int) -> tuple[int, ...]:
    """One hash of 64 bits per whole block, each over the one before it too. What is left at the end is in none."""
    step = block_bytes * _RUN_BLOCKS
    hashes: tuple[int, ...] = ()
    for at in range(0, len(data), step):
        run = data[at : at + step]
        links = _links if len(run) == step else _links.__wrapped__
        hashes += links(hashes[-1].to_bytes(_HASH_BYTES) if hashes else b"", run, block_bytes)
    return hashes


@lru_cache(maxsize=256)
def _links(before: bytes, data: bytes, block_bytes: int) -> tuple[int, ...]:
    """Of the blocks of `data`, behind what `before` is the hash of. What a conversation begins with comes again with
    each of its turns, and a system prompt with each request: found here it takes a tenth."""
    hashes = []
    blake2b = hashlib.blake2b
    for at in range(0, len(data) - block_bytes + 1, block_bytes):
        before = blake2b(before + data[at : at + block_bytes], digest_size=_HASH_BYTES).digest()
        hashes.append(int.from_bytes(before))
    return tuple(hashes)


def of_chat(tools: Sequence[Raw], messages: Sequence[Message], bounds: PromptSettings) -> Prompt:
    """`tools` as they stand in the body, in a fixed order of their fields."""
    layout = _Layout(bounds)
    for raw in tools:
        if said := _bytes(raw):
            layout.mark("tools")
            layout.add(said)
    for message in messages:
        if message.role == "assistant":
            layout.answered()
        layout.mark(message.role, _bytes(message.name))
        if isinstance(message.content, str):
            layout.text(message.content)
        for part in message.content if isinstance(message.content, list) else ():
            text = _text(part)
            if text is None:
                layout.media(part)
            else:
                layout.text(text)
        _add_calls(layout, _bytes(message.tool_calls))
    return layout.prompt()


def of_text(text: str, bounds: PromptSettings) -> Prompt:
    """A prompt without roles."""
    layout = _Layout(bounds)
    layout.text(text)
    return layout.prompt()


def of_several(prompts: Sequence[str | int | list[int]]) -> Prompt:
    """Several prompts in one body, or tokens: how long they are is all that is known of them."""
    tokens = sum(1 if isinstance(p, int) else len(p) for p in prompts if not isinstance(p, str))
    size = sum(len(p.encode("utf-8", "surrogatepass")) for p in prompts if isinstance(p, str))
    return Prompt(size_bytes=size, tokens=tokens)


def of_form(bounds: PromptSettings) -> Prompt:
    """A form's files count as one image does, whatever their size."""
    return Prompt(size_bytes=bounds.media_bytes, guessed=True)


def _bytes(raw: Raw) -> bytes:
    """Empty when it was null or not there."""
    said = bytes(raw)
    return b"" if said == b"null" else said


def _text(part: Mapping[str, Raw]) -> str | None:
    """The text of a part that is text."""
    if "text" not in part:
        return None
    try:
        return msgspec.json.decode(part["text"], type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):  # the serving node refuses that
        return None


def _add_calls(layout: _Layout, raw: bytes) -> None:
    if not raw:
        return
    try:
        calls = _calls.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        layout.add(raw)
        return
    for call in calls:
        layout.mark("call", call.function.name.encode("utf-8", "surrogatepass"))
        layout.text(call.function.name + call.function.arguments)
