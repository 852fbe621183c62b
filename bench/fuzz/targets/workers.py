"""A hostile model server: its whole connection, from the status line to the last event, and whoever reads those."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from random import Random
from typing import cast

from bench.fuzz.target import Run, Target, want
from bench.fuzz.targets.requests import cut
from bench.fuzz.trees import remade
from node.errors import NodeError
from node.io.dial import Origin
from node.io.flow import Meter, Metered
from node.io.http_wire import Connection, HttpError, Keeper
from node.io.poured import Poured, failed
from node.openai import Renamer, error_of, error_text, is_done, usage_of
from node.settings import EngineSettings, HttpSettings
from node.types import Usage
from router.assemble import Assembler
from router.io.carrier import _usage
from router.kept import Keep, continuation
from router.seam import Seam, SeamError

_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
_SETTINGS = EngineSettings(block_bytes=2048, error_bytes=512, http=HttpSettings(head_bytes=1024))


def _chunk(delta: object, **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None, **more}
    return b"data: " + json.dumps({"id": "c", "created": 1, "model": "m", "choices": [choice]}).encode() + b"\n\n"


_CALL = {"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a":'}}
_SAID = (
    _chunk({"role": "assistant", "content": "Par"}),
    _chunk({"content": "is", "reasoning": "r"}, logprobs={"content": [{"token": "is", "logprob": -1.0}]}),
    _chunk({"tool_calls": [_CALL]}),
    _chunk({"tool_calls": [{"function": {"arguments": "1}"}}]}),
    _chunk({"function_call": {"name": "f", "arguments": "{}"}}),
    _chunk({}, finish_reason="stop", mesh_tokens=[1]),
    b'data: {"choices":[{"text":"a","index":1}],"mesh_tokens":[5,6]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":1}}}\n\n',
    b'event: error\ndata: {"error":{"message":"broke","code":500}}\n\n',
    b'data: {"error":"broke"}\n\n',
    b": ping\n\n",
    b'id: 1\nevent: message\ndata: {"choices":\ndata: []}\n\n',
    b': usage {"prompt":5,"cached":2,"completion":2}\n\n',
    b"data: [DONE]\n\n",
)
_REFUSED = b'HTTP/1.1 500 Oh\r\ncontent-length: 25\r\n\r\n{"error":{"message":"no"}}'
_SEEDS = (
    _STREAM + b"".join(_SAID),
    *(_STREAM + one + _SAID[-1] for one in _SAID[:-1]),
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(_SAID[0]), _SAID[0]),
    _REFUSED,
    b"HTTP/1.1 429 Full\r\nretry-after: 1e999\r\n\r\nfull",
    b"HTTP/1.1 404 Not Found\r\n\r\nNot Found",
    _STREAM + b'data: {"usage":' + b"[" * 2000 + b"\n\n",
    _STREAM + b'data: {"error":"\xff","model":"\xff"}\n\n',
)
_WORDS = (
    b"data: ", b"event: error\n", b"data: [DONE]\n\n", b'"choices":[', b'"index":', b'"delta":{', b'"content":"',
    b"\n\n", b'"tool_calls":[', b'"function":{', b'"arguments":"', b'"usage":{', b'"error":', b'"model":"',
    b'"mesh_tokens":[1]', b'"logprobs":{"content":[]}', b'"finish_reason":"stop"', b"null", b"\\ud800", b"\\u0000",
    b"[" * 100, b"\r", b": x\n\n", b'"prompt_tokens":', b"true", b"[]", b"{}", b'"text":', b'"name":"', b'"role":"',
    b'"function_call":',
)  # fmt: skip


# What is refused takes along what was before it in the same piece.
_LOSES = re.compile("an event of more than|a chunk is not as long")


class _Sink:
    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.ends: list[NodeError | None] = []

    def block(self, block: bytes) -> None:
        want(not self.ends, "a block after the end")
        want(block.endswith(b"\n\n") and block.count(b"\n\n") == 1, "no whole block")
        want(block.startswith((b"data:", b":")), "a block that is none of ours")
        self.blocks.append(block)

    def done(self, error: NodeError | None) -> None:
        self.ends.append(error)


class _Transport:
    """Of a connection that only speaks."""

    def __init__(self) -> None:
        self.over = False

    def is_closing(self) -> bool:
        return self.over

    def abort(self) -> None:
        self.over = True

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class _Keeper:
    def keep(self, connection: Connection) -> bool:
        return not connection.usable

    def forget(self, connection: Connection, *, gone: bool = False) -> None: ...


@contextmanager
def _workers() -> Iterator[Run]:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()

        async def run(data: bytes) -> str:
            blocks, error = _heard([data])
            others, other = _heard(cut(data, 5))
            if not _LOSES.search(f"{error}{other}"):
                want((error and error.code) == (other and other.code), f"pieces of 5 bytes: {other}, not {error}")
                want(others == blocks, "pieces of 5 bytes are other blocks")
            _read(blocks)
            return f"{min(len(blocks), 9)} {'done' if error is None else error.message.partition(':')[0][:60]}"

        yield lambda data: loop.run_until_complete(run(data))


def _heard(pieces: Sequence[bytes]) -> tuple[list[bytes], NodeError | None]:
    """The blocks that a connection brings, and how it ended."""
    sink, transport = _Sink(), _Transport()
    connection = Connection(cast("Keeper", _Keeper()), Origin("127.0.0.1", 1, False))
    connection.connection_made(cast("asyncio.Transport", transport))

    def lost(error: HttpError) -> NodeError:
        return failed(f"lost: {error}")

    def pour(sink: object) -> Poured:
        answer = Poured(_SETTINGS, "chat/completions", cast("_Sink", sink), first_limit_s=60.0, rename=Renamer("ours"),
                        lost=lost)  # fmt: skip
        answer.begin(connection)
        return answer

    meter = Meter()
    Metered(meter, sink).through(pour)
    for piece in pieces:
        if transport.over:
            break
        connection.data_received(piece)
    if not transport.over:
        connection.eof_received()
    connection.connection_lost(None)
    want(len(sink.ends) == 1 and meter.active == 0, f"it ended {len(sink.ends)} times")
    return sink.blocks, sink.ends[0]


def _read(blocks: Sequence[bytes]) -> None:
    """Everything that the edge reads in them."""
    chunks = [block for block in blocks if block.startswith(b"data:")]
    for block in blocks:
        usage_of(block), error_of(block), error_text(block), is_done(block), _usage(block)
    keep = Keep(4096, 8192)
    kept = keep.begin(lambda _: None)
    for block in chunks:
        kept.add(block)
    again = kept.blocks()
    kept.close()
    want(keep.held_bytes == 0, "something stays")
    _may(SeamError, lambda: continuation(again))
    for place in (0, len(chunks) // 2, len(chunks)):
        _may(SeamError, partial(_joined, chunks[:place], chunks))
    _may(NodeError, lambda: _assembled(chunks))


def _joined(sent: Sequence[bytes], second: Sequence[bytes]) -> None:
    seam = Seam(sent)
    for block in second:
        if (new := seam.feed(block)) is not None:
            json.loads(new.removeprefix(b"data:"))
    seam.end()


def _assembled(chunks: Sequence[bytes]) -> None:
    assembler = Assembler(100_000)
    for chunk in chunks:
        assembler.feed(chunk)
    json.loads(assembler.answer(Usage()))


def _may(error: type[Exception], act: Callable[[], object]) -> None:
    with suppress(error):
        act()


def _remade(data: bytes, rng: Random) -> bytes:
    """One event of it with other values, or all of them in another order; in the plainest of answers."""
    blocks = [block for block in data.removeprefix(_STREAM).split(b"\n\n") if block.startswith(b"data: {")]
    blocks = blocks or [block.rstrip() for block in _SAID if block.startswith(b"data: {")]
    if rng.random() < 0.2:
        rng.shuffle(blocks)
    at = rng.randrange(len(blocks))
    new = remade(blocks[at].removeprefix(b"data: "), rng, json.loads, lambda value: json.dumps(value).encode())
    end = rng.choice((b"data: [DONE]\n\n", b"data: [DONE]\n\n", b""))
    return _STREAM + b"\n\n".join([*blocks[:at], b"data: " + new, *blocks[at + 1 :], end])


TARGETS = (
    Target(
        name="workers",
        about="node/io/http_wire, node/io/poured, node/openai, router/kept, router/seam, router/assemble",
        opened=_workers,
        remake=_remade,
        seeds=lambda: _SEEDS,
        words=_WORDS,
    ),
)
