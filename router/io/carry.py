"""From an edge to the node that was granted: in-process to this node, over HTTP to a peer. Same call, same blocks.

A hop turns whatever goes wrong on the way (a refusal, `event: error`, a reset, silence) into NodeError, so that the
edge has one kind of failure to judge.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Protocol

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from node.errors import NodeError, NodeErrorCode
from node.io.calls import Call
from node.openai import SseSplitter, data_of, is_done
from router.settings import EdgeSettings

log = logging.getLogger(__name__)

_NEVER_ARRIVED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


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
    """To a peer: its addresses in order, each given a short time to accept, then the next.

    `addresses` are without port, `rtt_s` seconds there and back, `count` is told ("peer_in" | "peer_out", bytes).
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        addresses: Sequence[str],
        port: int,
        rtt_s: float | None,
        settings: EdgeSettings,
        count: Callable[[str, int], None],
    ) -> None:
        self._session, self._addresses, self._port = session, addresses, port
        self._settings, self._count = settings, count
        self._connect_s = min(max(4 * (rtt_s or 0.0), settings.connect_floor_s), settings.connect_cap_s)

    async def stream(self, call: Call) -> AsyncGenerator[bytes, None]:
        silence_s = self._settings.silence_s  # counted by aiohttp from the moment the whole body is on its way
        response = await self._open(call, silence_s)
        try:
            if response.status != 200:
                refusal = await self._read(response, self._settings.refusal_limit_bytes)
                raise node_error(refusal) or _odd(response.status)
            async with aclosing(self._blocks(response)) as blocks:
                async for block in blocks:
                    if block.startswith(b"event: error"):
                        raise node_error(data_of(block) or b"") or _odd(response.status)
                    yield block
                    if is_done(block):
                        await self._drain(response)
                        return
        except aiohttp.SocketTimeoutError as error:
            raise NodeError(NodeErrorCode.UNREACHABLE, f"silent for {silence_s:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NodeError(NodeErrorCode.UNREACHABLE, f"connection lost ({type(error).__name__})") from error
        finally:
            response.release()  # at its end: back to the pool; before it: closed, which cancels at the node
        raise NodeError(NodeErrorCode.UNREACHABLE, "the connection was closed in the middle of the answer")

    async def post(self, call: Call) -> tuple[int, str, bytes]:
        response = await self._open(call, call.deadline_s)
        try:
            answer = await self._read(response, self._settings.answer_limit_bytes)
            if response.status >= 400 and (refusal := node_error(answer)) is not None:
                raise refusal
            return response.status, response.headers.get("content-type", "application/octet-stream"), answer
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise NodeError(NodeErrorCode.UNREACHABLE, f"connection lost ({type(error).__name__})") from error
        finally:
            response.release()

    async def _open(self, call: Call, silence_s: float) -> aiohttp.ClientResponse:
        headers = {
            "content-type": call.content_type,
            "x-mesh-request": call.id,
            "x-mesh-attempt": str(call.attempt),
            "x-mesh-edge": call.edge,
            "x-mesh-model": call.model,
            "x-mesh-usage": "1" if call.wants_usage else "0",
            "x-mesh-deadline-ms": str(max(1, round(call.deadline_s * 1e3))),
        }
        if call.keep_alive is not None:
            headers["x-mesh-keep-alive"] = str(call.keep_alive)
        if call.resumes:
            headers["x-mesh-resume"] = "1"
        failed = "no address is known"
        for place, address in enumerate(self._addresses):
            last = place == len(self._addresses) - 1
            connect_s = self._settings.connect_cap_s if last else self._connect_s
            url = peer_url(address, self._port, f"/mesh/v1/serve/{call.path}")
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=silence_s)
            try:
                response = await self._session.post(
                    url, data=call.body, headers=headers, timeout=timeout, allow_redirects=False
                )
            except _NEVER_ARRIVED as error:
                failed = f"no connection to {address} ({type(error).__name__})"
                continue
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                # It may have arrived: another address is the same node, so another node is the better try.
                raise NodeError(NodeErrorCode.UNREACHABLE, f"no answer ({type(error).__name__})") from error
            self._count("peer_out", len(call.body))
            return response
        raise NodeError(NodeErrorCode.UNREACHABLE, failed)

    async def _blocks(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        splitter = SseSplitter(self._settings.block_limit_bytes)
        async for data in response.content.iter_any():
            self._count("peer_in", len(data))
            for block in splitter.feed(data):
                yield block

    async def _read(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        parts = bytearray()
        async for data in response.content.iter_any():
            self._count("peer_in", len(data))
            parts += data
            if len(parts) > limit:
                raise NodeError(NodeErrorCode.MODEL_FAILED, f"the answer is larger than {limit} bytes")
        return bytes(parts)

    async def _drain(self, response: aiohttp.ClientResponse) -> None:
        """Read the end of the body, so that the connection can be used again; it is not worth waiting for."""
        with suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(self._settings.connect_floor_s):
                async for _ in response.content.iter_any():
                    pass


def _odd(status: int) -> NodeError:
    return NodeError(NodeErrorCode.INTERNAL, f"the node broke off without a reason that can be read (status {status})")


def peer_url(address: str, port: int, path: str) -> URL:
    """http://address:port/path; an IPv6 link-local address keeps its scope (RFC 9844)."""
    host, _, scope = address.partition("%")
    with suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            host = f"[{host}%25{scope}]" if scope else f"[{host}]"
    return URL(f"http://{host}:{port}{path}", encoded=True)
