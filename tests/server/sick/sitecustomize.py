"""Runs first in each Python process with this folder on its PYTHONPATH, which only tests/server/test_sick.py sets.

The daemon, its workers and mlx_lm.server are the real ones. MLX_TEST_SETTINGS hands the daemon other bounds: JSON of
{class of node/settings.py: {field: value}}. MLX_TEST_FAULTS is a folder: a file MODEL.FAULT there makes the generation
thread of that model's worker do it, once: `dies` (an error outside all of mlx_lm's handlers) or `hangs` (it never goes
on; the HTTP side does). While there is a file MODEL.plain, workers of the model find an mlx_lm of an unknown version.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any


def hand_over(bounds: dict[str, dict[str, Any]]) -> None:
    """Every settings object that this process makes has these values."""
    from node import settings  # noqa: PLC0415 - most processes that run this need none of it

    for name, fields in bounds.items():
        setattr(settings, name, functools.partial(getattr(settings, name), **fields))


def fall_sick(faults: Path, model: str) -> None:
    """Takes faults where the generation thread looks for its next request."""
    import mlx_lm  # noqa: PLC0415 - as above
    from mlx_lm import server  # noqa: PLC0415 - as above

    healthy = server.ResponseGenerator._next_request

    def has(fault: str) -> bool:
        try:
            (faults / f"{model}.{fault}").unlink()
        except FileNotFoundError:
            return False
        return True

    def next_request(self: Any, timeout: float | None = None) -> Any:
        if has("dies"):
            raise RuntimeError("made sick by a test")
        if has("hangs"):
            threading.Event().wait()
        return healthy(self, timeout)

    server.ResponseGenerator._next_request = next_request
    if (faults / f"{model}.plain").exists():
        mlx_lm.__version__ = "99.0"


words = sys.orig_argv
if "mesh.cli" in words and "MLX_TEST_SETTINGS" in os.environ:
    hand_over(json.loads(os.environ["MLX_TEST_SETTINGS"]))
if "node.io.mlx_worker" in words and "MLX_TEST_FAULTS" in os.environ:
    fall_sick(Path(os.environ["MLX_TEST_FAULTS"]), words[words.index("--name") + 1])
