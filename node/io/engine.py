"""Engine: how one model server is started, asked and ended. `mlx.py`, `command.py` and `external.py` are the three."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from node.io.flow import Flow, Sink
from node.types import Resume


class ModelSpec(Struct, frozen=True, kw_only=True):
    """One model of this node as its stack file defines it, paths resolved (mesh/config.py makes it).

    `problem` is what already makes it unservable (unknown engine, missing directory): the model is shown as failed
    with it and never started.
    """

    name: str
    aliases: tuple[str, ...] = ()
    engine: str = "mlx-lm"  # "mlx-lm" | "command" | "external"
    source: str = ""  # as the user wrote it
    path: str = ""  # directory of the weights
    hub: str = ""  # its id on the hub, while its weights are not here: they are fetched first, then `path` says where
    command: tuple[str, ...] = ()  # argv with {model} and {port}
    url: str = ""  # external: base, with or without /v1
    port: int = 0  # wanted port, 0 = any free one
    slots: int = 0  # 0 = the engine's default
    context: int = 0
    cache_bytes: int = 0  # keys and values its worker may keep, in use or not; 0 = the engine's default
    extra_args: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    fallback: tuple[str, ...] = ()
    pinned: bool = False
    keep_alive: float | None = None  # seconds; None = the node's idle-timeout, negative = for ever
    weights: str = ""  # asserts equal weights for engines we cannot read
    problem: str = ""


class WorkerStats(Struct, frozen=True):
    """Counters since the worker started; they only grow. `alive` is False when it can never answer again."""

    generated_tokens: int = 0
    prompt_tokens: int = 0
    active: int = 0  # requests it is working on
    alive: bool = True
    why: str = ""  # when not alive
    signs: int = 0  # of progress, other than tokens
    reads: bool = False  # `prompt_tokens` grow while a prompt is read, not only when it is answered


class Worker(Protocol):
    """One running (or starting) model server. Made by an Engine; used by node/io/host.py only."""

    log_name: str  # file below logs/ that holds its output, without ".log"
    resume: Resume  # what its engine promises, until it has started; then what it can do itself

    @property
    def pid(self) -> int | None:
        """None: no process of ours (external), or none now."""

    async def start(self) -> None:
        """Start it and return once it has generated a token. Raises NodeError(MODEL_FAILED) with the diagnosis;
        cancelling start() ends the process."""

    def pour(self, path: str, body: bytes, *, model_name: str, sink: Sink) -> Flow:
        """POST `body` (the client's own JSON, unchanged) to `path` ("chat/completions" or "completions"),
        always streamed upstream, dangerous fields stripped, nulls dropped, usage always asked for.

        `sink` gets whole SSE blocks, each ending in a blank line: `data: {...}` as the engine sent it with `model` =
        `model_name`, and comments (`: ...`) as signs of life, in the callbacks that bring them. Closing the flow
        cancels the generation. A worker whose `resume` is CONTINUE names the tokens of each chunk, and goes on where a
        `mesh_resume` in the body says (node/continuation.py). Raises NodeError(BAD_REQUEST) when the request cannot
        even be asked.
        """

    async def post(self, path: str, body: bytes, content_type: str) -> tuple[int, str, bytes]:
        """POST to another endpoint below /v1 (embeddings, audio/...): status, content type, body.
        Raises NodeError(PATH_NOT_SERVED) if the engine has no such endpoint."""

    async def stats(self) -> WorkerStats:
        """Asks the worker for its counters; never raises, `alive=False` after it stopped answering for good."""

    async def probe(self) -> None:
        """Generates one token. Raises NodeError(MODEL_FAILED) when it cannot, NODE_BUSY when it cannot now."""

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, after `grace_s` seconds SIGKILL; returns when the pid is gone. Idempotent."""

    async def exited(self) -> str:
        """Returns when the process has ended by itself, with the diagnosis from exit code and stderr tail."""


class Engine(Protocol):
    """Makes workers for one kind of model server."""

    default_slots: int
    resume: Resume

    def worker(self, spec: ModelSpec, on_progress: Callable[[str], None]) -> Worker:
        """A worker for `spec`, not started. `on_progress` gets short texts for people while it starts."""
