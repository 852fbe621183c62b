"""What does a client ask for? The few fields of a body that placing and answering need; the rest is never looked at.

The body itself goes to the serving node unchanged, so unknown fields and tools pass through untouched. No message made
here repeats any of the client's text but a model's name; of a prompt only its length and hashes are kept.
"""

from __future__ import annotations

import re
from email.message import Message as Header
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from node.continuation import RESUME_FIELD
from router import prompt as prompting
from router.errors import ErrorCode, RouterError
from router.prompt import Prompt
from router.settings import PromptSettings

CHAT, COMPLETIONS = "chat/completions", "completions"

_Tokens = Annotated[int, Meta(ge=0)]


class _StreamOptions(Struct):
    include_usage: bool | None = None


class _Generate(Struct, kw_only=True):
    model: Annotated[str, Meta(min_length=1)]
    keep_alive: float | str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    mesh_resume: Raw = Raw()


class _Chat(_Generate, kw_only=True):
    messages: Annotated[list[prompting.Message], Meta(min_length=1)]
    tools: Raw = Raw()
    functions: Raw = Raw()


class _Completion(_Generate, kw_only=True):
    prompt: str | list[str | int | list[int]]


class _Other(Struct):
    model: Annotated[str, Meta(min_length=1)]
    keep_alive: float | str | None = None


class Asked(Struct, frozen=True, kw_only=True):
    """One body, understood. `max_tokens` 0 = none set; `choices` is OpenAI's `n`; `keep_alive` seconds that the model
    stays in memory after the answer, infinite for ever, None = not said."""

    model: str
    stream: bool = False
    include_usage: bool = False
    max_tokens: int = 0
    choices: int = 1
    keep_alive: float | None = None
    prompt: Prompt = Prompt()


_BOUNDS = PromptSettings()


def is_form(path: str, content_type: str) -> bool:
    """The body is read as a form; any other as JSON, whatever its type says."""
    return path not in (CHAT, COMPLETIONS) and content_type.lower().startswith("multipart/form-data")


def read(path: str, body: bytes, content_type: str, bounds: PromptSettings = _BOUNDS) -> Asked:
    """Raises RouterError(INVALID_REQUEST), with `param` where one field is at fault."""
    if path in (CHAT, COMPLETIONS):
        asked: _Chat | _Completion = _decode(body, _Chat) if path == CHAT else _decode(body, _Completion)
        if bytes(asked.mesh_resume):
            raise _invalid(f"'{RESUME_FIELD}' is what the nodes of a mesh say to each other", RESUME_FIELD)
        return Asked(
            model=asked.model,
            stream=bool(asked.stream),
            include_usage=bool(asked.stream_options and asked.stream_options.include_usage),
            max_tokens=asked.max_completion_tokens or asked.max_tokens or 0,
            choices=asked.n or 1,
            keep_alive=keep_alive_s(asked.keep_alive),
            prompt=_prompt(asked, bounds),
        )
    if is_form(path, content_type):
        model = form_field(body, content_type, "model")
        if not model:
            raise _invalid("the form has no field 'model'", "model")
        return Asked(model=model, prompt=prompting.of_form(bounds))
    other = _decode(body, _Other)
    prompt = Prompt(size_bytes=len(body), guessed=True)
    return Asked(model=other.model, keep_alive=keep_alive_s(other.keep_alive), prompt=prompt)


def _prompt(asked: _Chat | _Completion, bounds: PromptSettings) -> Prompt:
    if isinstance(asked, _Chat):
        return prompting.of_chat((asked.tools, asked.functions), asked.messages, bounds)
    if isinstance(asked.prompt, str):
        return prompting.of_text(asked.prompt, bounds)
    return prompting.of_several(asked.prompt)


_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"([+-]?)((?:(?:\d+\.?\d*|\.\d+)(?:h|ms|us|µs|μs|ns|m|s))+)", re.ASCII)
_PART = re.compile(r"([\d.]+)([^\d.]+)")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)", re.ASCII)


def keep_alive_s(written: float | str | None) -> float | None:
    """`keep_alive` as Ollama reads it: seconds, also as text, or a Go duration ("5m", "1h30m"); negative = for ever.
    Raises RouterError(INVALID_REQUEST)."""
    if written is None:
        return None
    seconds = written if isinstance(written, int | float) else _seconds(written.strip())
    if seconds is None:
        raise _invalid("'keep_alive' must be seconds or a duration like \"5m\", negative: for ever", "keep_alive")
    return float("inf") if seconds < 0 else float(seconds)


def _seconds(text: str) -> float | None:
    if len(text) > 64:
        return None
    if _NUMBER.fullmatch(text):
        return float(text)
    found = _DURATION.fullmatch(text)
    if found is None:
        return None
    total = sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(found[2]))
    return -total if found[1] == "-" else total


_T = TypeVar("_T", bound=Struct)


def _decode(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _wrong(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = str(error) if isinstance(error, msgspec.DecodeError) else type(error).__name__
        raise _invalid(f"the body is not JSON: {why}" if body else "the body is empty: JSON expected") from None


_MISSING = re.compile(r"missing required field `(\w+)`")
_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")


def _wrong(problem: str) -> RouterError:
    """msgspec's sentence, "Expected `int`, got `str` - at `$.max_tokens`", as a client of OpenAI reads it."""
    found = _PLACE.search(problem)
    place, what = (found[1], problem[: found.start()]) if found else ("", problem)
    if missing := _MISSING.search(problem):
        place = f"{place}.{missing[1]}" if place else missing[1]
        return _invalid(f"'{place}' is missing", place)
    if not place:
        return _invalid(f"the body must be a JSON object: {what}")
    return _invalid(f"'{place}' is wrong: {what}", place)


def _invalid(message: str, param: str | None = None) -> RouterError:
    return RouterError(ErrorCode.INVALID_REQUEST, message, param=param)


def form_field(body: bytes, content_type: str, name: str) -> str | None:
    """The text field `name` of a multipart form, or None (RFC 7578). Searches, never copies: a form may hold a film."""
    header = Header()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        return None
    mark = b"--" + boundary.encode("latin-1", "replace")
    at = body.find(mark)
    while at >= 0:
        start = at + len(mark)
        head_end = body.find(b"\r\n\r\n", start, start + 8192)
        at = body.find(b"\r\n" + mark, start)
        if head_end < 0 or at < 0:
            return None
        at += 2
        if head_end < at and _names_field(body[start:head_end], name) and at - head_end < 1024:
            return body[head_end + 4 : at - 2].decode("utf-8", "replace").strip()
    return None


def _names_field(head: bytes, name: str) -> bool:
    for line in head.decode("utf-8", "replace").split("\r\n"):
        if line.lower().startswith("content-disposition:"):
            header = Header()
            header["content-disposition"] = line.split(":", 1)[1].strip()
            return header.get_param("name", header="content-disposition") == name
    return False
