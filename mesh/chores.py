"""What a daemon does on a timer beside serving: it notices edited files and rotates logs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mesh import logfiles
from mesh.config import ConfigError
from mesh.errors import MeshError
from mesh.log import event

if TYPE_CHECKING:
    from mesh.daemon import Daemon

WATCH_EVERY_S = 1.0
ROTATE_EVERY_S = 60.0

_log = logging.getLogger("mesh.chores")


class Stamps:
    """Tells whether files were edited, created or removed since they were last looked at."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = self._look()

    def changed(self) -> bool:
        """True once per edit."""
        before, self._seen = self._seen, self._look()
        return self._seen != before

    def _look(self) -> list[tuple[int, int, int] | None]:
        stamps: list[tuple[int, int, int] | None] = []
        for path in self._paths:
            try:
                facts = path.stat()
                stamps.append((facts.st_ino, facts.st_mtime_ns, facts.st_size))
            except OSError:
                stamps.append(None)
        return stamps


async def watch_files(daemon: Daemon) -> NoReturn:
    """config.yaml and the stack file: an edit is taken over, or refused in the log with everything as it was. The
    certificate of :4000 likewise."""
    while True:
        await asyncio.sleep(WATCH_EVERY_S)
        if daemon.edge_tls is not None:
            await daemon.edge_tls.look()
        if daemon.stamps.changed():
            try:
                await daemon.reload()
            except (ConfigError, MeshError) as e:
                event(_log, logging.ERROR, "reload", f"not taken over: {e}")
            except Exception:  # noqa: BLE001 - a file somebody edits must never end what serves
                _log.exception("reload: not taken over")


async def rotate_logs(daemon: Daemon) -> NoReturn:
    while True:
        await asyncio.sleep(ROTATE_EVERY_S)
        size, keep = daemon.config.log_max_size_mb << 20, daemon.config.log_max_files
        for name in await asyncio.to_thread(logfiles.rotate_all, daemon.home.logs, max_bytes=size, keep=keep):
            event(_log, logging.INFO, "rotated", f"rotated {name}.log")
