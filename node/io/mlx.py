"""Engine `mlx-lm`: one mlx_lm.server per model, behind our launcher node/io/mlx_worker.py."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from node.errors import NodeError, NodeErrorCode
from node.io.engine import ModelSpec, WorkerStats
from node.io.flags import merged
from node.io.process import HOST
from node.io.registry import Registry
from node.io.upstream import Upstream
from node.io.worker import ServerWorker, ended, stats_of
from node.settings import EngineSettings
from node.types import Resume

DEFAULT_MODEL = "default_model"  # mlx_lm's word for the model it was started with: any other name reloads weights
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
UNHEALTHY = 503  # of /health: the generation thread is dead (a server whose launcher could not take over)


class _Stats(Struct):
    generated_tokens: int
    prompt_tokens: int
    active: int
    alive: bool = True
    continues: bool = False


class MlxEngine:
    """Makes MlxWorkers. `logs` is the folder of their output, `registry` marks their processes as ours."""

    resume = Resume.CONTINUE  # unless its mlx_lm is one that our launcher does not fit

    def __init__(self, settings: EngineSettings, *, logs: Path, registry: Registry) -> None:
        self._settings, self._logs, self._registry = settings, logs, registry
        self.default_slots = settings.mlx_slots

    def worker(self, spec: ModelSpec, on_progress: Callable[[str], None]) -> MlxWorker:
        """Engine.worker."""
        return MlxWorker(spec, self._settings, logs=self._logs, registry=self._registry, on_progress=on_progress)


class MlxWorker(ServerWorker):
    """One mlx_lm.server."""

    resume = MlxEngine.resume
    _misses = 0
    _known = WorkerStats()
    _plain = False  # the launcher did not fit this mlx_lm: no counters there, and another name in answers

    def argv(self, port: int) -> Sequence[str]:
        settings, spec = self.settings, self.spec
        context = spec.context or context_of(spec.path)
        ours = ["--name", spec.name, "--context", str(context), "--with-parent"]
        ours += ["--buffer-bytes", str(settings.buffer_bytes)]
        flags = {
            "--model": spec.path,
            "--host": HOST,
            "--port": port,
            "--prompt-concurrency": 1,  # padding prompts to the longest of a batch delays every one of them
            "--decode-concurrency": spec.slots or settings.mlx_slots,
            "--prompt-cache-size": settings.prompt_cache_seqs,
            "--prompt-cache-bytes": spec.cache_bytes or settings.prompt_cache_bytes,
            "--allowed-origins": f"http://{HOST}",
            "--max-tokens": context or settings.max_tokens,
        }
        theirs = merged(flags, spec.extra_args, fixed=("--model", "--host", "--port"))
        return [sys.executable, "-P", "-m", "node.io.mlx_worker", *ours, "--", *theirs]

    def environment(self) -> Mapping[str, str]:
        return OFFLINE

    def check(self) -> None:
        path = Path(self.spec.path)
        if not self.spec.path:
            raise self._failed("no model directory or hub id is given")
        if path.is_absolute() and not path.is_dir():
            raise self._failed(f"there is no directory {path}")
        if path.is_dir():
            self._check_config(path / "config.json")

    def _check_config(self, file: Path) -> None:
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise self._failed(f"{file.parent} is no model directory: config.json: {error.strerror}") from error
        except ValueError as error:
            raise self._failed(f"{file} is broken: {error}") from error
        if not isinstance(config, dict):
            raise self._failed(f"{file} is broken: it holds no object")

    def connect(self, base: str) -> Upstream:
        limit_s = self.settings.first_block_limit_s
        return Upstream(base, self.settings, model=DEFAULT_MODEL, echoes=self.spec.name, first_limit_s=limit_s)

    async def ready(self, upstream: Upstream) -> None:
        """A first token. /health is 200 long before that, and /v1/models answers for a dead server: neither counts."""
        root = upstream.base.removesuffix("/v1")
        while (health := await self._health(root, upstream)) is None:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(self.settings.health_every_s)
        probe = asyncio.ensure_future(upstream.probe(chat_first=False))
        try:
            while not probe.done():
                if health == UNHEALTHY:
                    raise self._failed("its generation thread died while loading")
                await asyncio.wait({probe}, timeout=self.settings.health_every_s)
                health = await self._health(root, upstream)
            probe.result()
        finally:
            await ended(probe)
        asked = await self._asked()
        self._plain = asked is None
        if asked is None:
            upstream.echoes = DEFAULT_MODEL
        self.resume = Resume.CONTINUE if asked and asked.continues else Resume.REPLAY
        upstream.names_tokens = self.resume is Resume.CONTINUE

    async def _health(self, root: str, upstream: Upstream) -> int | None:
        answer = await upstream.get(f"{root}/health", self.settings.stats_limit_s)
        return answer[0] if answer else None

    async def stats(self) -> WorkerStats:
        """Worker.stats, as the launcher counts them."""
        dead = self.why_dead()
        if dead or self._plain:
            return stats_of(self.meter, why_dead=dead)
        asked = await self._ask()
        if asked is not None:
            self._misses, self._known = 0, asked
            return asked
        self._misses += 1
        dead = self.why_dead()
        if not dead and self._misses >= self.settings.stats_misses:
            dead = f"it has not answered {self._misses} questions in a row"
        return msgspec.structs.replace(self._known, alive=not dead, why=dead)

    async def probe(self) -> None:
        """Worker.probe, without a chat template, which may fail for reasons of its own."""
        await self.upstream.probe(chat_first=False)

    async def _ask(self) -> WorkerStats | None:
        """The launcher's counters; None when it gives none now."""
        found = await self._asked()
        if found is None:
            return None
        return WorkerStats(found.generated_tokens, found.prompt_tokens, found.active, alive=found.alive, reads=True)

    async def _asked(self) -> _Stats | None:
        try:
            upstream = self.upstream
        except NodeError:
            return None
        root = upstream.base.removesuffix("/v1")
        answer = await upstream.get(f"{root}/mesh/stats", self.settings.stats_limit_s)
        if answer is None or answer[0] != 200:
            return None
        try:
            return msgspec.json.decode(answer[1], type=_Stats)
        except msgspec.DecodeError:
            return None

    async def post(self, path: str, body: bytes, content_type: str) -> tuple[int, str, bytes]:  # noqa: ARG002 - the protocol's
        """mlx_lm.server completes text and nothing else."""
        raise NodeError(NodeErrorCode.PATH_NOT_SERVED, f"model {self.spec.name}: mlx-lm has no /v1/{path}")


def context_of(path: str) -> int:
    """`max_position_embeddings` of a model directory (of its text part, for models that also see); 0 = unknown."""
    try:
        config = json.loads(Path(path, "config.json").read_text(encoding="utf-8"))
        found = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return 0
    return found if isinstance(found, int) and found > 0 else 0
