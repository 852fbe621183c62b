"""A home folder of the older mlx-stack as it leaves one behind: written by hand from its documented layout.

Its files are in tests/recorded/old-home; weights are put in by who uses it: `standard` below the model's id, `fast`
below the last part of its source, as both versions look them up.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mesh.home import Home

RECORDED = Path(__file__).parent / "recorded" / "old-home"
TIERS = {"standard": "qwen3-8b", "fast": "llama3.2-3b", "longctx": "falcon-h1-7b"}
FOLDERS = {"standard": "qwen3-8b", "fast": "Llama-3.2-3B-Instruct-4bit", "longctx": "falcon-h1-7b"}
PORTS = {"standard": 8000, "fast": 8001, "longctx": 8002}


def place(user_home: Path) -> Home:
    """A copy at `user_home`/.mlx-stack, without weights yet."""
    home = Home(user_home / ".mlx-stack")
    shutil.copytree(RECORDED, home.root)
    home.models.mkdir()
    return home


def files(home: Home) -> dict[str, bytes]:
    """Its own files, which nobody may change."""
    return {str(f.relative_to(RECORDED)): (home.root / f.relative_to(RECORDED)).read_bytes() for f in _own()}


def _own() -> list[Path]:
    return [f for f in sorted(RECORDED.rglob("*")) if f.is_file() and f.name != "lock"]
