"""HTTP client of one model server: completions as SSE blocks, its errors as NodeErrors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import aiohttp

from node.continuation import TOKENS_HEADER
from node.errors import NodeError, NodeErrorCode
from node.openai import (
    DONE,
    SseSplitter,
    bare,
    clean_request,
    error_of,
    error_text,
    is_done,
    rename_request,
    with_model,
)
from node.settings import EngineSettings

JSON = "application/json"
PROBE = {"X-Mesh-Probe": "1"}  # our launcher does not log these; other servers do not mind
NAME_TOKENS = {TOKENS_HEADER: "1"}
CLIENTS_FAULT = frozenset({400, 411, 413, 415, 422})
FULL = frozenset({429, 503})
NO_SUCH_PATH = frozenset({404, 405, 501})
PROBE_CHAT = b'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":1,"temperature":0}'
PROBE_TEXT = b'{"prompt":"Hi","max_tokens":1,"temperature":0}'


class NotServedError(Exception):
    """The server has no such endpoint."""


class Upstream:
    """The server at `base` (which ends in /v1). `model` is the name it knows, `echoes` the one its answers carry:
    asked for another, each chunk is parsed and renamed. To be used in one event loop."""

    def __init__(self, base: str, settings: EngineSettings, *, model: str, echoes: str, first_limit_s: float) -> None:
        self.base, self.echoes = base, echoes
        self.names_tokens = False  # it is our launcher: chunks shall name their tokens
        self._settings, self._model, self._first_limit_s = settings, model, first_limit_s
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_limit_s)
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        return self._session

    async def close(self) -> None:
        """Ends every connection. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def stream(self, path: str, body: bytes, *, model_name: str) -> AsyncGenerator[bytes, None]:
        """Worker.stream of node/io/engine.py."""
        cleaned = clean_request(body, model=self._model)
        try:
            headers = NAME_TOKENS if self.names_tokens else {}
            async with aclosing(self._blocks(path, cleaned, headers)) as blocks:
                async for block in blocks:
                    if is_done(block):
                        yield DONE
                        return
                    lost = error_of(block)
                    if lost is not None:
                        raise _failed(f"the model server broke off: {lost}")
                    if (said := bare(block)) is not None:
                        yield said if model_name == self.echoes else with_model(said, model_name)
        except NotServedError:
            raise _failed(f"the model server has no /v1/{path}") from None
        raise _failed("the model server closed the stream before its end")

    async def _blocks(self, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """What the server streams, block by block, until it closes. Closing the generator closes the connection."""
        splitter = SseSplitter(self._settings.block_bytes)
        limit_s, response = self._first_limit_s, None
        headers = {"Content-Type": JSON, **headers}
        try:
            async with asyncio.timeout(limit_s):
                response = await self.session.post(f"{self.base}/{path}", data=body, headers=headers)
                if response.status != 200:
                    raise await self._refused(response)
            while True:
                async with asyncio.timeout(limit_s):
                    data = await response.content.readany()
                if not data:
                    return
                for block in splitter.feed(data):
                    limit_s = self._settings.silence_limit_s
                    yield block
        except aiohttp.ConnectionTimeoutError as error:
            connect_s = self._settings.connect_limit_s
            raise _failed(f"the model server took no connection within {connect_s:g} s") from error
        except TimeoutError as error:
            raise _failed(f"the model server said nothing for {limit_s:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise _failed(f"nothing answers at {self.base}: {error.os_error.strerror or error}") from error
        except aiohttp.ClientError as error:
            raise _failed(f"the connection to the model server broke: {error}") from error
        finally:
            if response is not None:
                response.close()  # not release: closing is how a worker learns that nobody waits

    async def _refused(self, response: aiohttp.ClientResponse) -> Exception:
        """What a status other than 200 means for the mesh."""
        said = error_text(await response.content.read(self._settings.error_bytes))
        status = response.status
        if status in CLIENTS_FAULT:
            return NodeError(NodeErrorCode.BAD_REQUEST, said)
        if status in FULL:
            return NodeError(NodeErrorCode.NODE_BUSY, said, retry_after_s=_seconds(response.headers.get("Retry-After")))
        if status in {405, 501} or (status == 404 and said in {"Not Found", "404 page not found", "404: Not Found"}):
            return NotServedError()
        return _failed(f"the model server answered {status}: {said}")

    async def post(self, path: str, body: bytes, content_type: str) -> tuple[int, str, bytes]:
        """Worker.post of node/io/engine.py. In a JSON body the model is renamed; others go as they are."""
        if content_type.partition(";")[0].strip().lower() == JSON:
            body = rename_request(body, model=self._model)
        try:
            async with (
                asyncio.timeout(self._first_limit_s),
                self.session.post(f"{self.base}/{path}", data=body, headers={"Content-Type": content_type}) as response,
            ):
                answer = await self._whole(response)
        except TimeoutError as error:
            raise _failed(f"the model server said nothing for {self._first_limit_s:g} s") from error
        except aiohttp.ClientError as error:
            raise _failed(f"the connection to the model server broke: {error}") from error
        if response.status in NO_SUCH_PATH:
            raise NodeError(NodeErrorCode.PATH_NOT_SERVED, f"the model server has no /v1/{path}")
        return response.status, response.headers.get("Content-Type", JSON), answer

    async def _whole(self, response: aiohttp.ClientResponse) -> bytes:
        parts, size = [], 0
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > self._settings.post_bytes:
                raise _failed(f"the model server's answer exceeds {self._settings.post_bytes} bytes")
        return b"".join(parts)

    async def get(self, url: str, limit_s: float) -> tuple[int, bytes] | None:
        """Status and the start of the body, or None when nobody answers within `limit_s`."""
        try:
            async with asyncio.timeout(limit_s), self.session.get(url) as response:
                return response.status, await response.content.read(self._settings.error_bytes)
        except (TimeoutError, aiohttp.ClientError):
            return None

    async def probe(self, *, chat_first: bool) -> None:
        """Returns when it has generated a token. Raises NodeError(MODEL_FAILED, NODE_BUSY or BAD_REQUEST)."""
        tries = [("chat/completions", PROBE_CHAT), ("completions", PROBE_TEXT)]
        for path, body in tries if chat_first else reversed(tries):
            try:
                async with aclosing(self._blocks(path, clean_request(body, model=self._model), PROBE)) as blocks:
                    async for block in blocks:
                        if is_done(block):
                            return
                        lost = error_of(block)
                        if lost is not None:
                            raise _failed(lost)
                raise _failed("it closed the stream before its end")
            except NotServedError:
                continue
        raise _failed(f"neither chat/completions nor completions is served at {self.base}")


def _failed(message: str) -> NodeError:
    return NodeError(NodeErrorCode.MODEL_FAILED, message)


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None  # a date: not worth reading
