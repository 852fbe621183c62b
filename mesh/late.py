"""Writing files without making the event loop wait: an fsync takes seconds on a busy disk, a heartbeat may not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from mesh.files import write_atomic


class LateWriter:
    """Writes in a thread, one file after another; of several contents for one file only the newest. `tell` gets a
    sentence when a file cannot be written: nothing here is worth failing for."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._waiting: dict[Path, bytes] = {}
        self._busy: asyncio.Future[list[str]] | None = None

    def write(self, path: Path, data: bytes) -> None:
        """Call it on the loop. Returns at once."""
        self._waiting[path] = data
        if self._busy is None:
            self._begin()

    async def flush(self) -> None:
        """Returns when all that was handed over is on the disk, or told of."""
        while self._busy is not None:
            await asyncio.wait([self._busy])
            await asyncio.sleep(0)  # for _ended, which may begin the next round

    def _begin(self) -> None:
        batch, self._waiting = self._waiting, {}
        self._busy = asyncio.get_running_loop().run_in_executor(None, _write, batch)
        self._busy.add_done_callback(self._ended)

    def _ended(self, done: asyncio.Future[list[str]]) -> None:
        self._busy = None
        if self._waiting:
            self._begin()
        for problem in done.result():
            self._tell(problem)


def _write(batch: dict[Path, bytes]) -> list[str]:
    """What went wrong, in words."""
    problems = []
    for path, data in batch.items():
        try:
            write_atomic(path, data)
        except OSError as error:
            problems.append(f"{path} cannot be written ({error.strerror}); the next start will not know what it held")
    return problems
