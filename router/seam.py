"""An answer that is run again from its start joins on to what the client has of it: nothing twice, nothing left out.

An engine that cannot go on with an answer begun elsewhere can still give it once more. As far as the second run says
what the first one said it is swallowed; from there it is passed on. That it fits is its own proof: a run that says
something else raises SeamError. Two runs may cut the same text into other chunks, so texts are compared, not chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import msgspec

from node.continuation import TOKENS_FIELD
from node.openai import data_of

Json: TypeAlias = dict[str, Any]
# What a piece of text belongs to: a field of the delta, ("text",) of a completion, a part of one tool call.
Key: TypeAlias = tuple[str, ...]

_FINISH: Key = ("finish_reason",)
_FIRST = ("reasoning", "reasoning_content", "thinking")  # of two texts in one delta: thinking goes before speaking
_chunk = msgspec.json.Decoder(Json)
_encode = msgspec.json.Encoder().encode


class SeamError(Exception):
    """The second run is not what the client has. The message never holds text of the answer."""


def read(block: bytes) -> Json:
    """The chunk of a `data:` block. Raises SeamError when it is none."""
    try:
        chunk = _chunk.decode(payload(block))
        understood = all(_regular(choice) for choice in chunk.get("choices") or ())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise SeamError("a chunk of the answer is not understood") from error
    if not understood:
        raise SeamError("a chunk of the answer is not understood")
    return chunk


def _regular(choice: Any) -> bool:
    """Whether all that is looked into further down has its type, or is left out."""
    if not isinstance(choice, dict) or not isinstance(choice.get("index") or 0, int):
        return False
    delta = choice.get("delta") or {}
    if not isinstance(delta, dict):
        return False
    calls = delta.get("tool_calls") or []
    return isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("function") or {}, dict) for call in calls
    )


def payload(block: bytes) -> bytes:
    """What stands behind `data:`; a block is mostly one line, and then nothing is looked for."""
    if block.startswith(b"data: ") and block.count(b"\n") == 2:
        return block[6:]
    return data_of(block) or b""


def says(choice: Json) -> bool:
    """Whether this part of a chunk holds any of the answer's text."""
    return any(True for _ in _Names().pieces(choice))


class _Names:
    """Reads one choice's parts, in order. Some engines repeat a tool's name with each piece of its arguments, and some
    number their tool calls not at all: a call without an index is a whole one."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._unnumbered = 0

    def pieces(self, choice: Json) -> Iterator[tuple[Key, str]]:
        """(key, text) of all that this part says, empty texts left out, in an order that no chunking changes."""
        if isinstance(text := choice.get("text"), str) and text:
            yield ("text",), text
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for field in sorted(delta, key=_order):
                if field != "role" and isinstance(value := delta[field], str) and value:
                    yield ("delta", field), value
            for at, call in _calls(delta):
                yield from self._call(at, call)
        if isinstance(reason := choice.get("finish_reason"), str) and reason:
            yield _FINISH, reason

    def _call(self, at: str | None, call: Json) -> Iterator[tuple[Key, str]]:
        if at is None:
            at = f"#{self._unnumbered}"
            self._unnumbered += 1
        function = call.get("function")
        if not isinstance(function, dict):
            return
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(name, str) and name and self._known.get(at) != name:
            self._known[at] = name
            yield ("tool", at, "name"), name
        if isinstance(arguments, str) and arguments:
            yield ("tool", at, "arguments"), arguments


def _order(field: str) -> tuple[int, str]:
    return (_FIRST.index(field) if field in _FIRST else len(_FIRST)), field


def _calls(delta: Json) -> Iterator[tuple[str | None, Json]]:
    """(index as text or None, call) of each tool call in a delta; the older `function_call` is one of its own."""
    for call in delta.get("tool_calls") or ():
        if isinstance(call, dict):
            index = call.get("index")
            yield (str(index) if isinstance(index, int) else None), call
    if isinstance(function := delta.get("function_call"), dict):
        yield "function_call", {"function": function}


class _Voice:
    """One choice: what the client has of it as runs of (key, text), and how far the second run has repeated that."""

    def __init__(self) -> None:
        self._sent: list[tuple[Key, list[str]]] = []
        self._runs: list[tuple[Key, str]] = []
        self._run = self._at = 0
        self._names = _Names()
        self.logprobs: dict[str, int] = {}  # entries the client has of each list
        self.role = self.passing = False

    def heard(self, choice: Json) -> None:
        """The client has got this."""
        self.role = self.role or bool((choice.get("delta") or {}).get("role"))
        for field, entries in _logprobs(choice):
            self.logprobs[field] = self.logprobs.get(field, 0) + len(entries)
        for key, text in self._names.pieces(choice):
            if self._sent and self._sent[-1][0] == key:
                self._sent[-1][1].append(text)
            else:
                self._sent.append((key, [text]))

    def close(self) -> None:
        """All that was sent has been heard; the second run begins."""
        self._runs = [(key, "".join(texts)) for key, texts in self._sent]
        self._names = _Names()
        self._skip()

    @property
    def caught_up(self) -> bool:
        return self._run == len(self._runs)

    def _skip(self) -> None:
        while self._run < len(self._runs) and self._at == len(self._runs[self._run][1]):
            self._run, self._at = self._run + 1, 0

    def rest(self, choice: Json) -> Json | None:
        """What of this part of the second run is new to the client, or None. Raises SeamError."""
        new = [(key, left) for key, text in self._names.pieces(choice) if (left := self._eaten(key, text))]
        logprobs = self._unheard(choice)
        if not new:
            return None
        self.passing = True
        built: Json = {"index": choice.get("index", 0)}
        delta, calls = choice.get("delta"), dict[str, Json]()
        if isinstance(delta, dict):
            built["delta"] = {"role": delta["role"]} if "role" in delta and not self.role else {}
        for key, text in new:
            _put(built, calls, key, text, delta)
        if "logprobs" in choice:
            built["logprobs"] = logprobs
        built.setdefault("finish_reason", None)
        return built

    def _eaten(self, key: Key, text: str) -> str:
        """`text` without what the client has of it."""
        while text and not self.caught_up:
            sent_key, sent = self._runs[self._run]
            length = min(len(text), len(sent) - self._at)
            if key != sent_key or sent[self._at : self._at + length] != text[:length]:
                raise SeamError("the second run says something else than the first")
            text, self._at = text[length:], self._at + length
            self._skip()
        return text

    def _unheard(self, choice: Json) -> Json | None:
        """Logprobs beyond those that the client has."""
        found: Json = {}
        for field, entries in _logprobs(choice):
            skip = min(self.logprobs.get(field, 0), len(entries))
            self.logprobs[field] = self.logprobs.get(field, 0) - skip
            found[field] = entries[skip:]
        return found or None


def _logprobs(choice: Json) -> Iterator[tuple[str, list[Any]]]:
    found = choice.get("logprobs")
    if isinstance(found, dict):
        yield from ((field, entries) for field, entries in found.items() if isinstance(entries, list))


def _put(built: Json, calls: dict[str, Json], key: Key, text: str, delta: Json | None) -> None:
    """The new text at its place. A tool call whose name is new begins here: its id and type come along."""
    match key:
        case ("delta", field):
            built["delta"][field] = text
        case ("tool", "function_call", part):
            built["delta"].setdefault("function_call", {})[part] = text
        case ("tool", at, part):
            if at not in calls:
                calls[at] = {"function": {}} if at.startswith("#") else {"index": int(at), "function": {}}
                built["delta"].setdefault("tool_calls", []).append(calls[at])
            if part == "name":
                calls[at].update(_named(delta or {}, at, text))
            calls[at]["function"][part] = text
        case (field,):
            built[field] = text
        case _:
            raise AssertionError(key)


def _named(delta: Json, at: str, name: str) -> Json:
    """Id and type of the tool call that is numbered so, or, without a number, called so."""
    for index, call in _calls(delta):
        if index == at or (index is None and (call.get("function") or {}).get("name") == name):
            return {field: call[field] for field in ("id", "type") if field in call}
    return {}


class Seam:
    """`feed` it each `data:` block of the second run; what comes back goes to the client. `id` and `created` are the
    first run's all along."""

    def __init__(self, sent: Iterable[bytes]) -> None:
        """`sent`: the blocks that the client has. Raises SeamError when one is no chunk."""
        self._voices: dict[int, _Voice] = {}
        self._head: Json = {}
        self._usage_sent = False
        for block in sent:
            chunk = read(block)
            self._head = self._head or {k: chunk[k] for k in ("id", "created") if k in chunk}
            self._usage_sent = self._usage_sent or bool(chunk.get("usage") and not chunk.get("choices"))
            for choice in chunk.get("choices") or ():
                self._voice(choice).heard(choice)
        for voice in self._voices.values():
            voice.close()

    def _voice(self, choice: Json) -> _Voice:
        return self._voices.setdefault(choice.get("index") or 0, _Voice())

    @property
    def caught_up(self) -> bool:
        """The second run has said all that the client has."""
        return all(voice.caught_up for voice in self._voices.values())

    def feed(self, block: bytes) -> bytes | None:
        """The part of `block` that is new to the client, or None. Raises SeamError."""
        chunk = read(block)
        choices = chunk.get("choices") or []
        if choices:
            chunk["choices"] = [part for choice in choices if (part := self._new(choice)) is not None]
            if not chunk["choices"]:
                return None
        elif not self.caught_up:
            if chunk.get("usage"):
                raise SeamError("the second run ended before it had said what the first one said")
            return None
        elif self._usage_sent:
            return None
        chunk.update(self._head)
        chunk.pop(TOKENS_FIELD, None)  # they tell what this run made, not what the client got: nobody can go on by them
        return b"data: " + _encode(chunk) + b"\n\n"

    def _new(self, choice: Json) -> Json | None:
        voice = self._voice(choice)
        if voice.passing:
            return choice
        if voice.caught_up and not (voice.role and not says(choice)):
            voice.passing = True
            return _without_role(choice) if voice.role else choice
        return voice.rest(choice)

    def end(self) -> None:
        """The second run is over. Raises SeamError when it ended short of what the client has."""
        if not self.caught_up:
            raise SeamError("the second run ended before it had said what the first one said")


def _without_role(choice: Json) -> Json:
    delta = choice.get("delta")
    return choice if not delta else {**choice, "delta": {k: v for k, v in delta.items() if k != "role"}}
