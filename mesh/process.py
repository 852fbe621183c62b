"""The process that is the daemon of a home: its lock, its log, its loop, its exit code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

import uvloop

from mesh import config as configuration
from mesh.config import ConfigError
from mesh.daemon import Daemon
from mesh.errors import MeshError, leaves
from mesh.home import Home, HomeError
from mesh.limits import raise_descriptors
from mesh.log import DaemonLog
from node.errors import NodeError


def spare_collector() -> None:
    """Python looks for garbage that refers to itself each time 700 objects more are there: for a request that lives as
    long as its stream that is all the time, and nearly never finds any. What was imported stays anyway."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def run(home: Home, tiers: Sequence[str] = ()) -> int:
    """Becomes the daemon of `home` until it is told to stop; the exit code, after one line of what is wrong."""

    async def main(log: DaemonLog) -> None:
        await Daemon(home, config, log, tiers=tiers).run()

    errors: list[Exception] = []
    try:
        with home.lock():
            config = configuration.load(home)
            raise_descriptors()
            log = DaemonLog(home.daemon_log)
            spare_collector()
            try:
                uvloop.run(main(log))
            finally:
                log.close()
    except* (MeshError, ConfigError, HomeError, NodeError) as group:
        errors = leaves(group)
    for error in errors:
        print(f"mlx-stack: {error}", file=sys.stderr)  # noqa: T201 - nobody else is there to say it
    return 1 if errors else 0
