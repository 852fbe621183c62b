"""OpenAI requests, chunks, usage and errors as a node needs them, and SSE framing. Pure: bytes in, bytes out."""

from __future__ import annotations

import re

import msgspec
from msgspec import Raw, Struct

from node.errors import NodeError, NodeErrorCode
from node.types import Usage

DONE = b"data: [DONE]\n\n"

# Never passed on: they would make mlx_lm.server load other weights, or are the mesh's own.
STRIPPED = frozenset({"adapters", "draft_model", "num_draft_tokens", "keep_alive"})
FORCED = {"stream": Raw(b"true"), "stream_options": Raw(b'{"include_usage":true}')}

_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_PLAIN_PATH = re.compile(f"{_SEGMENT}(?:/{_SEGMENT})*")
_Fields = dict[str, Raw]
_fields = msgspec.json.Decoder(_Fields)
_encode = msgspec.json.Encoder().encode


class UsageEvent(Struct, frozen=True):
    """Usage found in a chunk. `alone`: the chunk carries nothing else, so a client that did not ask must not see it."""

    usage: Usage
    alone: bool


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _UsageChunk(Struct):
    usage: _Usage | None = None
    choices: list[Raw] | None = None


_usage_chunk = msgspec.json.Decoder(_UsageChunk)


class _ErrorDetail(Struct):
    message: str


class _ErrorBody(Struct):
    """The shapes in which the engines say what is wrong."""

    error: _ErrorDetail | str | None = None
    message: str | None = None
    detail: str | None = None


_error_body = msgspec.json.Decoder(_ErrorBody)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # all that decoding what a server sends raises


def plain_path(path: str) -> bool:
    """Whether a path below /v1 stays below it whoever reads it: no `..`, no `?` or `#` that was written as %3F, ...
    With one, a client could call whatever else an engine serves under a wildcard like `audio/*`."""
    return _PLAIN_PATH.fullmatch(path) is not None


def _refusal(message: str) -> NodeError:
    return NodeError(NodeErrorCode.BAD_REQUEST, message)


def _decoded(body: bytes) -> _Fields:
    try:
        str(body, "utf-8")  # nested text is not decoded below, and a server that meets bad UTF-8 just hangs up
        return _fields.decode(body)
    except UnicodeDecodeError as error:
        raise _refusal(f"the body is not valid UTF-8: {error.reason} at byte {error.start}") from error
    except msgspec.ValidationError as error:
        raise _refusal("the body must be a JSON object") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise _refusal(f"the body is not valid JSON: {error}") from error


def clean_request(body: bytes, *, model: str) -> bytes:
    """The client's completion request as a worker may see it.

    `model` becomes the name the worker knows; fields that would change its weights are dropped, and so are nulls at
    the top level, which mlx_lm.server refuses; the answer is streamed and tells its usage. Unknown fields and all
    nested values stay byte for byte. Raises NodeError(BAD_REQUEST) when the body is no JSON object.
    """
    fields = {name: value for name, value in _decoded(body).items() if name not in STRIPPED and not _is_null(value)}
    _check_stop(fields.get("stop"))
    return _encode({**fields, **FORCED, "model": model})


def runs_alone(body: bytes) -> bool:
    """Whether mlx_lm.server takes the request out of its batch: it is seeded."""
    if b'"seed"' not in body:
        return False
    try:
        seed = _decoded(body).get("seed")
    except NodeError:
        return False  # It is refused anyway.
    return seed is not None and not _is_null(seed)


def _is_null(value: Raw) -> bool:
    return memoryview(value).nbytes == 4 and bytes(value) == b"null"  # no copy of a long prompt just to look


def _check_stop(stop: Raw | None) -> None:
    """mlx_lm.server builds stop words outside any guard: a number in there would end its generation thread."""
    if stop is None:
        return
    try:
        words = msgspec.json.decode(stop, type=str | list[str])
    except _UNREADABLE as error:
        raise _refusal("stop must be a string or a list of strings") from error
    if "" in ([words] if isinstance(words, str) else words):
        raise _refusal("stop must not hold an empty string")


def rename_request(body: bytes, *, model: str) -> bytes:
    """A JSON request for another endpoint (embeddings, ...) with `model` as the worker knows it and without
    `keep_alive`, which is ours, else unchanged.

    Raises NodeError(BAD_REQUEST) when the body is no JSON object.
    """
    fields = {name: value for name, value in _decoded(body).items() if name != "keep_alive"}
    return _encode({**fields, "model": model})


class SseSplitter:
    """Cuts a byte stream into SSE blocks, wherever the network cut it.

    A block comes back whole, with LF line ends and the blank line that ends it; bytes of a stream that already is
    like that are not changed. Blank blocks vanish. `limit_bytes` bounds what one block may take.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._rest = b""
        self._held = b""  # a CR at the end of what has come: half a CRLF, or a line end of its own

    def is_block(self, data: bytes) -> bool:
        """Whether `data`, fed now, is one block and nothing else, as nearly all come. False says nothing."""
        size = len(data)
        return (
            data.find(b"\n\n") == size - 2 > 0
            and not (self._rest or self._held)
            and size <= self._limit_bytes
            and b"\r" not in data
            and not data.startswith(b"\n")
        )

    def feed(self, data: bytes) -> list[bytes]:
        """The blocks that `data` completes. Raises NodeError(MODEL_FAILED) when a block exceeds the limit."""
        if self.is_block(data):
            return [data]
        *whole, self._rest = (self._rest + self._with_lf(data)).split(b"\n\n")
        if len(self._rest) > self._limit_bytes:
            message = f"the model server sent an event of more than {self._limit_bytes} bytes"
            raise NodeError(NodeErrorCode.MODEL_FAILED, message)
        lines = (block.strip(b"\n") for block in whole)
        return [block + b"\n\n" for block in lines if block]

    def _with_lf(self, data: bytes) -> bytes:
        if self._held or b"\r" in data:
            data = self._held + data
            self._held = b"\r" if data.endswith(b"\r") else b""
            data = data.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data


def is_comment(block: bytes) -> bool:
    """A sign of life only: no line of it carries a field."""
    return block.startswith(b":") and all(line.startswith(b":") for line in block.rstrip(b"\n").split(b"\n"))


def data_of(block: bytes) -> bytes | None:
    """The payload of a block's `data:` lines, or None when it has none."""
    lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def is_done(block: bytes) -> bool:
    """`data: [DONE]`, the only proof that an answer is whole."""
    return b"[DONE]" in block and (data_of(block) or b"").strip() == b"[DONE]"


def usage_of(block: bytes) -> UsageEvent | None:
    """The usage a chunk carries, or None. Text of the answer cannot look like it: quotes are escaped there."""
    at = block.find(b'"usage"')
    if at < 0 or (block[at + 7 : at + 13].lstrip(b": ").startswith(b"null") and block.find(b'"usage"', at + 7) < 0):
        return None  # many servers say `"usage": null` in every chunk but the last
    data = data_of(block)
    if data is None:
        return None
    try:
        chunk = _usage_chunk.decode(data)
    except _UNREADABLE:
        return None
    if chunk.usage is None:
        return None
    details = chunk.usage.prompt_tokens_details
    usage = Usage(
        prompt=chunk.usage.prompt_tokens or 0,
        cached=(details.cached_tokens or 0) if details else 0,
        completion=chunk.usage.completion_tokens or 0,
    )
    return UsageEvent(usage, alone=not chunk.choices)


def error_of(block: bytes) -> str | None:
    """What went wrong, when a block is an error event in the middle of a stream."""
    if b'"error"' not in block and not block.startswith(b"event: error"):
        return None
    data = data_of(block)
    if data is None:
        return None
    try:
        found = _error_body.decode(data)
    except _UNREADABLE:
        return data.decode(errors="replace")[:500] if block.startswith(b"event: error") else None
    return None if found.error is None else _said(found)


def error_text(body: bytes) -> str:
    """The sentence in an engine's error body, whatever its shape; at most 500 characters."""
    try:
        said = _said(_error_body.decode(body))
    except _UNREADABLE:
        said = ""
    return (said or body.decode(errors="replace").strip() or "no explanation")[:500]


def _said(body: _ErrorBody) -> str:
    match body.error:
        case _ErrorDetail(message=message):
            return message
        case str(message):
            return message
        case _:
            return body.message or body.detail or ""


def bare(block: bytes) -> bytes | None:
    """The block as the mesh passes it on: `data:` first, or a comment alone, as most servers send them. `id:`, `event:`
    or a comment before the data are dropped, the chunk says all; None when nothing is left."""
    if block.startswith(b"data:") or is_comment(block):
        return block
    data = data_of(block)
    return None if data is None else b"data: " + data.replace(b"\n", b" ") + b"\n\n"


class Renamer:
    """Puts `model` into the bare blocks of one server as the model that their chunks name; other blocks stay as they
    are. What stands there is learned from the first chunk, and then looked for as bytes: no quote inside a text of the
    answer is without its backslash, so text cannot look like it."""

    def __init__(self, model: str) -> None:
        self.model, self._model = model, _encode(model)
        self._theirs = self._ours = b""

    def __call__(self, block: bytes) -> bytes:
        theirs = self._theirs
        if theirs and theirs in block and block.count(b'"model"') == 1:
            return block if theirs == self._ours else block.replace(theirs, self._ours)
        return self._read(block)

    def _read(self, block: bytes) -> bytes:
        data = data_of(block)
        if data is None or b'"model"' not in data:
            return block
        try:
            fields = _fields.decode(data)
        except _UNREADABLE:
            return block
        if "model" not in fields:
            return block
        value = bytes(fields["model"])
        for key in (b'"model":', b'"model": '):
            if block.count(key + value) == block.count(b'"model"') == 1:
                self._theirs, self._ours = key + value, key + self._model
                return block.replace(self._theirs, self._ours)
        return b"data: " + _encode({**fields, "model": Raw(self._model)}) + b"\n\n"
