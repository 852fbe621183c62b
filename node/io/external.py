"""Engine `external`: an OpenAI-compatible server that somebody else runs on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node.errors import NodeError, NodeErrorCode
from node.io.engine import ModelSpec, WorkerStats
from node.io.flow import Flow, Meter, Metered, Sink
from node.io.upstream import Upstream
from node.io.worker import log_name_of, stats_of
from node.settings import EngineSettings
from node.types import Resume


class ExternalEngine:
    """Makes ExternalWorkers."""

    resume = Resume.REPLAY

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self.default_slots = settings.external_slots

    def worker(self, spec: ModelSpec, on_progress: Callable[[str], None]) -> ExternalWorker:
        """Engine.worker."""
        return ExternalWorker(spec, self._settings, on_progress)


class ExternalWorker:
    """A server we neither start nor end. It knows the model as `ModelSpec.source`, and has `probe_limit_s` for its
    first token, since it may have to load its model first."""

    pid: int | None = None
    resume = Resume.REPLAY

    def __init__(self, spec: ModelSpec, settings: EngineSettings, on_progress: Callable[[str], None]) -> None:
        self.log_name = log_name_of(spec.name)
        self._spec, self._on_progress, self._meter = spec, on_progress, Meter()
        model = spec.source or spec.name
        base = base_of(spec.url)
        self._upstream = Upstream(base, settings, model=model, echoes="", first_limit_s=settings.probe_limit_s)

    async def start(self) -> None:
        """Asks it for one token. Raises NodeError(MODEL_FAILED)."""
        if not self._spec.url:
            raise self._failed("no url is given")
        self._on_progress(f"asking {self._upstream.base} for a token")
        try:
            await self._upstream.probe(chat_first=True)
        except NodeError as error:
            await self._upstream.close()
            raise self._failed(error.message) from error
        except BaseException:
            await self._upstream.close()
            raise

    def pour(self, path: str, body: bytes, *, model_name: str, sink: Sink) -> Flow:
        """Worker.pour."""
        return Metered(self._meter, sink).through(
            lambda counting: self._upstream.pour(path, body, model_name=model_name, sink=counting)
        )

    async def post(self, path: str, body: bytes, content_type: str) -> tuple[int, str, bytes]:
        """Worker.post."""
        return await self._upstream.post(path, body, content_type)

    async def probe(self) -> None:
        """Worker.probe."""
        await self._upstream.probe(chat_first=True)

    async def stats(self) -> WorkerStats:
        """Worker.stats, by our own count. Whether it lives shows when it is asked something."""
        return stats_of(self._meter)

    async def stop(self, grace_s: float) -> None:  # noqa: ARG002 - the protocol's
        """Ends our connections; the server is not ours to end."""
        await self._upstream.close()

    async def exited(self) -> str:
        """Never: there is no process of ours."""
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never

    def _failed(self, why: str) -> NodeError:
        return NodeError(NodeErrorCode.MODEL_FAILED, f"model {self._spec.name}: {why}")


def base_of(url: str) -> str:
    """`http://host:1234`, `.../` and `.../v1` all mean `http://host:1234/v1`; a bare `host:1234` as well."""
    base = url.strip().rstrip("/")
    base = base if "://" in base else f"http://{base}"
    return base if base.endswith("/v1") else f"{base}/v1"
