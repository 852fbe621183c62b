"""Inside one model server's process: chunks name their tokens, and an answer begun elsewhere goes on as if never cut.

mlx_lm's handler makes chunks of the Responses that its generation thread yields; a Seam stands between the two. It
notes which tokens pass, for `mesh_tokens`. Of a request with `mesh_resume` the other worker's tokens pass first, in a
detokenizer of this request's own, so that the handler's text machine gets where the other's was; `Held` leaves out
the chunks that the client has. To the generation thread those tokens are the end of the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeAlias

import mlx.core as mx
import msgspec

from node.continuation import RESUME_FIELD, Continuation

LAST = b"data: [DONE]"
_DRAWS = 64  # random numbers in one go
Reason: TypeAlias = Literal["stop", "length"]

# Whatever of mlx_lm is made or unpacked here, by the names of its fields.
FIELDS = {
    "Response": {"text", "token", "logprob", "finish_reason", "top_tokens"},
    "GenerationContext": {
        *("has_tool_calling", "has_thinking", "tool_parser", "text_sm", "initial_state"),
        *("prompt", "prompt_cache_count", "_should_stop"),
    },
}


class NonsenseError(ValueError):
    """`mesh_resume` cannot belong to an answer to this request."""


class FinishedError(Exception):
    """The tokens so far are the whole answer: there is nothing to generate. `context` is what the handler needs."""

    def __init__(self, context: Any) -> None:
        super().__init__("nothing is left to generate")
        self.context = context


class File(Protocol):
    """What the handler writes to."""

    def write(self, data: bytes, /) -> int: ...
    def flush(self) -> None: ...


class Matcher(Protocol):
    """mlx_lm's: True when the token completes a stop sequence."""

    def advance(self, token: int) -> bool: ...


class Detokenizer(Protocol):
    """mlx_lm's: text as far as it is certain."""

    last_segment: str

    def add_token(self, token: int) -> None: ...
    def finalize(self) -> None: ...


def fits(module: Any) -> bool:
    """Whether this mlx_lm's classes are those that all this is made for."""
    found = {name: set(getattr(getattr(module, name, None), "__dataclass_fields__", ())) for name in FIELDS}
    return found == FIELDS


def continuation_of(body: dict[str, Any], *, streamed: bool) -> Continuation | None:
    """`mesh_resume` of a request. Raises NonsenseError."""
    if RESUME_FIELD not in body:
        return None
    try:
        found = msgspec.convert(body[RESUME_FIELD], Continuation)
    except msgspec.ValidationError as error:
        raise NonsenseError(f"{RESUME_FIELD}: {error}") from error
    if not streamed or found.blocks < 0:
        raise NonsenseError(f"{RESUME_FIELD}: of a stream only, and `blocks` counts what was sent of it")
    return found


def end_of(tokens: Sequence[int], matcher: Matcher, max_tokens: int) -> Reason | None:
    """Why the answer is over with the last of `tokens`; None when it goes on. Raises NonsenseError when it would have
    been over before that."""
    for place, token in enumerate(tokens, 1):
        reason: Reason | None = "length" if place >= max_tokens else None
        if matcher.advance(token):
            reason = "stop"
        if reason is not None and place < len(tokens):
            raise NonsenseError(f"{RESUME_FIELD}: that answer was over after {place} tokens, not {len(tokens)}")
        if reason is not None:
            return reason
    return None


def reseed(args: Any, sampler: Any, times: int, vocabulary: int) -> None:
    """Gives a request with a seed the one that its random numbers go on with, after `sampler` has drawn so often.

    How often it draws does not depend on what from, so that is little. (mlx's state is a key of two words, and so is
    every seed.)"""
    if args.seed is None or args.sampling.temperature == 0:
        return
    width = vocabulary if args.sampling.xtc_probability > 0 else args.sampling.top_k + 2  # XTC spares certain tokens
    anything = mx.zeros((1, width))
    mx.random.seed(args.seed)
    for done in range(0, times, _DRAWS):
        mx.eval([sampler(anything) for _ in range(min(_DRAWS, times - done))])
    state: Any = mx.random.state
    high, low = state[0].tolist()
    args.seed = high << 32 | low


class StopWords(list[str]):
    """The stop words of an answer that goes on, and the tokens that it has so far."""

    def __init__(self, words: Sequence[str], said: Sequence[int]) -> None:
        super().__init__(words)
        self.said = said


class Stops:
    """mlx_lm's stop sequences for an answer that has tokens already, which may be the start of one."""

    def __init__(self, stops: Any, said: Sequence[int]) -> None:
        self._stops, self._said = stops, said

    def matcher(self) -> Matcher:
        """A matcher that has seen what was said."""
        made: Matcher = self._stops.matcher()
        for token in self._said:
            made.advance(token)
        return made


def primed(stops: Any, words: Sequence[str]) -> Any:
    """mlx_lm's stop sequences of these words; for an answer that goes on, with what was said of it."""
    return Stops(stops, words.said) if isinstance(words, StopWords) else stops


class Held:
    """Stands before the caller's connection: leaves out the first `blocks` chunks, and holds back the rest until it is
    known that the tokens do make these."""

    def __init__(self, file: File, blocks: int) -> None:
        self._file, self._left = file, blocks
        self._kept: list[bytes] | None = []  # None: nothing is held back any more

    def write(self, data: bytes) -> int:
        """As a file's."""
        if data.startswith(LAST):
            self._complete()
            self.open()
        elif self._left and data.startswith(b"data:"):
            self._left -= 1
            return len(data)
        if self._kept is not None:
            self._kept.append(data)
            return len(data)
        return self._file.write(data)

    def flush(self) -> None:
        """As a file's."""
        if self._kept is None:
            self._file.flush()

    def release(self) -> None:
        """The other worker's tokens are through, and nothing else yet. Raises NonsenseError unless they make just the
        chunks that the client has: it would lack text, or get some twice."""
        self._complete()
        more = sum(data.startswith(b"data:") for data in self._kept or ())
        if more:
            raise NonsenseError(f"{RESUME_FIELD}: these tokens make {more} `blocks` more")
        self.open()

    def _complete(self) -> None:
        if self._left:
            raise NonsenseError(f"{RESUME_FIELD}: these tokens make {self._left} `blocks` less")

    def open(self) -> None:
        """Writes what was held back, if anything was."""
        kept, self._kept = self._kept, None
        if kept:
            self._file.write(b"".join(kept))
            self._file.flush()


class Seam:
    """One answer, between the thread that generates it and the one that writes it.

    `tokens` it has already; `release` is called when they are through. None: the answer begins here."""

    def __init__(self, tokens: Sequence[int] = (), release: Callable[[], None] | None = None) -> None:
        self.tokens, self._release = tuple(tokens), release
        self._reason: Reason | None = None  # why the answer is over with the last of them
        self._prompt_tokens = 0  # without them
        self._since: list[int] = []

    def joined(self, tokenized: Any, args: Any, matcher: Matcher, finished: Callable[..., Any]) -> Any:
        """In the generation thread: what mlx_lm's `_tokenize` made, with the tokens as the end of the prompt, and
        `args` for what is left. Raises NonsenseError, or FinishedError with a context that `finished` makes."""
        prompt, segments, kinds, state, vision = tokenized
        said, self._prompt_tokens = list(self.tokens), len(prompt)
        self._reason = end_of(said, matcher, args.max_tokens)
        if self._reason is not None:
            raise FinishedError(finished(initial_state=state, prompt=prompt, prompt_cache_count=0))
        args.max_tokens -= len(said)
        args.stop_words = StopWords(args.stop_words, said)
        if vision is not None:
            vision.cache_key.extend(said)
        return prompt + said, [*segments[:-1], segments[-1] + said], kinds, state, vision

    def usage(self, _: int, generated: int, cached: int) -> tuple[int, int, int]:
        """Tokens of the prompt, generated, and found in the cache, of the whole answer."""
        return self._prompt_tokens, generated, min(cached, self._prompt_tokens)

    def taken(self) -> list[int]:
        """The tokens since the chunk before, for the chunk that is being made."""
        since, self._since = self._since, []
        return since

    def responses(
        self, fresh: Iterator[Any], detokenizer: Callable[[], Detokenizer], made: Callable[..., Any]
    ) -> Iterator[Any]:
        """What the handler makes chunks of: `fresh`, after the tokens so far as Responses `made` here."""
        for response in fresh if self._release is None else self._joined(fresh, detokenizer(), made):
            self._since.append(response.token)
            yield response

    def _joined(self, fresh: Iterator[Any], detokenizer: Detokenizer, made: Callable[..., Any]) -> Iterator[Any]:
        last = len(self.tokens)
        for place, token in enumerate(self.tokens, 1):
            reason = self._reason if place == last else None
            try:
                text = _text(detokenizer, token, reason)
            except Exception as error:  # as IndexError: the weights have ids that the tokenizer lacks
                raise NonsenseError(f"{RESUME_FIELD}: token {token} is no text: {error}") from error
            yield made(text=text, token=token, logprob=0.0, finish_reason=reason, top_tokens=())
        if self._release is not None and self._reason is None:
            self._release()  # Else the chunk that ends the answer may be one that the client has.
        for response in fresh:
            response.text = _text(detokenizer, response.token, response.finish_reason)
            yield response


def _text(detokenizer: Detokenizer, token: int, reason: str | None) -> str:
    """What mlx_lm would say at this token; the one that stops an answer is not said."""
    if reason != "stop":
        detokenizer.add_token(token)
    if reason is not None:
        detokenizer.finalize()
    return detokenizer.last_segment


@contextmanager
def going_on(handler: Any, request: Any, continuation: Continuation | None) -> Iterator[Seam]:
    """Inside, the handler answers the request: from its start, or after what the client has of its answer. What turns
    out to be nonsense is answered with 400."""
    if continuation is None:
        request.mesh_seam = Seam()
        yield request.mesh_seam
        return
    handler.request_id, handler.created = continuation.id, continuation.created
    file = handler.wfile
    handler.wfile = held = Held(file, continuation.blocks)
    request.mesh_seam = Seam(continuation.tokens, held.release)
    try:
        yield request.mesh_seam
        held.open()
    except NonsenseError as error:
        handler.wfile = file
        handler._set_completion_headers(400)  # noqa: SLF001 - as mlx_lm answers
        handler.end_headers()
        file.write(json.dumps({"error": str(error)}).encode())
    finally:
        handler.wfile = file
