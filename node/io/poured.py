"""The streamed answer of a model server: its bytes as whole SSE blocks into a sink, its failures as NodeErrors."""

from __future__ import annotations

from collections.abc import Callable

from node.errors import NodeError, NodeErrorCode
from node.http_answer import AnswerHead
from node.io.flow import Sink
from node.io.http_wire import Answer, HttpError
from node.openai import SseSplitter, bare, error_of, error_text, is_done
from node.settings import EngineSettings

CLIENTS_FAULT = frozenset({400, 411, 413, 415, 422})
FULL = frozenset({429, 503})
NO_SUCH_PATH = frozenset({404, 405, 501})
_FRAMEWORKS_404 = frozenset({"Not Found", "404 page not found", "404: Not Found"})


class NotServedError(NodeError):
    """The server has no such endpoint."""

    def __init__(self, path: str) -> None:
        super().__init__(NodeErrorCode.MODEL_FAILED, f"the model server has no /v1/{path}")


class Poured(Answer):
    """`rename` puts our name of the model into a block, `lost` says what a failure of the connection means."""

    def __init__(
        self,
        settings: EngineSettings,
        path: str,
        sink: Sink,
        *,
        first_limit_s: float,
        rename: Callable[[bytes], bytes] | None,
        lost: Callable[[HttpError], NodeError],
    ) -> None:
        super().__init__(settings.http, first_limit_s)
        self._engine, self._path, self._sink, self._rename, self._lost = settings, path, sink, rename, lost
        self._splitter = SseSplitter(settings.block_bytes)
        self._refusal: bytes | None = None  # what has come of it
        self._spoke = False

    def on_head(self, head: AnswerHead) -> None:
        if head.status != 200:
            self._refusal = b""
        elif head.fields.get(b"content-encoding", b"identity").lower() != b"identity":
            self._fail(failed("the model server's answer is compressed, which nobody asked for"))

    def on_part(self, body: bytes) -> None:
        if self._spoke and body.startswith(b"data: {") and self._splitter.is_block(body) and b'"error"' not in body:
            self._sink.block(body if self._rename is None else self._rename(body))
        else:
            self._part(body)

    def _part(self, body: bytes) -> None:
        """What is not simply one chunk of JSON."""
        if self._refusal is not None:
            self._refusal += body
            if len(self._refusal) >= self._engine.error_bytes:
                self._fail(self._refused(self._refusal[: self._engine.error_bytes]))
            return
        try:
            blocks = self._splitter.feed(body)
        except NodeError as error:
            self._fail(error)
            return
        if blocks and not self._spoke:
            self._spoke = True
            self.bear(self._engine.silence_limit_s)
        for block in blocks:
            if not block.startswith(b"data: {") and is_done(block):  # a chunk of JSON is not looked through for it
                self.leave()
                self._sink.done(None)
                return
            if (said := error_of(block)) is not None:
                self._fail(failed(f"the model server broke off: {said}"))
                return
            if (found := bare(block)) is not None:
                self._sink.block(found if self._rename is None else self._rename(found))
                if not self.wanted:
                    return  # it was closed because of that block

    def on_end(self, error: HttpError | None) -> None:
        if error is not None:
            self._sink.done(self._lost(error))
        elif self._refusal is not None:
            self._sink.done(self._refused(self._refusal))
        else:
            self._sink.done(failed("the model server closed the stream before its end"))

    def _fail(self, error: NodeError) -> None:
        self.close()
        self._sink.done(error)

    def _refused(self, body: bytes) -> NodeError:
        """What a status other than 200 means for the mesh."""
        assert self.head is not None
        status, said = self.head.status, error_text(body)
        if status in CLIENTS_FAULT:
            return NodeError(NodeErrorCode.BAD_REQUEST, said)
        if status in FULL:
            return NodeError(NodeErrorCode.NODE_BUSY, said, retry_after_s=_seconds(self.head.text(b"retry-after")))
        if status in {405, 501} or (status == 404 and said in _FRAMEWORKS_404):
            return NotServedError(self._path)
        return failed(f"the model server answered {status}: {said}")


def failed(message: str) -> NodeError:
    """The model server's fault."""
    return NodeError(NodeErrorCode.MODEL_FAILED, message)


def _seconds(header: str) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None  # a date: not worth reading
