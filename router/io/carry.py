"""From an edge to the node that was granted: in-process to this node, over HTTP to a peer. Same call, same blocks.

A hop turns whatever goes wrong on the way (a refusal, `event: error`, a reset, silence) into NodeError, so that the
edge has one kind of failure to judge.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from node.errors import NodeError, NodeErrorCode
from node.io.calls import Call
from node.io.dial import Origin
from node.io.http_client import HttpClient
from node.io.http_read import ReadAnswer
from node.io.http_wire import FullError, HttpError, NotConnectedError, SilentError, question
from node.openai import SseSplitter, data_of, is_done
from router.settings import EdgeSettings

log = logging.getLogger(__name__)


class Hop(Protocol):
    """The way to one node."""

    def stream(self, call: Call) -> AsyncGenerator[bytes, None]:
        """Whole SSE blocks, `data: [DONE]` last. Raises NodeError, before or after blocks; closing it cancels."""

    async def post(self, call: Call) -> tuple[int, str, bytes]:
        """Status, content type and body of an endpoint that does not stream. Raises NodeError."""


class Serving(Protocol):
    """What an edge needs of its own node (node/io/host.py)."""

    def serve(self, call: Call) -> AsyncIterator[bytes]: ...

    async def post(self, call: Call) -> tuple[int, str, bytes]: ...


class LocalHop:
    """To this node, without a socket."""

    def __init__(self, host: Serving) -> None:
        self._host = host

    async def stream(self, call: Call) -> AsyncGenerator[bytes, None]:
        blocks = self._host.serve(call)
        try:
            async for block in blocks:
                yield block
        except NodeError:
            raise
        except Exception as error:
            log.exception("this node failed to serve %s", call.id)
            raise NodeError(NodeErrorCode.INTERNAL, f"this node failed: {type(error).__name__}") from error
        finally:
            if isinstance(blocks, AsyncGenerator):
                await blocks.aclose()

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

    async def stream(self, call: Call) -> AsyncGenerator[bytes, None]:
        answer = await self._open(call, self._settings.silence_s)
        try:
            if answer.status != 200:
                refusal = await self._read(answer, self._settings.refusal_limit_bytes)
                raise node_error(refusal) or _odd(answer.status)
            splitter = SseSplitter(self._settings.block_limit_bytes)
            while data := await answer.read():
                self._count("peer_in", len(data))
                for block in splitter.feed(data):
                    if block.startswith(b"event: error"):
                        raise node_error(data_of(block) or b"") or _odd(answer.status)
                    if is_done(block):
                        answer.leave()
                        yield block
                        return
                    yield block
        except HttpError as error:
            raise _lost(error) from error
        finally:
            answer.close()  # before its end that cancels at the node
        raise NodeError(NodeErrorCode.UNREACHABLE, "the connection was closed in the middle of the answer")

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
            answer = await self._http.ask(
                self._origins,
                question("POST", "mesh", f"/mesh/v1/serve/{call.path}", fields, len(call.body)),
                call.body,
                connect_s=self._settings.connect_cap_s,
                beside_s=self._settings.connect_floor_s,
                silence_s=silence_s,
            )
        except HttpError as error:
            raise _lost(error) from error
        except ValueError as error:
            raise NodeError(NodeErrorCode.BAD_REQUEST, f"it cannot be asked for: {error}") from error
        self._count("peer_out", len(call.body))
        return answer

    async def _read(self, answer: ReadAnswer, limit: int) -> bytes:
        body = await answer.whole(limit)
        if body is None:
            raise NodeError(NodeErrorCode.MODEL_FAILED, f"the answer is larger than {limit} bytes")
        self._count("peer_in", len(body))
        return body


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
