"""What workers of each model were measured to take, remembered in `node/measured.json` of the home.

A model is known by weights.identity: its config and the headers of its weights, wherever they lie.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from node.headroom import Taken
from node.io.files import read_file, write_file

_KEPT = 1000  # models; the one measured longest ago is forgotten first


class Measured:
    """`file` None: remembered until the process ends. A file that cannot be read or written costs the memory of
    earlier runs, nothing else."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._taken: dict[str, Taken] | None = None

    def get(self, identity: str) -> Taken | None:
        """Blocks on the disk the first time."""
        return self._known().get(identity)

    def put(self, identity: str, taken: Taken) -> None:
        """Remembers it; blocks on the disk, so call it in a thread."""
        known = {name: kept for name, kept in self._known().items() if name != identity}
        self._taken = {**dict(list(known.items())[-_KEPT + 1 :]), identity: taken}
        if self._file is not None:
            write_file(self._file, msgspec.json.encode(self._taken))

    def _known(self) -> dict[str, Taken]:
        if self._taken is None:
            found = read_file(self._file, dict[str, Taken]) if self._file is not None else None
            self._taken = found or {}
        return self._taken
