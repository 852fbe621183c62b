"""mesh/peers.py: what is kept on disk."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mesh.files import write_atomic
from mesh.peers import PeerStore
from mesh.wire import PeerSeen
from node.types import NodeId

A, B = NodeId("aa" * 8), NodeId("bb" * 8)
PEER = PeerSeen(id=A, name="mini", addresses=("10.0.0.2", "fe80::1%en0"), via="static", far=True, added=True)


def test_what_was_reached_is_there_after_a_restart(tmp_path: Path) -> None:
    told: list[str] = []
    store = PeerStore(tmp_path, told.append, write_atomic)
    assert store.peers() == ()
    store.save([PEER])
    again = PeerStore(tmp_path, told.append, write_atomic)
    assert again.peers() == (PEER,)
    assert told == []


def test_a_list_of_removed_nodes_from_before_nodes_had_keys_is_dropped_with_a_word(tmp_path: Path) -> None:
    store = PeerStore(tmp_path, pytest.fail, write_atomic)
    store.save([PEER])
    file = tmp_path / "peers.json"
    file.write_bytes(msgspec.json.encode({**msgspec.json.decode(file.read_bytes()), "removed": [B]}))
    told: list[str] = []
    store = PeerStore(tmp_path, told.append, write_atomic)
    assert len(told) == 1
    assert "1 removed nodes" in told[0]
    store.save(store.peers())
    assert PeerStore(tmp_path, pytest.fail, write_atomic).peers() == (PEER,)


@pytest.mark.parametrize("content", [b"", b"{", b"[1,2]", b'{"peers": [{"peer": 3}]}', b"\xff\xfe", b'{"peers'])
def test_a_damaged_or_foreign_file_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "peers.json").write_bytes(content)
    told: list[str] = []
    store = PeerStore(tmp_path, told.append, write_atomic)
    assert store.peers() == ()
    assert len(told) == 1
    assert "peers.json" in told[0]
    [aside] = tmp_path.glob("peers.json.broken-*")
    assert aside.read_bytes() == content
    store.save([PEER])
    assert PeerStore(tmp_path, told.append, write_atomic).peers() == (PEER,)


def test_peers_not_reached_for_a_week_are_dropped(tmp_path: Path) -> None:
    other = msgspec.structs.replace(PEER, id=B)
    store = PeerStore(tmp_path, pytest.fail, write_atomic)
    store.save([PEER, other])
    file = msgspec.json.decode((tmp_path / "peers.json").read_bytes())
    file["peers"][0]["reached_at"] -= 7 * 86400 + 1
    (tmp_path / "peers.json").write_bytes(msgspec.json.encode(file))
    store = PeerStore(tmp_path, pytest.fail, write_atomic)
    assert store.peers() == (other,)
    old = [k["reached_at"] for k in msgspec.json.decode((tmp_path / "peers.json").read_bytes())["peers"]][1]
    store.save([other])
    assert msgspec.json.decode((tmp_path / "peers.json").read_bytes())["peers"][0]["reached_at"] == old
    store.save([other], alive={B})
    assert msgspec.json.decode((tmp_path / "peers.json").read_bytes())["peers"][0]["reached_at"] > old


def test_that_mdns_once_saw_a_peer_says_nothing_of_where_it_is_now(tmp_path: Path) -> None:
    store = PeerStore(tmp_path, pytest.fail, write_atomic)
    store.save([msgspec.structs.replace(PEER, via="mdns", far=False)])
    assert [p.via for p in store.peers()] == ["gossip"]
