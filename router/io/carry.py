"""From an edge to the node that was granted: in-process to this node, over HTTP to a peer. Same call, same blocks.

A hop turns whatever goes wrong on the way (a refusal, `event: error`, a reset, silence) into NodeError, so that the
edge has one kind of failure to judge.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from node.errors import NodeError, NodeErrorCode
from node.http_answer import AnswerHead
from node.io.calls import Call
from node.io.dial import Origin
from node.io.flow import Flow, Sink
from node.io.http_client import HttpClient
from node.io.http_read import ReadAnswer
from node.io.http_wire import Answer, FullError, HttpError, NotConnectedError, SilentError, question
from node.openai import SseSplitter, data_of, is_done
from node.settings import HttpSettings
from router.settings import EdgeSettings

log = logging.getLogger(__name__)


class Hop(Protocol):
    """The way to one node."""

    def pour(self, call: Call, sink: Sink) -> Flow:
        """`sink` gets whole SSE blocks. Raises NodeError; closing the flow cancels."""

    async def post(self, call: Call) -> tuple[int, str, bytes]:
        """Status, content type and body of an endpoint that does not stream. Raises NodeError."""


class Serving(Protocol):
    """What an edge needs of its own node (node/io/host.py)."""

    def pour(self, call: Call, sink: Sink) -> Flow: ...

    async def post(self, call: Call) -> tuple[int, str, bytes]: ...


class LocalHop:
    """To this node, without a socket."""

    def __init__(self, host: Serving) -> None:
        self._host = host

    def pour(self, call: Call, sink: Sink) -> Flow:
        try:
            return self._host.pour(call, sink)
        except NodeError:
            raise
        except Exception as error:
            log.exception("this node failed to serve %s", call.id)
            raise NodeError(NodeErrorCode.INTERNAL, f"this node failed: {type(error).__name__}") from error

    async def post(self, call: Call) -> tuple[int, str, bytes]:
        try:
            return await self._host.post(call)
        except NodeError:
            raise
        except Exception as error:
            log.exception("this node failed to serve %s", call.id)
            raise NodeError(NodeErrorCode.INTERNAL, f"this node failed: {type(error).__name__}") from error


class _Error(Struct, forbid_unknown_fields=True):
    code: str
    message: str
    retry_after_s: float | None = None


class _Refusal(Struct, forbid_unknown_fields=True):
    """What only a node says. An engine's error (OpenAI's shape) has a `type` as well, and is an answer."""

    error: _Error


def node_error(payload: bytes) -> NodeError | None:
    """The NodeError that a node wrote down, or None when this is something else."""
    try:
        said = msgspec.json.decode(payload, type=_Refusal).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    known = said.code in NodeErrorCode.__members__.values()
    code = NodeErrorCode(said.code) if known else NodeErrorCode.INTERNAL  # a later version's word
    return NodeError(code, said.message, retry_after_s=said.retry_after_s)


class HttpHop:
    """To a peer, by whichever of its addresses answers first, tried in order, the next beside one that takes long.

    `addresses` are without port, `tls` believes that node only, `count` is told ("peer_in" | "peer_out", bytes).
    """

    def __init__(
        self,
        http: HttpClient,
        *,
        addresses: Sequence[str],
        port: int,
        tls: ssl.SSLContext,
        settings: EdgeSettings,
        count: Callable[[str, int], None],
    ) -> None:
        self._http, self._settings, self._count = http, settings, count
        self._origins = [Origin(address, port, tls) for address in addresses]

    def pour(self, call: Call, sink: Sink) -> Flow:
        answer = _Blocks(self._http.settings, self._settings, sink, self._count)
        self._http.push(
            self._origins,
            _question(call),
            call.body,
            answer,
            connect_s=self._settings.connect_cap_s,
            beside_s=self._settings.connect_floor_s,
        )
        self._count("peer_out", len(call.body))
        return answer

    async def post(self, call: Call) -> tuple[int, str, bytes]:
        answer = await self._open(call, call.deadline_s)
        try:
            body = await self._read(answer, self._settings.answer_limit_bytes)
        except HttpError as error:
            raise _lost(error) from error
        finally:
            answer.close()
        if answer.status >= 400 and (refusal := node_error(body)) is not None:
            raise refusal
        return answer.status, answer.headers.text(b"content-type", "application/octet-stream"), body

    async def _open(self, call: Call, silence_s: float) -> ReadAnswer:
        try:
            answer = await self._http.ask(
                self._origins,
                _question(call),
                call.body,
                connect_s=self._settings.connect_cap_s,
                beside_s=self._settings.connect_floor_s,
                silence_s=silence_s,
            )
        except HttpError as error:
            raise _lost(error) from error
        self._count("peer_out", len(call.body))
        return answer

    async def _read(self, answer: ReadAnswer, limit: int) -> bytes:
        body = await answer.whole(limit)
        if body is None:
            raise NodeError(NodeErrorCode.MODEL_FAILED, f"the answer is larger than {limit} bytes")
        self._count("peer_in", len(body))
        return body


class _Blocks(Answer):
    """A peer's answer as blocks, in the callback that brings it."""

    def __init__(
        self, http: HttpSettings, settings: EdgeSettings, sink: Sink, count: Callable[[str, int], None]
    ) -> None:
        super().__init__(http, settings.silence_s)
        self._edge, self._sink, self._count = settings, sink, count
        self._splitter = SseSplitter(settings.block_limit_bytes)
        self._refusal: bytes | None = None  # what has come of it

    def on_head(self, head: AnswerHead) -> None:
        if head.status != 200:
            self._refusal = b""

    def on_part(self, body: bytes) -> None:
        self._count("peer_in", len(body))
        if self._refusal is not None:
            self._refusal += body
            if len(self._refusal) > self._edge.refusal_limit_bytes:
                limit = self._edge.refusal_limit_bytes
                self._fail(NodeError(NodeErrorCode.MODEL_FAILED, f"the answer is larger than {limit} bytes"))
            return
        try:
            blocks = self._splitter.feed(body)
        except NodeError as error:
            self._fail(error)
            return
        for block in blocks:
            if block.startswith(b"data: {") or not self._ends(block):
                self._sink.block(block)
            if not self.wanted:
                return

    def on_end(self, error: HttpError | None) -> None:
        if error is not None:
            self._sink.done(_lost(error))
        elif self._refusal is not None:
            self._sink.done(self._refused(self._refusal))
        else:
            message = "the connection was closed in the middle of the answer"
            self._sink.done(NodeError(NodeErrorCode.UNREACHABLE, message))

    def _ends(self, block: bytes) -> bool:
        """Whether it was the last."""
        if block.startswith(b"event: error"):
            self._fail(self._refused(data_of(block) or b""))
        elif is_done(block):
            self.leave()
            self._sink.done(None)
        else:
            return False
        return True

    def _refused(self, said: bytes) -> NodeError:
        assert self.head is not None
        return node_error(said) or _odd(self.head.status)

    def _fail(self, error: NodeError) -> None:
        self.close()
        self._sink.done(error)


def _question(call: Call) -> bytes:
    """The head of what a peer is asked. Raises NodeError when something in it cannot be said."""
    fields = {
        "content-type": call.content_type,
        "x-mesh-request": call.id,
        "x-mesh-attempt": str(call.attempt),
        "x-mesh-edge": call.edge,
        "x-mesh-model": call.model,
        "x-mesh-usage": "1" if call.wants_usage else "0",
        "x-mesh-deadline-ms": str(max(1, round(call.deadline_s * 1e3))),
    }
    if call.keep_alive is not None:
        fields["x-mesh-keep-alive"] = str(call.keep_alive)
    if call.resumes:
        fields["x-mesh-resume"] = "1"
    try:
        return question("POST", "mesh", f"/mesh/v1/serve/{call.path}", fields, len(call.body))
    except ValueError as error:
        raise NodeError(NodeErrorCode.BAD_REQUEST, f"it cannot be asked for: {error}") from error


def _lost(error: HttpError) -> NodeError:
    """Once a question may have arrived, another address is the same node: another node is the better try."""
    match error:
        case NotConnectedError():
            return NodeError(NodeErrorCode.UNREACHABLE, f"no connection to {error}")
        case SilentError():
            return NodeError(NodeErrorCode.UNREACHABLE, f"silent for {error.limit_s:.0f} s")
        case FullError():
            return NodeError(NodeErrorCode.NODE_BUSY, str(error))
        case _:
            return NodeError(NodeErrorCode.UNREACHABLE, f"connection lost ({error})")


def _odd(status: int) -> NodeError:
    return NodeError(NodeErrorCode.INTERNAL, f"the node broke off without a reason that can be read (status {status})")
