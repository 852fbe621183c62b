"""The child process of one MLX model: mlx_lm's own server, launched our way.

    python -m node.io.mlx_worker --name NAME [--context N] [--buffer-bytes N] [--with-parent] -- mlx_lm.server's FLAGS

What it adds, each through one override of a class of `mlx_lm.server`: answers name our model; whatever model a caller
names, the weights never change; a request that the model cannot take is a 400, not the end of everybody's generation,
nor is a prompt that its cache holds whole; tokens are counted where they are made; `--prompt-cache-bytes` bounds all
keys and values, kept and in use; work whose caller has left is stopped, streamed or not, while it is read too; chunks
name their tokens and an answer that was cut elsewhere goes on here, where mlx_lm allows it (node/io/mlx_resume.py);
`GET /mesh/stats` tells the counters; a dead generation thread ends the process, with the reason on stderr.
A version of mlx_lm whose classes do not fit runs as it is, without all that.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from functools import partial
from http.server import ThreadingHTTPServer
from queue import Queue
from typing import Any, NoReturn

import mlx.core as mx
import mlx_lm
from mlx_lm import server
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

from node.continuation import TOKENS_FIELD, TOKENS_HEADER, Continuation
from node.io import mlx_resume
from node.io.callers import Call, CallerGoneError, Counters

TESTED = ("0.31.3", "0.32.")  # starts of versions that tests/server has run against
DEFAULT_MODEL = "default_model"  # mlx_lm's word for the model it was started with
STATS_PATH = "/mesh/stats"
PROBE_HEADER = "X-Mesh-Probe"
HOOKS = {
    "ResponseGenerator": (
        *("_generate", "_next_request", "_serve_single", "_tokenize", "_make_state_machine", "generate"),
    ),
    "APIHandler": ("handle_completion", "validate_model_parameters", "generate_response", "completion_usage_response"),
    "GenerationContext": ("stop",),
    "LRUPromptCache": ("fetch_nearest_cache", "insert_cache", "trim_to"),
}


class Tap:
    """Stands before one request's answer queue, in the generation thread: counts what is put, and stops the
    generation of a caller that has left. `alone`: served outside a batch, where upstream looks for a stop only once
    it decodes, so that reading has to be broken off with an exception."""

    def __init__(self, queue: Queue[Any], call: Call, counters: Counters) -> None:
        self._queue, self._call, self._counters = queue, call, counters
        self._context: Any = None
        self._read = 0
        self._decoding = self._dropped = False
        self.alone = False

    def put(self, item: Any) -> None:
        """What upstream has to say about the request: its context, progress tuples, responses, an error, None."""
        if isinstance(item, server.GenerationContext):
            self._context = item
        elif isinstance(item, tuple):
            self._count_read(*item)
        elif item is not None and not isinstance(item, Exception):
            self._count_generated()
        self._queue.put(item)
        if item is None or isinstance(item, Exception):
            self._counters.reading.pop(self._call, None)
        elif not self._dropped and self._context is not None and self._call.gone():
            self._drop(reading=isinstance(item, tuple))

    def _count_read(self, done: int, total: int) -> None:
        if not self._decoding:
            self._counters.reading[self._call] = (done, total)
            self._counters.prompt_tokens += max(0, done - self._read)
            self._read = max(self._read, done)

    def _count_generated(self) -> None:
        if not self._decoding:
            self._decoding = True
            self._counters.reading.pop(self._call, None)
            fresh = len(self._context.prompt) - max(0, self._context.prompt_cache_count)
            self._counters.prompt_tokens += max(0, fresh - self._read)
        self._counters.generated_tokens += 1

    def _drop(self, *, reading: bool) -> None:
        self._dropped = True
        self._context.stop()
        self._counters.reading.pop(self._call, None)
        gone = CallerGoneError("the caller has left")
        self._queue.put(gone)  # frees the thread that would write the answer
        if self.alone and reading:
            raise gone


class PromptCache(server.LRUPromptCache):  # type: ignore[misc]  # mlx_lm has no types
    """mlx_lm's cache of prompts, which looks at its bytes on every insertion too, not only when a request joins a
    running batch, and counts what that batch has in use."""

    batch: Any = None  # the newest batch generator, once there is one

    def __init__(self, sequences: int, limit_bytes: int) -> None:
        super().__init__(sequences)
        self._limit_bytes = limit_bytes

    def insert_cache(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's, then the oldest entries go until the bound holds."""
        super().insert_cache(*args, **kwargs)
        in_use = self.batch.prompt_cache_nbytes if self.batch is not None else 0
        self.trim_to(n_bytes=self._limit_bytes - in_use)

    def fetch_nearest_cache(self, model: Any, tokens: list[int]) -> tuple[Any, list[int]]:
        """(a cache of the start of `tokens` or None, the tokens still to read: at least one).

        With nothing to read the generation thread dies, and a prompt may be cached whole: its client left right after
        it was read and asks again, or sends back prompt and answer for more.
        """
        cache, rest = super().fetch_nearest_cache(model, tokens)
        if rest or cache is None:
            return cache, rest
        if not can_trim_prompt_cache(cache):
            return None, tokens
        trim_prompt_cache(cache, 1)
        return cache, tokens[-1:]


class Generator(server.ResponseGenerator):  # type: ignore[misc]  # mlx_lm has no types
    """mlx_lm's generation thread, which counts, guards itself against odd requests, and does not die in silence."""

    def __init__(self, provider: Any, cache: Any, name: str, context: int) -> None:
        self.name, self.counters, self._context_tokens = name, Counters(), context
        self.counters.continues = mlx_resume.fits(server)
        self._quiet = False  # the newest request is a probe of ours
        self._cached: tuple[int, int] | None = None  # entries and bytes of the prompt cache, when they were last logged
        super().__init__(provider, cache)  # starts the thread

    def _generate(self) -> None:
        try:
            super()._generate()
        except BaseException as error:  # noqa: BLE001 - whatever it was, nobody can be answered any more
            _end(f"generation thread died: {type(error).__name__}: {error}")

    def _log_cache_stats(self) -> None:
        """Upstream's four lines, when they say something new to somebody."""
        if self._quiet:
            return
        before, self._cached = self._cached, (len(self.prompt_cache), self.prompt_cache.nbytes)
        if self._cached != before:
            super()._log_cache_stats()

    def _next_request(self, timeout: float | None = None) -> tuple[Tap, Any, Any] | None:
        item = super()._next_request(timeout)
        if item is None:
            return None
        queue, request, args = item
        self._quiet = request.mesh_call.quiet
        if request.mesh_call.gone():
            queue.put(CallerGoneError("the caller has left"))
            return None
        return Tap(queue, request.mesh_call, self.counters), request, args

    def _serve_single(self, request: tuple[Tap, Any, Any], *rest: Any) -> None:
        request[0].alone = True
        super()._serve_single(request, *rest)

    def _tokenize(self, tokenizer: Any, request: Any, args: Any) -> Any:
        """The prompt's tokens, and all that later steps would trip over outside any guard looked at beforehand.
        What fails here is the request's fault."""
        try:
            tokenized = super()._tokenize(tokenizer, request, args)
            self._check(tokenizer, args, len(tokenized[0]), request.mesh_seam.tokens)
            return self._joined(tokenized, request.mesh_seam, tokenizer, args)
        except Exception:
            request.mesh_call.clients_fault = True
            raise

    def _joined(self, tokenized: Any, seam: mlx_resume.Seam, tokenizer: Any, args: Any) -> Any:
        """`tokenized`, with what has been said of the answer already. Raises FinishedError when that is all."""
        if not seam.tokens:
            return tokenized
        stops, machine = self._make_state_machine(self.model_provider.model_key, tokenizer, args.stop_words)
        parts = {"text_sm": machine, "tool_parser": tokenizer.tool_parser, "has_thinking": tokenizer.has_thinking}
        finished = partial(server.GenerationContext, has_tool_calling=tokenizer.has_tool_calling, **parts)
        tokenized = seam.joined(tokenized, args, stops.matcher(), finished)
        if self.model_provider.draft_model is None:  # which draws too, no one knows how often
            mlx_resume.reseed(args, server._make_sampler(args, tokenizer), len(seam.tokens), len(tokenizer))  # noqa: SLF001 - its own
        return tokenized

    def _make_state_machine(self, model_key: Any, tokenizer: Any, stop_words: Any) -> Any:
        stops, machine = super()._make_state_machine(model_key, tokenizer, stop_words)
        return mlx_resume.primed(stops, stop_words), machine

    def generate(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Upstream's, in the handler's thread: a context and the Responses, past this answer's Seam."""
        try:
            context, fresh = super().generate(request, *args, **kwargs)
        except mlx_resume.FinishedError as finished:
            context, fresh = finished.context, iter(())
        tokenizer = self.model_provider.tokenizer
        return context, request.mesh_seam.responses(fresh, lambda: tokenizer.detokenizer, server.Response)

    def _check(self, tokenizer: Any, args: Any, prompt_tokens: int, said: Sequence[int]) -> None:
        if prompt_tokens == 0:
            raise ValueError("the prompt is empty")
        if self._context_tokens:
            if prompt_tokens >= self._context_tokens:
                raise ValueError(
                    f"the prompt has {prompt_tokens} tokens, the model's context is {self._context_tokens}"
                )
            args.max_tokens = min(args.max_tokens, self._context_tokens - prompt_tokens)
        self._make_state_machine(self.model_provider.model_key, tokenizer, args.stop_words)  # cached for its real use
        vocabulary = getattr(getattr(self.model_provider.model, "args", None), "vocab_size", None) or len(tokenizer)
        if args.sampling.top_k >= vocabulary:
            args.sampling.top_k = 0  # as many as there are: no restriction
        if args.seed is not None and not 0 <= args.seed < 2**64:
            raise ValueError("seed must be from 0 to 2**64 - 1")
        if any(not 0 <= token < vocabulary for token in args.logits.logit_bias or ()):
            raise ValueError(f"logit_bias names a token outside the vocabulary of {vocabulary}")
        if any(not 0 <= token < vocabulary for token in said):
            raise mlx_resume.NonsenseError(f"mesh_resume names a token outside the vocabulary of {vocabulary}")


class Handler(server.APIHandler):  # type: ignore[misc]  # mlx_lm has no types
    """mlx_lm's HTTP side: our model's name in answers, counters, and errors with the right status."""

    disable_nagle_algorithm = True  # one token is one small write; none of them may wait for an acknowledgement
    _call: Call | None = None
    _continuation: Continuation | None = None
    _seam: mlx_resume.Seam
    _names_tokens = False

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        """GET: our counters beside upstream's paths."""
        if self.path != STATS_PATH:
            super().do_GET()
            return
        body = self.response_generator.counters.as_json()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:  # noqa: N802 - http.server's name
        """POST: a body that upstream's own parsing trips over is answered, not hung up on."""
        try:
            super().do_POST()
        except (CallerGoneError, ConnectionError):
            pass
        except Exception as error:
            if self._call is not None:
                raise
            self._set_completion_headers(400)
            self.end_headers()
            self.wfile.write(json.dumps({"error": f"cannot read the request: {error}"}).encode())

    def validate_model_parameters(self) -> None:
        """Upstream's checks; and the weights stay, whatever the request says."""
        super().validate_model_parameters()
        self.requested_model = self.requested_draft_model = DEFAULT_MODEL
        self.adapter = None
        self._continuation = mlx_resume.continuation_of(self.body, streamed=self.stream)
        if self._continuation is not None and not self.response_generator.counters.continues:
            raise mlx_resume.NonsenseError("this mlx_lm cannot go on with an answer that was begun elsewhere")

    def handle_completion(self, request: Any, stop_words: Any) -> None:
        """Runs the request with its caller, and what it has of the answer, attached to it."""
        self._call = request.mesh_call = Call(self.connection, quiet=PROBE_HEADER in self.headers)
        counters = self.response_generator.counters
        self._names_tokens = self.stream and counters.continues and TOKENS_HEADER in self.headers
        with counters.working(), mlx_resume.going_on(self, request, self._continuation) as self._seam:
            super().handle_completion(request, stop_words)

    def generate_response(self, *args: Any, **kwargs: Any) -> Any:
        """A chunk or an answer under our model's name; a chunk with its tokens, if they are asked for."""
        made = {**super().generate_response(*args, **kwargs), "model": self.response_generator.name}
        if self._names_tokens:
            made[TOKENS_FIELD] = self._seam.taken()
        return made

    def completion_usage_response(self, *counts: Any) -> Any:
        """The usage chunk under our model's name; what was said elsewhere is no part of the prompt."""
        counts = self._seam.usage(*counts) if self._seam.tokens else counts
        return {**super().completion_usage_response(*counts), "model": self.response_generator.name}

    def _set_completion_headers(self, status_code: int = 200) -> None:
        fault = self._call is not None and self._call.clients_fault
        super()._set_completion_headers(400 if fault and status_code == 404 else status_code)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """One line per request, but none for being asked how it goes."""
        probe = PROBE_HEADER in (getattr(self, "headers", None) or ())
        if not probe and getattr(self, "path", "") not in (STATS_PATH, "/health"):
            super().log_request(code, size)


class Server(ThreadingHTTPServer):
    """One thread per connection. A caller that leaves is no error."""

    daemon_threads = True
    request_queue_size = 128  # of the listening socket; upstream's 5 makes the sixth caller wait a second

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A traceback on stderr, unless the caller has just left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _end(why: str) -> NoReturn:
    """Ends the process from any thread, with the reason as the last line on stderr."""
    traceback.print_exc()
    _say(why)
    os._exit(70)


def _say(text: str) -> None:
    print(f"mlx_worker: {text}", file=sys.stderr, flush=True)  # noqa: T201 - stderr is what the parent reads


def _end_with_parent() -> None:
    """Reads stdin, a pipe that the daemon holds open, and ends the process when it closes, however the daemon died."""
    while os.read(0, 1024):
        pass
    os._exit(0)


def misfit(version: str, module: Any = server) -> str:
    """Why our overrides do not fit this version of mlx_lm; empty when they do."""
    if not version.startswith(TESTED):
        return f"version {version} is not one of those tested ({', '.join(TESTED)})"
    missing = [f"{owner}.{name}" for owner, names in HOOKS.items() for name in names if not _has(module, owner, name)]
    missing += [name for name in ("run", "main", "_run_http_server", "BatchGenerator") if not hasattr(module, name)]
    return f"version {version} has no {', '.join(missing)}" if missing else ""


def _has(module: Any, owner: str, name: str) -> bool:
    return hasattr(getattr(module, owner, None), name)


def main() -> None:
    """Runs the server until it is ended."""
    parser = argparse.ArgumentParser(prog="node.io.mlx_worker")
    parser.add_argument("--name", required=True, help="model name in answers")
    parser.add_argument("--context", type=int, default=0, help="longest prompt plus answer in tokens, 0 = unknown")
    parser.add_argument("--buffer-bytes", type=int, default=2**28, help="freed GPU buffers to keep for the next use")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin closes")
    parser.add_argument("flags", nargs="*", help="of mlx_lm.server, after --")
    options = parser.parse_args()
    if options.with_parent:
        threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
    mx.set_cache_limit(options.buffer_bytes)
    why_not = misfit(mlx_lm.__version__)
    if why_not:
        _say(f"plain mlx_lm.server, because {why_not}")
    else:
        _take_over(options.name, options.context)
    sys.argv = ["mlx_lm.server", *options.flags]
    try:
        server.main()
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - its generation thread would keep a server without a port alive
        _end(f"{type(error).__name__}: {error}")


def _take_over(name: str, context: int) -> None:
    """Makes upstream's `main` build our classes."""

    def run(host: str, port: int, provider: Any, *_: Any, **__: Any) -> None:
        flags = provider.cli_args
        cache = PromptCache(flags.prompt_cache_size, flags.prompt_cache_bytes or 1 << 63)
        server.BatchGenerator = _noting(server.BatchGenerator, cache)
        generator = Generator(provider, cache, name, context)
        serve = server._run_http_server  # noqa: SLF001 - the only door through which it takes other classes
        serve(host, port, generator, server_class=Server, handler_class=Handler)

    server.run = run
    # A line for each step of each prompt, also of our probes: whoever wants to know asks /mesh/stats.
    logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("Prompt processing progress"))


def _noting(made: Any, cache: PromptCache) -> Any:
    """`made`, which also tells the cache what it has made."""

    def make(*args: Any, **kwargs: Any) -> Any:
        cache.batch = made(*args, **kwargs)
        return cache.batch

    return make


if __name__ == "__main__":
    main()
