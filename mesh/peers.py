"""The peers that were reached before, kept on disk. Who belongs, mesh/trust.py says."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from mesh.files import read_or_set_aside
from mesh.settings import MembershipSettings
from mesh.wire import PeerSeen
from node.types import NodeId


class _Kept(Struct, frozen=True):
    peer: PeerSeen
    reached_at: float  # Unix seconds, so that a week is a week over restarts too


class PeerFile(Struct, frozen=True):
    """mesh/peers.json. `removed` is of versions before nodes had keys."""

    version: int = 1
    peers: tuple[_Kept, ...] = ()
    removed: tuple[NodeId, ...] = ()


class PeerStore:
    """mesh/peers.json in `folder`. `tell` gets a sentence when the file is damaged (then it is moved aside); the mesh
    goes on without it. `write` is LateWriter's: it neither waits nor raises."""

    def __init__(
        self,
        folder: Path,
        tell: Callable[[str], None],
        write: Callable[[Path, bytes], None],
        *,
        kept_s: float | None = None,
    ) -> None:
        self._path, self._write = folder / "peers.json", write
        self._kept_s = MembershipSettings().dead_kept_s if kept_s is None else kept_s
        file = read_or_set_aside(self._path, msgspec.json.Decoder(PeerFile).decode, tell) or PeerFile()
        oldest = time.time() - self._kept_s
        self._kept = {k.peer.id: k for k in file.peers if k.reached_at >= oldest}
        if file.removed:
            tell(
                f"{self._path} lists {len(file.removed)} removed nodes, from before nodes had keys: it is dropped, "
                "as only those that are let in are members now"
            )

    def peers(self) -> tuple[PeerSeen, ...]:
        """Those reached within the last week. That mDNS once saw one says nothing of where it, or this node, is now."""
        peers = (k.peer for k in self._kept.values())
        return tuple(replace(p, via="gossip") if p.via == "mdns" else p for p in peers)

    def save(self, peers: Sequence[PeerSeen], alive: Collection[NodeId] = ()) -> None:
        """Replaces the file. `alive` are reached now; the others keep the time they were last."""
        now = time.time()
        before = self._kept
        self._kept = {
            p.id: _Kept(p, before[p.id].reached_at if p.id in before and p.id not in alive else now) for p in peers
        }
        file = PeerFile(peers=tuple(self._kept.values()))
        self._write(self._path, msgspec.json.format(msgspec.json.encode(file)))
