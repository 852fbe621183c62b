"""Where an error becomes what OpenAI's clients read: the envelope, its status and its headers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from aiohttp import web

from node.http_reply import Answer
from node.http_request import Fault
from router.errors import STATUS, ErrorCode, Refusal
from router.guard import Denied, Preflight

AGAIN_S = 2.0  # told to a client that could not even connect: some of the others will have gone by then
_JSON = {"content-type": "application/json"}
_FAULTS = {
    **dict.fromkeys((413, 414, 431), ErrorCode.REQUEST_TOO_LARGE),
    429: ErrorCode.RATE_LIMITED,
    503: ErrorCode.MESH_SATURATED,
}


def body(refusal: Refusal) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return _body(refusal.message, _kind(STATUS[refusal.code]), refusal.param, refusal.code.value)


def refused(refusal: Refusal, headers: Mapping[str, str], *, retry_after_s: float) -> Answer:
    """The whole answer. 429 and 503 say when to come back: `retry_after_s` when the refusal does not know."""
    status = STATUS[refusal.code]
    fields = {**headers, **_JSON}
    if status in (429, 503):
        wait_s = refusal.retry_after_s if refusal.retry_after_s is not None else retry_after_s
        fields["retry-after"] = str(max(1, math.ceil(wait_s)))
        fields["retry-after-ms"] = str(max(1, math.ceil(wait_s * 1e3)))
    return Answer(status, fields, body(refusal))


def denied(denied: Denied) -> Answer:
    """To who may not ask. A browser's page reads it if it may read anything here."""
    fields = {**denied.fields, "www-authenticate": "Bearer"} if denied.what == "key" else denied.fields
    return refused(denied.refusal, fields, retry_after_s=0)


def preflight(answer: Preflight) -> Answer:
    return Answer(204, answer.fields, b"")


def event(refusal: Refusal) -> bytes:
    """The last block of a stream that cannot be saved; no `[DONE]` follows."""
    return b"event: error\ndata: " + body(refusal) + b"\n\n"


def no_such_path(message: str) -> Answer:
    return refused(Refusal(ErrorCode.PATH_NOT_FOUND, message), {}, retry_after_s=0)


def wrong_method(message: str, allowed: str) -> Answer:
    text = _body(message, _kind(405), None, "method_not_allowed")
    return Answer(405, {"allow": allowed, **_JSON}, text)


def malformed(fault: Fault) -> Answer:
    """What came is no request that can be understood in one way only, or one too many."""
    code = _FAULTS.get(fault.status, ErrorCode.INVALID_REQUEST)
    if fault.status in (429, 503):
        return refused(Refusal(code, fault.message), {}, retry_after_s=AGAIN_S)
    return Answer(fault.status, _JSON, _body(fault.message, _kind(fault.status), None, code.value))


def defect(headers: Mapping[str, str]) -> Answer:
    """Our own fault; the log has the rest."""
    text = _body("the edge failed; its log says why", _kind(500), None, "internal_error")
    return Answer(500, {**headers, **_JSON}, text)


def as_web(answer: Answer) -> web.Response:
    """For a path that aiohttp serves."""
    return web.Response(status=answer.status, body=answer.body, headers=answer.fields)


def engine_refusal(status: int, answer: bytes) -> bytes:
    """An engine's own 4xx as it stands when it is an envelope already, else put into one."""
    try:
        error = msgspec.json.decode(answer, type=dict[str, msgspec.Raw]).get("error", msgspec.Raw(b"null"))
        if bytes(error).lstrip().startswith(b"{"):
            return answer
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    return _body(f"the engine refused this request with status {status}", _kind(status), None, "invalid_request")


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def _body(message: str, kind: str, param: str | None, code: str) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})
