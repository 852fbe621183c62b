"""The door of this node's mesh, over stays in it and over restarts: mesh/door.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from mesh import clock
from mesh.door import Door, DoorFile
from mesh.doors import Doors
from mesh.files import read_or_set_aside
from node.types import NodeId


class DoorStore:
    """mesh/door.json in `folder`, readable by this user only: invites are secrets. `tell` gets a sentence when it is
    damaged (then it is moved aside, and the door is closed). `write` is LateWriter's. `settled`: the mesh counts as
    founded."""

    def __init__(self, folder: Path, tell: Callable[[str], None], write: Callable[[Path, bytes], None]) -> None:
        self._path, self._write = folder / "door.json", write
        file = read_or_set_aside(self._path, msgspec.json.Decoder(DoorFile).decode, tell)
        self.settled = file is None or file.settled
        self.door = Door.of_file(file or DoorFile(), clock.now(), time.time())

    def of(self, mesh: str) -> Door:
        """The door of this mesh: closed, and nothing known, where it is another than before."""
        if self.door.mesh != mesh:
            self.door, self.settled = Door(mesh), True
        return self.door

    def founded(self, mesh: str) -> None:
        """A new mesh: its window is open, and it has not settled."""
        self.door, self.settled = Door(mesh), False
        self.door.found(clock.now())
        self.save()

    def adopt(self, mesh: str, said: Doors | None, teller: NodeId, members: Collection[NodeId]) -> None:
        """This node has joined `mesh`, whose member says this of its door."""
        self.door, self.settled = Door(mesh), True
        if said is not None:
            self.door.merge(said, teller, members, clock.now())
        self.save()

    def save(self) -> None:
        """Neither waits nor raises."""
        file = self.door.file(clock.now(), time.time(), settled=self.settled)
        self._write(self._path, msgspec.json.format(msgspec.json.encode(file)))
