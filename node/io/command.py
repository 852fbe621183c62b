"""Engine `command`: any OpenAI-compatible server that a command line starts."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from node.io.engine import ModelSpec
from node.io.process import GUARD
from node.io.registry import Registry
from node.io.upstream import Upstream
from node.io.worker import ServerWorker
from node.settings import EngineSettings
from node.types import Resume


class CommandEngine:
    """Makes CommandWorkers. `logs` is the folder of their output, `registry` marks their processes as ours."""

    resume = Resume.REPLAY

    def __init__(self, settings: EngineSettings, *, logs: Path, registry: Registry) -> None:
        self._settings, self._logs, self._registry = settings, logs, registry
        self.default_slots = settings.command_slots

    def worker(self, spec: ModelSpec, on_progress: Callable[[str], None]) -> CommandWorker:
        """Engine.worker."""
        return CommandWorker(spec, self._settings, logs=self._logs, registry=self._registry, on_progress=on_progress)


class CommandWorker(ServerWorker):
    """One server started from `ModelSpec.command`, whose `{model}` and `{port}` are filled in. It is asked for the
    model under the name that stands for `{model}`."""

    def argv(self, port: int) -> Sequence[str]:
        values = {"{model}": self._model(), "{port}": str(port)}
        command = [_filled(part, values) for part in (*self.spec.command, *self.spec.extra_args)]
        return [sys.executable, "-I", "-S", str(GUARD), *command]

    def environment(self) -> Mapping[str, str]:
        return {}

    def check(self) -> None:
        command = self.spec.command
        if not command:
            raise self._failed("its command is empty")
        if not any("{port}" in part for part in command):
            raise self._failed("its command names no {port}: it could not be told where to listen")
        if shutil.which(command[0]) is None:
            raise self._failed(f"there is no command {command[0]}")

    def connect(self, base: str) -> Upstream:
        limit_s = self.settings.first_block_limit_s
        return Upstream(base, self.settings, model=self._model(), echoes="", first_limit_s=limit_s)

    async def ready(self, upstream: Upstream) -> None:
        """It answers at all (some servers listen first and load then), and then a first token."""
        root = upstream.base.removesuffix("/v1")
        while not await self._answers(upstream, f"{upstream.base}/models", f"{root}/health"):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(self.settings.health_every_s)
        await upstream.probe(chat_first=True)

    async def _answers(self, upstream: Upstream, *urls: str) -> bool:
        """One of `urls` is answered with 200. Anything but 5xx from both counts too: it serves, but not those two."""
        found = [await upstream.get(url, self.settings.stats_limit_s) for url in urls]
        statuses = [answer[0] for answer in found if answer is not None]
        return 200 in statuses or (len(statuses) == len(urls) and all(status < 500 for status in statuses))

    def _model(self) -> str:
        return self.spec.path or self.spec.source or self.spec.name


def _filled(part: str, values: Mapping[str, str]) -> str:
    for placeholder, value in values.items():
        part = part.replace(placeholder, value)
    return part
