"""Commands as a person types them, and what a daemon may answer to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from mesh.cli import root

REPOSITORY = Path(__file__).parents[2]
MODEL = {"name": "smol", "aliases": ["fast"], "state": "ready", "engine": "mlx-lm", "slots": 4}
NODE = {"name": "a", "id": "1", "models": [MODEL]}
MESH = {
    "mesh": {"name": "default", "enabled": True, "coordinator": "a", "term": 1, "alone": False},
    "self": "a",
    "nodes": [NODE],
}
STATUS = {
    "version": "1",
    "pid": 7,
    "home": "/h",
    "port": 4000,
    "url": "http://localhost:4000/v1",
    "mesh": MESH,
    "node": NODE,
}
ROUTE = {
    "id": "req-1",
    "at": "2026-11-20T06:00:00.123Z",
    "edge": "a",
    "node": "a",
    "status": 200,
    "outcome": "ok",
    "model": "fast",
}


def run(*words: str, **extra: Any) -> Result:
    return CliRunner().invoke(root, words, prog_name="mlx-stack", **extra)


def weights(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x")
    return folder
