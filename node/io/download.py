"""Runs the downloads: one child process each (node/io/download_worker.py), so that nothing here waits for the network.

`step` is the only way an event reaches the machine, `_perform` the only place where what it decides is done.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import assert_never

import msgspec

from node.download import (
    Asked,
    Begin,
    Download,
    DownloadEffect,
    DownloadEvent,
    Downloads,
    Dropped,
    Ended,
    Heard,
    Proceed,
    Said,
    Stop,
    Tick,
    Turned,
)
from node.facts import DownloadFact
from node.io.diagnosis import diagnose
from node.io.process import child_environment
from node.settings import NodeSettings

WORKER = (sys.executable, "-P", "-m", "node.io.download_worker")
ENVIRONMENT = {
    "HF_HUB_DISABLE_XET": "1",  # its transfers cannot be resumed by another process
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_VERBOSITY": "error",
    "HF_DEBUG": "0",  # it would print each request
}
_LINE_BYTES = 64 * 1024
_ERROR_BYTES = 16 * 1024  # of the child's stderr, for a diagnosis

_said = msgspec.json.Decoder(Said)


class Downloader:
    """`told` gets (hub id, fact) for each thing that happened, `changed` is called whenever one looks different."""

    def __init__(
        self, settings: NodeSettings, told: Callable[[str, DownloadFact], None], changed: Callable[[], None]
    ) -> None:
        self._settings, self._told, self._changed = settings, told, changed
        self._machine = Downloads(settings)
        self._processes: dict[str, Process] = {}
        self._stopped: set[str] = set()  # whose process is to end, started or not
        self._timer: asyncio.TimerHandle | None = None
        self.tasks: asyncio.TaskGroup | None = None  # None: not running, and nothing happens

    def want(self, hub: str, *, afresh: bool = False) -> Download:
        """Fetches it, unless it is on its way; `afresh` tries a failed one at once."""
        self.step(Asked(hub, afresh))
        return self._machine.find(hub) or Download(hub)

    def drop(self, hub: str) -> None:
        """Nobody wants it any more: its process is ended, what it has fetched stays for another time."""
        self.step(Dropped(hub))

    def step(self, event: DownloadEvent) -> None:
        if self.tasks is None:
            return
        for effect in self._machine.step(event, _clock()):
            self._perform(effect)
        if self._timer is not None:
            self._timer.cancel()
        due = self._machine.deadline
        self._timer = None if due is None else asyncio.get_running_loop().call_at(due, self.step, Tick())
        self._changed()

    def _perform(self, effect: DownloadEffect) -> None:
        assert self.tasks is not None
        match effect:
            case Begin(hub):
                self.tasks.create_task(self._live(hub))
            case Proceed(hub):
                if (process := self._processes.get(hub)) is not None and process.stdin is not None:
                    process.stdin.write(b"go on\n")
            case Stop(hub):
                self._stopped.add(hub)
                _kill(self._processes.get(hub))
            case Turned(hub):
                self._told(hub, self._fact(effect))
            case _:
                assert_never(effect)

    def _fact(self, turned: Turned) -> DownloadFact:
        found = self._machine.find(turned.hub)
        return DownloadFact(
            model=turned.hub,
            source=turned.hub,
            phase=turned.phase,
            done_bytes=found.progress.done_bytes if found else 0,
            total_bytes=found.progress.total_bytes if found else 0,
            new_bytes=turned.new_bytes,
            why=turned.why,
        )

    async def _live(self, hub: str) -> None:
        """One process, from its start until it is gone."""
        try:
            why = await self._run(hub)
        except OSError as error:
            why = f"its process cannot be started: {error.strerror}"
        finally:
            self._processes.pop(hub, None)
            self._stopped.discard(hub)
        self.step(Ended(hub, why))

    async def _run(self, hub: str) -> str:
        """Why it ended. Cancelling this ends it."""
        self._processes[hub] = process = await _spawn([*WORKER, hub], self._settings.download_nice)
        if hub in self._stopped:
            _kill(process)
        assert process.stdout is not None
        assert process.stderr is not None
        tail = asyncio.ensure_future(_tail(process.stderr))
        try:
            async for line in process.stdout:
                with suppress(msgspec.MsgspecError):  # A library's print is not ours.
                    self.step(Heard(hub, _said.decode(line)))
            await process.wait()
            return diagnose(process.returncode, (await tail).decode(errors="replace"))
        finally:
            _kill(process)
            await process.wait()
            tail.cancel()


def _kill(process: Process | None) -> None:
    """Its half of a file stays on disk; there is nothing it would have to put in order."""
    if process is not None and process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()


async def _spawn(argv: Sequence[str], nice: int) -> Process:
    """Raises OSError."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
        env=child_environment("", ENVIRONMENT),
        limit=_LINE_BYTES,
    )
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
    return process


async def _tail(stream: asyncio.StreamReader) -> bytes:
    """The end of what it says until it is closed."""
    kept = b""
    while block := await stream.read(_ERROR_BYTES):
        kept = (kept + block)[-_ERROR_BYTES:]
    return kept


def _clock() -> float:
    return asyncio.get_running_loop().time()
