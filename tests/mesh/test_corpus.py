"""What protocol 2 says on the wire and keeps on disk, byte for byte in corpus/v2, and what later versions may add.

A test here that fails means: nodes of the released version and of this one do not understand each other. Then the
change is wrong, or it is a new major protocol. `python -m tests.mesh.corpus` adds examples of new kinds, only those."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from mesh.advert import TXT_BYTES_MAX, seen_of, txt_bytes
from mesh.clones import keeps_id
from mesh.draining import DrainFile
from mesh.member import incompatible
from mesh.peers import PeerFile, PeerStore
from mesh.wire import (
    MESSAGE_BYTES_MAX,
    PROTOCOL,
    Bye,
    Hello,
    WellKnown,
    WireError,
    decode,
    decode_message,
    encode,
    encode_message,
)
from node.io.identity import node_id
from router.events import Why
from tests.mesh.corpus.__main__ import examples, sealed
from tests.mesh.test_seal import A, process, refused

FOLDER = Path(__file__).parent / "corpus" / "v2"
BEFORE = FOLDER.parent / "v1"  # nodes without keys: they are named, and not listened to
FRAMES = sorted(FOLDER.glob("frame-*.bin"))
DATAGRAMS = sorted(FOLDER.glob("datagram-*.bin"))
MAPS = {("decision", "request"), ("account", "nodes")}  # their keys are data, not names of fields


def says_all_of(new: Any, old: Any) -> bool:
    """Everything `old` says is said by `new` too, which may say more."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and says_all_of(new[key], old[key]) for key in old)
    if isinstance(old, list):
        return isinstance(new, list | tuple) and len(new) == len(old) and all(map(says_all_of, new, old))
    return type(new) is type(old) and bool(new == old)


def more(value: Any, path: tuple[str, ...] = ()) -> Any:
    """As a later version may say it: every object has fields that this one does not know."""
    if isinstance(value, dict):
        known = {key: more(one, (*path, key)) for key, one in value.items()}
        return known if path[-2:] in MAPS else known | {"colour": "blue", "later": {"deep": [1, {"er": None}]}}
    if isinstance(value, list):
        return [more(one, path) for one in value]
    return value


def reasons(why: Why) -> object:
    """Why a grant went where it went is put together when read."""
    return msgspec.to_builtins(why.decision)


def by_name(file: Path) -> str:
    return file.stem


def test_every_kind_has_an_example_and_every_example_a_kind() -> None:
    assert {name for name, _ in examples()} == {file.name for file in FOLDER.iterdir()}


@pytest.mark.parametrize("file", FRAMES, ids=by_name)
def test_a_frame_is_read_as_it_was_meant_and_said_the_same(file: Path) -> None:
    data = file.read_bytes()
    frame = decode(data)
    meant = msgspec.msgpack.decode(data)
    assert says_all_of({"v": 2, "frame": msgspec.to_builtins(frame, builtin_types=(bytes,), enc_hook=reasons)}, meant)
    assert says_all_of(msgspec.msgpack.decode(encode(frame)), meant)
    assert decode(encode(frame)) == frame


@pytest.mark.parametrize("file", DATAGRAMS, ids=by_name)
def test_a_datagram_is_read_as_it_was_meant_and_said_the_same(file: Path) -> None:
    data = file.read_bytes()
    message = decode_message(data)
    meant = msgspec.msgpack.decode(data)
    assert says_all_of(msgspec.to_builtins(message), meant)
    assert says_all_of(msgspec.msgpack.decode(encode_message(message)), meant)


def test_a_datagram_is_sealed_as_it_was() -> None:
    assert sealed() == (FOLDER / "sealed.bin").read_bytes()


@pytest.mark.parametrize("file", FRAMES, ids=by_name)
def test_fields_of_a_later_version_are_ignored_in_every_frame(file: Path) -> None:
    data = file.read_bytes()
    assert decode(msgspec.msgpack.encode(more(msgspec.msgpack.decode(data)))) == decode(data)


@pytest.mark.parametrize("file", DATAGRAMS, ids=by_name)
def test_fields_of_a_later_version_are_ignored_in_every_datagram(file: Path) -> None:
    data = file.read_bytes()
    later = {**more(msgspec.msgpack.decode(data)), "version": 7}
    found = decode_message(msgspec.msgpack.encode(later))
    assert msgspec.structs.replace(found, version=decode_message(data).version) == decode_message(data)


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (decode, msgspec.msgpack.encode({"v": 2, "frame": {"type": "vote", "for": "me"}, "trace": "t"})),
        (decode, msgspec.msgpack.encode({"v": 2, "frame": {"type": "", "n": 1}})),
        (decode_message, msgspec.msgpack.encode({"kind": "vote", "sender": "a" * 16, "term": 1})),
        (decode_message, msgspec.msgpack.encode({"kind": "hb2"})),
    ],
)
def test_a_kind_of_a_later_version_is_named_as_such(read: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(WireError) as caught:
        read(data)
    assert caught.value.code == "unknown_kind"


def test_a_later_protocol_is_named_whatever_its_frames_hold() -> None:
    hello = msgspec.msgpack.decode((FOLDER / "frame-hello.bin").read_bytes())
    later = decode(msgspec.msgpack.encode({"v": 3, "frame": more(hello["frame"]) | {"protocol": 3}}))
    assert isinstance(later, Hello)
    assert "update this node" in incompatible(later.protocol, later.version)
    assert "update it" in incompatible(0, "0.1")
    assert incompatible(PROTOCOL, "99.0") == ""
    for data in ({"v": 3, "frame": {"type": "state", "report": 5}}, {"v": 3, "frame": "sealed"}):
        with pytest.raises(WireError, match="protocol 3") as caught:
            decode(msgspec.msgpack.encode(data))
        assert caught.value.code == "other_version"
    assert refused(process(A, Random(1)).open(b"MXM\x03 whatever that says", 0.0)) == "other_version"


def test_a_node_without_keys_is_named_whatever_it_says() -> None:
    hello = decode((BEFORE / "frame-hello.bin").read_bytes())
    assert isinstance(hello, Hello)
    assert isinstance(decode((BEFORE / "frame-bye.bin").read_bytes()), Bye)
    assert refused(process(A, Random(1)).open((BEFORE / "datagram-hb.bin").read_bytes(), 0.0)) == "other_version"
    seen = seen_of(json.loads((BEFORE / "txt.json").read_text()), ["10.0.0.7"])
    assert seen is not None
    assert "update it" in incompatible(seen.protocol, seen.version)


def test_a_hello_of_before_uptimes_is_one_of_the_youngest() -> None:
    envelope = msgspec.msgpack.decode((FOLDER / "frame-hello.bin").read_bytes())
    mine = decode(msgspec.msgpack.encode(envelope))
    del envelope["frame"]["uptime_s"]
    theirs = decode(msgspec.msgpack.encode(envelope))
    assert isinstance(mine, Hello)
    assert isinstance(theirs, Hello)
    assert keeps_id(mine, theirs)


def test_an_announcement_is_read_as_it_was_meant_with_what_is_added_to_it_later() -> None:
    txt = json.loads((FOLDER / "txt.json").read_text())
    assert txt_bytes(txt) < TXT_BYTES_MAX
    seen = seen_of(txt, ["10.0.0.7"])
    assert seen is not None
    fields = msgspec.to_builtins(seen)
    words = {name: name for name in ("boot", "name", "mesh", "version")}
    numbers = dict.fromkeys(("port", "peer_port", "priority"), 4242)
    rest = {"id": txt["id"], "protocol": 2, "via": "mdns", "addresses": ["10.0.0.7"]}
    assert says_all_of(fields, words | numbers | rest)
    assert seen_of({**txt, "later": "1", "v2": None}, ["10.0.0.7"]) == seen
    found = seen_of({**txt, "v": "3"}, ["10.0.0.7"])
    assert found is not None
    assert "update this node" in incompatible(found.protocol, found.version)


def test_the_well_known_answer_is_read_as_it_was_meant() -> None:
    data = (FOLDER / "well-known.json").read_bytes()
    meant = json.loads(data)
    read = msgspec.json.Decoder(WellKnown).decode
    assert says_all_of(msgspec.to_builtins(read(data)), meant)
    assert read(json.dumps(more(meant))) == read(data)


def test_files_on_disk_are_read_as_they_were_meant(tmp_path: Path) -> None:
    for name, kind in (("file-peers", PeerFile), ("file-drain", DrainFile)):
        data = (FOLDER / f"{name}.json").read_bytes()
        meant = json.loads(data)
        read = msgspec.json.Decoder(kind).decode
        assert says_all_of(msgspec.to_builtins(read(data)), meant)
        assert read(json.dumps(more(meant))) == read(data)
    (tmp_path / "peers.json").write_bytes((FOLDER / "file-peers.json").read_bytes())
    told: list[str] = []
    store = PeerStore(tmp_path, told.append, lambda path, data: None, kept_s=1e10)
    assert [peer.id for peer in store.peers()] == ["id"]
    assert "1 removed nodes" in told[0]
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "id").write_bytes((FOLDER / "file-id.txt").read_bytes())
    assert node_id(tmp_path, pytest.fail) == "0123456789abcdef"
    assert int((FOLDER / "file-term.txt").read_bytes()) == 7


def test_the_examples_fit_their_packets() -> None:
    for file in DATAGRAMS:
        assert file.stat().st_size <= MESSAGE_BYTES_MAX
