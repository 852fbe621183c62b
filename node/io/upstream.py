"""HTTP client of one model server: completions as SSE blocks, its errors as NodeErrors."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from contextlib import aclosing
from typing import NamedTuple

from yarl import URL

from node.continuation import TOKENS_HEADER
from node.errors import NodeError, NodeErrorCode
from node.io.dial import Origin
from node.io.flow import Flow, Sink, gathered
from node.io.http_client import HttpClient
from node.io.http_read import ReadAnswer
from node.io.http_wire import FullError, HttpError, NotConnectedError, SilentError, question
from node.io.poured import NO_SUCH_PATH, NotServedError, Poured, failed
from node.openai import Renamer, clean_request, rename_request
from node.settings import EngineSettings

JSON = "application/json"
PROBE = {"x-mesh-probe": "1"}  # our launcher does not log these; other servers do not mind
NAME_TOKENS = {TOKENS_HEADER.lower(): "1"}
PROBE_CHAT = b'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":1,"temperature":0}'
PROBE_TEXT = b'{"prompt":"Hi","max_tokens":1,"temperature":0}'


class _Place(NamedTuple):
    """Where a URL leads, and what a question there says of it."""

    origins: tuple[Origin]
    host: str
    target: str
    fields: Mapping[str, str]


class Upstream:
    """The server at `base` (which ends in /v1). `model` is the name it knows, `echoes` the one its answers carry:
    asked for another, each chunk is parsed and renamed. To be used in one event loop."""

    def __init__(self, base: str, settings: EngineSettings, *, model: str, echoes: str, first_limit_s: float) -> None:
        self.base, self.echoes = base, echoes
        self.names_tokens = False  # it is our launcher: chunks shall name their tokens
        self._settings, self._model, self._first_limit_s = settings, model, first_limit_s
        self._http: HttpClient | None = None
        self._places: dict[str, _Place] = {}
        self._rename: Renamer | None = None

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

    def pour(
        self, path: str, body: bytes, *, model_name: str, sink: Sink, fields: Mapping[str, str] | None = None
    ) -> Flow:
        """Worker.pour of node/io/engine.py."""
        answer = Poured(
            self._settings,
            path,
            sink,
            first_limit_s=self._first_limit_s,
            rename=None if model_name == self.echoes else self._renamer(model_name),
            lost=self._lost,
        )
        cleaned = clean_request(body, model=self._model)
        fields = {"content-type": JSON, **(NAME_TOKENS if self.names_tokens else {}), **(fields or {})}
        place, head = self._question("POST", f"{self.base}/{path}", cleaned, fields)
        self.http.push(place.origins, head, cleaned, answer, connect_s=self._settings.connect_limit_s)
        return answer

    def _renamer(self, model_name: str) -> Renamer:
        """What one stream has taught it about this server's chunks the next one need not learn."""
        if self._rename is None or self._rename.model != model_name:
            self._rename = Renamer(model_name)
        return self._rename

    def _question(self, method: str, url: str, body: bytes, fields: Mapping[str, str]) -> tuple[_Place, bytes]:
        """Where it goes, and its head. Raises NodeError."""
        try:
            place = self._places.get(url)
            if place is None:
                place = self._places[url] = _place_of(url)
                if len(self._places) > self._settings.urls_max:
                    del self._places[next(iter(self._places))]
            fields = {**fields, **place.fields}
            return place, question(method, place.host, place.target, fields, len(body))
        except ValueError as error:
            raise NodeError(NodeErrorCode.BAD_REQUEST, f"it cannot be asked for: {error}") from error

    async def _ask(self, method: str, url: str, body: bytes, fields: Mapping[str, str], silence_s: float) -> ReadAnswer:
        """Raises NodeError and HttpError."""
        place, head = self._question(method, url, body, fields)
        connect_s = self._settings.connect_limit_s
        answer = await self.http.ask(place.origins, head, body, connect_s=connect_s, silence_s=silence_s)
        if answer.headers.fields.get(b"content-encoding", b"identity").lower() != b"identity":
            answer.close()
            raise failed("the model server's answer is compressed, which nobody asked for")
        return answer

    def _lost(self, error: HttpError) -> NodeError:
        """What a failure of the connection means for the mesh."""
        match error:
            case NotConnectedError(late=True):
                return failed(f"the model server took no connection within {self._settings.connect_limit_s:g} s")
            case NotConnectedError():
                return failed(f"nothing answers at {self.base}: {error.why}")
            case SilentError():
                return failed(f"the model server said nothing for {error.limit_s:g} s")
            case FullError():
                return NodeError(NodeErrorCode.NODE_BUSY, str(error))
            case _:
                return failed(f"the connection to the model server broke: {error}")

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
            raise failed(f"the model server said nothing for {self._first_limit_s:g} s") from error
        except HttpError as error:
            raise self._lost(error) from error
        finally:
            if answer is not None:
                answer.close()
        if said is None:
            raise failed(f"the model server's answer exceeds {self._settings.post_bytes} bytes")
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

    async def _generated(self, path: str, body: bytes) -> None:
        """Returns at the end of the answer to a probe. Raises NodeError."""

        def pour(sink: Sink) -> Flow:
            return self.pour(path, body, model_name=self.echoes, sink=sink, fields=PROBE)

        async with aclosing(gathered(pour)) as blocks:
            async for _ in blocks:
                pass

    async def probe(self, *, chat_first: bool) -> None:
        """Returns when it has generated a token. Raises NodeError(MODEL_FAILED, NODE_BUSY or BAD_REQUEST)."""
        tries = [("chat/completions", PROBE_CHAT), ("completions", PROBE_TEXT)]
        for path, body in tries if chat_first else reversed(tries):
            try:
                await self._generated(path, body)
            except NotServedError:
                continue
            return
        raise failed(f"neither chat/completions nor completions is served at {self.base}")


def _place_of(url: str) -> _Place:
    place = URL(url)
    fields = {}
    if place.user is not None:
        said = base64.b64encode(f"{place.user}:{place.password or ''}".encode()).decode()
        fields["authorization"] = f"Basic {said}"
    origin = Origin(place.raw_host or "", place.port or 0, place.scheme == "https")
    return _Place((origin,), place.raw_authority.rpartition("@")[2], place.raw_path_qs, fields)
