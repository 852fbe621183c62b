"""NodeError: everything a node can say instead of an answer, each kind with what the mesh should do about it."""

from __future__ import annotations

from enum import StrEnum


class NodeErrorCode(StrEnum):
    """Kinds of NodeError. The comment says who is at fault and whether another node may do better."""

    BAD_REQUEST = "bad_request"  # the client: the engine refused the request itself; never retried
    MODEL_NOT_FOUND = "model_not_found"  # this node does not hold the model; another may
    NODE_BUSY = "node_busy"  # no slot and no place to wait: not a failure, plan again
    DRAINING = "draining"  # takes no new work: plan again elsewhere
    MODEL_FAILED = "model_failed"  # the worker cannot be started, crashed, hangs, or broke off
    UNREACHABLE = "unreachable"  # connect, reset or silence between edge and node
    PATH_NOT_SERVED = "path_not_served"  # the engine of that model has no such endpoint
    CANNOT_RESUME = "cannot_resume"  # its engine cannot go on with an answer begun elsewhere: run it again instead
    INTERNAL = "internal"


class NodeError(Exception):
    """A node's refusal or failure.

    `status` is the HTTP status between nodes; `retry_after_s` seconds until it is worth coming back, when known.
    """

    STATUS = {  # noqa: RUF012 - a constant table
        NodeErrorCode.BAD_REQUEST: 400,
        NodeErrorCode.MODEL_NOT_FOUND: 404,
        NodeErrorCode.PATH_NOT_SERVED: 404,
        NodeErrorCode.NODE_BUSY: 503,
        NodeErrorCode.DRAINING: 503,
        NodeErrorCode.MODEL_FAILED: 502,
        NodeErrorCode.UNREACHABLE: 502,
        NodeErrorCode.CANNOT_RESUME: 501,
        NodeErrorCode.INTERNAL: 500,
    }

    def __init__(self, code: NodeErrorCode, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.retry_after_s = code, message, retry_after_s

    @property
    def status(self) -> int:
        return self.STATUS[self.code]
