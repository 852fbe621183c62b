"""A streamed answer put back together: SSE chunks in, the body of a non-streamed answer out. Pure.

Workers are always asked to stream, so that a dead one is noticed while it is silent and a client that leaves stops it;
a client that did not ask for a stream gets what this makes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from node.continuation import TOKENS_FIELD
from node.errors import NodeError, NodeErrorCode
from node.openai import data_of
from node.types import Usage

_NO_INDEX = -1
_NOT_KEPT = ("choices", TOKENS_FIELD)  # one is put together, the other says what each chunk was made of
# All that decoding raises, and looking into values of other types than a chunk has; bad JSON and UTF-8 are ValueErrors.
_NO_CHUNK = (ValueError, RecursionError, AttributeError, TypeError, LookupError, OverflowError)
_Json = dict[str, Any]


class Assembler:
    """Feed it every `data:` block of one stream, then take `answer()`. Unknown fields are kept.

    Text grows by joining, lists by appending; of anything else the last value that is not null stands.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self._bytes = limit_bytes, 0
        self._top: _Json = {}
        self._choices: dict[int, _Json] = {}

    def feed(self, block: bytes) -> None:
        """One SSE block. Raises NodeError(MODEL_FAILED) when it is no chunk, or the answer outgrows its limit."""
        self._bytes += len(block)
        if self._bytes > self._limit_bytes:
            raise NodeError(NodeErrorCode.MODEL_FAILED, f"the answer is larger than {self._limit_bytes} bytes")
        payload = data_of(block) or b""
        try:
            chunk = msgspec.json.decode(payload)
            self._add(chunk)
        except _NO_CHUNK as error:
            raise NodeError(NodeErrorCode.MODEL_FAILED, "the engine sent a chunk that is not understood") from error

    def answer(self, usage: Usage) -> bytes:
        """The whole answer. `usage` stands in when no chunk held one. Raises NodeError(MODEL_FAILED) when no choice
        ever came, or one has other types than an answer."""
        if not self._choices:
            raise NodeError(NodeErrorCode.MODEL_FAILED, "the engine ended without an answer")
        try:
            return self._whole(usage)
        except _NO_CHUNK as error:
            raise NodeError(NodeErrorCode.MODEL_FAILED, "the engine's chunks make no answer") from error

    def _whole(self, usage: Usage) -> bytes:
        body = dict(self._top)
        body["object"] = str(body.get("object", "")).removesuffix(".chunk")
        body["choices"] = [_finished(self._choices[index]) for index in sorted(self._choices)]
        if not body.get("usage"):
            body["usage"] = {
                "prompt_tokens": usage.prompt,
                "completion_tokens": usage.completion,
                "total_tokens": usage.prompt + usage.completion,
                "prompt_tokens_details": {"cached_tokens": usage.cached},
            }
        return msgspec.json.encode(body)

    def _add(self, chunk: _Json) -> None:
        if "error" in chunk:
            raise NodeError(NodeErrorCode.MODEL_FAILED, "the engine sent an error instead of an answer")
        for key, value in chunk.items():
            if key not in _NOT_KEPT and (value is not None or key not in self._top):
                self._top[key] = value
        for part in chunk.get("choices") or ():
            index = part.get("index", 0)
            if not isinstance(index, int):
                raise TypeError(index)
            choice = self._choices.setdefault(index, {"index": index})
            for key, value in part.items():
                if key == "delta":
                    _merge(choice.setdefault("message", {}), value or {})
                elif key == "text":
                    choice[key] = choice.get(key, "") + (value or "")
                elif key == "logprobs":
                    choice[key] = _lists(choice.get(key), value)
                elif value is not None or key not in choice:
                    choice[key] = value


def _merge(message: _Json, delta: _Json) -> None:
    for key, value in delta.items():
        old = message.get(key)
        if key == "tool_calls":
            calls = message.setdefault(key, [])
            for call in value or ():
                _merge_call(calls, call)
        elif key == "function_call" and isinstance(value, dict):
            _merge_function(message.setdefault(key, {}), value)
        elif value is None:
            message.setdefault(key, None)
        elif key != "role":
            message[key] = _joined(old, value)
        else:
            message[key] = value


def _joined(old: object, new: object) -> object:
    if isinstance(old, str) and isinstance(new, str):
        return old + new
    if isinstance(old, list) and isinstance(new, list):
        return [*old, *new]
    return new


def _merge_call(calls: list[_Json], part: _Json) -> None:
    """Parts of one tool call share its index; a part without one is a whole call."""
    index = part.get("index", _NO_INDEX)
    call = next((c for c in calls if index != _NO_INDEX and c["index"] == index), None)
    if call is None:
        call = {"index": index}
        calls.append(call)
    for key, value in part.items():
        if key == "function" and isinstance(value, dict):
            _merge_function(call.setdefault(key, {}), value)
        elif value or key not in call:
            call[key] = value


def _merge_function(function: _Json, part: _Json) -> None:
    """The name comes once (some engines repeat it), the arguments in pieces."""
    for key, value in part.items():
        if key == "arguments" and isinstance(value, str):
            function[key] = function.get(key, "") + value
        elif value or key not in function:
            function[key] = value


def _lists(old: _Json | None, new: _Json | None) -> _Json | None:
    """Logprobs: lists that run along with the tokens."""
    if old is None or new is None:
        return new if old is None else old
    merged = dict(old)
    for key, value in new.items():
        merged[key] = _joined(merged.get(key), value) if isinstance(value, list) else value
    return merged


def _finished(choice: _Json) -> _Json:
    """A choice as a client of the non-streamed API expects it: every field it always reads is there."""
    choice.setdefault("finish_reason", None)
    choice.setdefault("logprobs", None)
    message = choice.get("message")
    if message is None:
        return choice
    message.setdefault("role", "assistant")
    calls = message.get("tool_calls")
    for call in calls or ():
        call.pop("index", None)
        call.setdefault("type", "function")
    if calls == []:
        del message["tool_calls"]
    if not message.get("content"):
        message["content"] = None if calls else ""
    return choice
