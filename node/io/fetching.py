"""The models whose weights are not here yet: has them fetched, and says when one of them can be brought into memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from msgspec import structs

from node.facts import DownloadFact, ModelFact, NodeFact
from node.io.download import Downloader
from node.io.hosted import Hosted
from node.settings import NodeSettings
from node.types import ModelState


class Fetching:
    """`arrived` is awaited for each model when its weights are here; its `download` is still set then."""

    def __init__(
        self,
        settings: NodeSettings,
        report: Callable[[NodeFact], None],
        changed: Callable[[], None],
        arrived: Callable[[Hosted], Awaitable[None]],
    ) -> None:
        self._report, self._arrived = report, arrived
        self._downloader = Downloader(settings, self._told, changed)
        self._models: list[Hosted] = []
        self._tasks: asyncio.TaskGroup | None = None

    def begin(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = self._downloader.tasks = tasks

    def end(self) -> None:
        """Nothing happens after this; the processes end with their tasks."""
        self._tasks = self._downloader.tasks = None

    def keep(self, models: Iterable[Hosted]) -> None:
        """These are the models there are from now on: fetches what is missing, gives up what none of them needs."""
        missing = [m for m in models if m.spec.hub and not m.problem]
        for hub in {m.spec.hub for m in self._models} - {m.spec.hub for m in missing}:
            self._downloader.drop(hub)
        self._models = missing
        for model in self._models:
            if model.download is None:
                model.download = self._downloader.want(model.spec.hub)

    def again(self, model: Hosted) -> None:
        """Tries a failed one at once."""
        if model.spec.hub:
            model.download = self._downloader.want(model.spec.hub, afresh=True)

    def _told(self, hub: str, fact: DownloadFact) -> None:
        for model in [m for m in self._models if m.spec.hub == hub]:
            self._report(structs.replace(fact, model=model.name))
            if fact.phase == "begun":
                self._report(ModelFact(model=model.name, state=ModelState.DOWNLOADING, why=f"from {hub}"))
            elif fact.phase == "failed":
                wait_s = model.download.wait_s(_clock()) if model.download else None
                why = f"cannot be downloaded: {fact.why}"
                self._report(ModelFact(model=model.name, state=ModelState.FAILED, why=why, retry_s=wait_s))
            elif fact.phase == "done" and model.download is not None and self._tasks is not None:
                self._models.remove(model)
                model.spec = structs.replace(model.spec, path=model.download.path, hub="")
                self._tasks.create_task(_awaited(self._arrived(model)))


async def _awaited(what: Awaitable[None]) -> None:
    await what


def _clock() -> float:
    return asyncio.get_running_loop().time()
