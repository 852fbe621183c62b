"""The job of an account that is not on this machine."""

from __future__ import annotations

from pathlib import Path

from mesh import job
from mesh.home import Home
from mesh.job import Account, Job, Kind

ANN = Account("ann", 501, 20, Path("/Users/ann"))
BINARY = Path("/opt/venv/bin/mlx-stack")


def make(kind: Kind, folder: Path, home: Home | None = None, **environment: str) -> Job:
    """The job of an account whose home directory is /Users/ann, below `folder`."""
    return job.job(kind, ANN, home or Home(folder / "home"), BINARY, environment=environment, root=folder)
