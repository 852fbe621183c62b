"""RouterError: why a request gets no answer, as the client will read it."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class ErrorCode(StrEnum):
    """`code` of the error envelope. STATUS gives the HTTP status of each."""

    INVALID_REQUEST = "invalid_request"
    INVALID_API_KEY = "invalid_api_key"
    HOST_NOT_ALLOWED = "host_not_allowed"  # the name it was reached by is none of ours
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"  # a browser's page that nobody let in
    MODEL_NOT_FOUND = "model_not_found"
    PATH_NOT_FOUND = "path_not_found"
    REQUEST_TOO_LARGE = "request_too_large"
    RATE_LIMITED = "rate_limited"
    MESH_SATURATED = "mesh_saturated"  # a bound of the queue is reached
    NO_NODE_AVAILABLE = "no_node_available"  # the model exists, but nobody can serve it now
    MODEL_FAILED = "model_failed"  # every node that holds it failed to run it
    DEADLINE_EXCEEDED = "deadline_exceeded"
    STREAM_LOST = "stream_lost"  # after the first byte only: an error event, never a status


STATUS: dict[ErrorCode, int] = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.INVALID_API_KEY: 401,
    ErrorCode.HOST_NOT_ALLOWED: 403,
    ErrorCode.ORIGIN_NOT_ALLOWED: 403,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.PATH_NOT_FOUND: 404,
    ErrorCode.REQUEST_TOO_LARGE: 413,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.MESH_SATURATED: 503,
    ErrorCode.NO_NODE_AVAILABLE: 503,
    ErrorCode.MODEL_FAILED: 503,
    ErrorCode.DEADLINE_EXCEEDED: 504,
    ErrorCode.STREAM_LOST: 502,
}


class Refusal(Struct, frozen=True):
    """A RouterError's facts, as they cross the link. `retry_after_s` seconds; `param` names the field at fault."""

    code: ErrorCode
    message: str
    retry_after_s: float | None = None
    param: str | None = None


class RouterError(Exception):
    """Raised inside router/; router/io/edge.py turns it into the envelope."""

    def __init__(
        self, code: ErrorCode, message: str, *, retry_after_s: float | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.refusal = Refusal(code, message, retry_after_s, param)

    @classmethod
    def of(cls, refusal: Refusal) -> RouterError:
        return cls(refusal.code, refusal.message, retry_after_s=refusal.retry_after_s, param=refusal.param)
