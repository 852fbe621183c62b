"""HTTP client of one model server: completions as SSE blocks, its errors as NodeErrors."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing

from yarl import URL

from node.errors import NodeError, NodeErrorCode
from node.io.dial import Origin
from node.io.http_client import HttpClient
from node.io.http_read import ReadAnswer
from node.io.http_wire import FullError, HttpError, NotConnectedError, SilentError, question
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
PROBE = {"x-mesh-probe": "1"}  # our launcher does not log these; other servers do not mind
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
        self._settings, self._model, self._first_limit_s = settings, model, first_limit_s
        self._http: HttpClient | None = None

    @property
    def http(self) -> HttpClient:
        """Its connections."""
        if self._http is None:
            self._http = HttpClient(self._settings.http)
        return self._http

    async def close(self) -> None:
        """Ends every connection. Idempotent."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def _ask(self, method: str, url: str, body: bytes, fields: dict[str, str], silence_s: float) -> ReadAnswer:
        """Raises NodeError and HttpError."""
        try:
            place = URL(url)
            origin = Origin(place.raw_host or "", place.port or 0, place.scheme == "https")
            if place.user is not None:
                said = base64.b64encode(f"{place.user}:{place.password or ''}".encode()).decode()
                fields = {**fields, "authorization": f"Basic {said}"}
            head = question(method, place.raw_authority.rpartition("@")[2], place.raw_path_qs, fields, len(body))
        except ValueError as error:
            raise NodeError(NodeErrorCode.BAD_REQUEST, f"it cannot be asked for: {error}") from error
        connect_s = self._settings.connect_limit_s
        answer = await self.http.ask([origin], head, body, connect_s=connect_s, silence_s=silence_s)
        if answer.headers.fields.get(b"content-encoding", b"identity").lower() != b"identity":
            answer.close()
            raise _failed("the model server's answer is compressed, which nobody asked for")
        return answer

    async def stream(self, path: str, body: bytes, *, model_name: str) -> AsyncGenerator[bytes, None]:
        """Worker.stream of node/io/engine.py."""
        cleaned = clean_request(body, model=self._model)
        try:
            async with aclosing(self._blocks(path, cleaned)) as blocks:
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

    async def _blocks(
        self, path: str, body: bytes, fields: dict[str, str] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """What the server streams, block by block, until it closes. Closing the generator closes the connection."""
        splitter, answer = SseSplitter(self._settings.block_bytes), None
        fields = {"content-type": JSON, **(fields or {})}
        try:
            answer = await self._ask("POST", f"{self.base}/{path}", body, fields, self._first_limit_s)
            if answer.status != 200:
                raise await self._refused(answer)
            while data := await answer.read():
                blocks = splitter.feed(data)
                if blocks:
                    answer.bear(self._settings.silence_limit_s)
                for block in blocks:
                    if is_done(block):
                        answer.leave()
                    yield block
        except HttpError as error:
            raise self._lost(error) from error
        finally:
            if answer is not None:
                answer.close()  # ends the connection, unless it said [DONE]: so a worker learns that nobody waits

    def _lost(self, error: HttpError) -> NodeError:
        """What a failure of the connection means for the mesh."""
        match error:
            case NotConnectedError(late=True):
                return _failed(f"the model server took no connection within {self._settings.connect_limit_s:g} s")
            case NotConnectedError():
                return _failed(f"nothing answers at {self.base}: {error.why}")
            case SilentError():
                return _failed(f"the model server said nothing for {error.limit_s:g} s")
            case FullError():
                return NodeError(NodeErrorCode.NODE_BUSY, str(error))
            case _:
                return _failed(f"the connection to the model server broke: {error}")

    async def _refused(self, answer: ReadAnswer) -> Exception:
        """What a status other than 200 means for the mesh."""
        said = error_text(await answer.start(self._settings.error_bytes))
        status = answer.status
        if status in CLIENTS_FAULT:
            return NodeError(NodeErrorCode.BAD_REQUEST, said)
        if status in FULL:
            return NodeError(NodeErrorCode.NODE_BUSY, said, retry_after_s=_seconds(answer.headers.text(b"retry-after")))
        if status in {405, 501} or (status == 404 and said in {"Not Found", "404 page not found", "404: Not Found"}):
            return NotServedError()
        return _failed(f"the model server answered {status}: {said}")

    async def post(self, path: str, body: bytes, content_type: str) -> tuple[int, str, bytes]:
        """Worker.post of node/io/engine.py. In a JSON body the model is renamed; others go as they are."""
        if content_type.partition(";")[0].strip().lower() == JSON:
            body = rename_request(body, model=self._model)
        answer = None
        try:
            async with asyncio.timeout(self._first_limit_s):
                fields = {"content-type": content_type}
                answer = await self._ask("POST", f"{self.base}/{path}", body, fields, self._first_limit_s)
                said = await answer.whole(self._settings.post_bytes)
        except TimeoutError as error:
            raise _failed(f"the model server said nothing for {self._first_limit_s:g} s") from error
        except HttpError as error:
            raise self._lost(error) from error
        finally:
            if answer is not None:
                answer.close()
        if said is None:
            raise _failed(f"the model server's answer exceeds {self._settings.post_bytes} bytes")
        if answer.status in NO_SUCH_PATH:
            raise NodeError(NodeErrorCode.PATH_NOT_SERVED, f"the model server has no /v1/{path}")
        return answer.status, answer.headers.text(b"content-type", JSON), said

    async def get(self, url: str, limit_s: float) -> tuple[int, bytes] | None:
        """Status and the start of the body, or None when nobody answers within `limit_s`."""
        answer = None
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._ask("GET", url, b"", {}, limit_s)
                return answer.status, await answer.start(self._settings.error_bytes)
        except (TimeoutError, HttpError, NodeError):
            return None
        finally:
            if answer is not None:
                answer.close()

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


def _seconds(header: str) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None  # a date: not worth reading
