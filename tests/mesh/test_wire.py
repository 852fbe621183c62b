"""mesh/wire.py: whatever comes in, it is one of our frames or a WireError; whatever goes out comes back equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from election.messages import Message, Rank, Reign, Role
from mesh import wire
from mesh.wire import FRAME_BYTES_MAX, KINDS, PROTOCOL, Bye, Frame, Hello, State, WireError
from node.types import NodeId, NodeReport
from router.events import Decision, Why
from router.frames import Ask, Done

HELLO = Hello(
    id=NodeId("a" * 16),
    boot="b1",
    name="mini",
    mesh="default",
    mesh_id="",
    version="0.1",
    protocol=PROTOCOL,
    peer_port=4001,
    port=4000,
)
REPORT = NodeReport(id=NodeId("a" * 16), boot="b1", name="mini", version="0.1", protocol=1, priority=100, uptime_s=3.5)
small = st.integers(0, 2**31)
texts = st.text(max_size=20)


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Any value of a type that crosses the wire, read off the Structs themselves so that new fields are covered."""
    match kind:
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: values(field.type) for field in fields})
        case inspect.UnionType(types=types):
            return st.one_of(*(values(one) for one in types))
        case inspect.VarTupleType(item_type=item, min_length=low):
            return st.lists(values(item), min_size=low or 0, max_size=3).map(tuple)
        case inspect.ListType(item_type=item):
            return st.lists(values(item), max_size=3)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values(key), values(value), max_size=3)
        case inspect.EnumType(cls=cls):
            return st.sampled_from(list(cls))
        case inspect.LiteralType(values=choices):
            return st.sampled_from(list(choices))
        case inspect.CustomType():
            assert kind.cls is Why
            return values(inspect.type_info(Decision)).map(Why)
        case inspect.IntType(ge=low, le=high) if low is not None:
            return st.integers(low, high)
        case inspect.StrType(pattern=pattern) if pattern is not None:
            return st.from_regex(pattern, fullmatch=True)
        case inspect.FloatType(gt=low, le=high) if low is not None:
            return st.floats(low, high, exclude_min=True)
    plain: dict[type, st.SearchStrategy[Any]] = {
        inspect.IntType: small,
        inspect.StrType: texts,
        inspect.BytesType: st.binary(max_size=20),
        inspect.FloatType: st.floats(-1e9, 1e9),
        inspect.BoolType: st.booleans(),
        inspect.NoneType: st.none(),
    }
    return plain[type(kind)]


frames: st.SearchStrategy[Frame] = values(inspect.type_info(Frame))
messages: st.SearchStrategy[Message] = values(inspect.type_info(Message))


def decoded(decode: Callable[[bytes], object], data: bytes) -> object:
    """What `decode` makes of it, or the code of its WireError."""
    try:
        return decode(data)
    except WireError as error:
        return error.code


def code_of(data: bytes) -> str:
    with pytest.raises(WireError) as caught:
        wire.decode(data)
    return caught.value.code


@settings(max_examples=200, deadline=None)
@given(frame=frames)
def test_every_frame_comes_back_equal(frame: Frame) -> None:
    assert wire.decode(wire.encode(frame)) == frame


@given(message=messages)
def test_every_message_comes_back_equal(message: Message) -> None:
    assert wire.decode_message(wire.encode_message(message)) == message


@given(data=st.binary(max_size=300))
def test_garbage_raises_wire_error_only(data: bytes) -> None:
    for decode in (wire.decode, wire.decode_message):
        with pytest.raises(WireError):
            decode(data)


@settings(deadline=None)
@given(frame=frames, at=small, byte=st.integers(0, 255), cut=small)
def test_a_damaged_frame_is_a_frame_or_a_wire_error(frame: Frame, at: int, byte: int, cut: int) -> None:
    data = bytearray(wire.encode(frame))
    data[at % len(data)] = byte
    for damaged in (bytes(data), bytes(data[: cut % len(data)])):
        found = decoded(wire.decode, damaged)
        assert isinstance(found, get_args(Frame)) or found in {"garbled", "unknown_kind", "other_version"}


@given(message=messages, at=small, byte=st.integers(0, 255))
def test_a_damaged_datagram_is_a_message_or_a_wire_error(message: Message, at: int, byte: int) -> None:
    data = bytearray(wire.encode_message(message))
    data[at % len(data)] = byte
    found = decoded(wire.decode_message, bytes(data))
    assert isinstance(found, Message) or found in {"garbled", "unknown_kind"}


@pytest.mark.parametrize("nest", [b"\x91", b"\x81\xa1x"])
def test_deep_nesting_is_garbage(nest: bytes) -> None:
    head = b"\x82\xa1v\x01\xa5frame\x82\xa4type\xa3bye\xa1q"
    assert code_of(head + nest * 100_000) == "garbled"


def test_an_unknown_kind_is_named() -> None:
    data = msgspec.msgpack.encode({"v": PROTOCOL, "frame": {"type": "rumour", "of": [1, {"a": 2}]}})
    assert code_of(data) == "unknown_kind"
    with pytest.raises(WireError, match="rumour"):
        wire.decode(data)


def test_an_unknown_kind_of_datagram_is_named_and_a_known_one_with_wrong_fields_is_garbled() -> None:
    for body, code in ({"kind": "vote", "x": 1}, "unknown_kind"), ({"kind": "hb"}, "garbled"), ({"kind": 1}, "garbled"):
        with pytest.raises(WireError) as caught:
            wire.decode_message(msgspec.msgpack.encode(body))
        assert caught.value.code == code


@pytest.mark.parametrize("field", ["id", "boot", "name", "mesh", "version"])
def test_what_a_stranger_calls_itself_is_bounded(field: str) -> None:
    """It is passed on to every other node."""
    long = {**msgspec.to_builtins(HELLO), field: "x" * 300}
    assert code_of(msgspec.msgpack.encode({"v": PROTOCOL, "frame": long})) == "garbled"
    told = {"id": "a" * 16, "name": "mini", field: "x" * 300}
    assert code_of(msgspec.msgpack.encode({"v": PROTOCOL, "frame": {"type": "gossip", "peers": [told]}})) == "garbled"


def test_a_known_kind_with_wrong_fields_is_garbled() -> None:
    assert code_of(msgspec.msgpack.encode({"v": PROTOCOL, "frame": {"type": "bye"}})) == "garbled"


def test_unknown_fields_are_ignored() -> None:
    body = {"v": PROTOCOL, "new": 1, "frame": {"type": "bye", "reason": "leaving", "mood": "good"}}
    assert wire.decode(msgspec.msgpack.encode(body)) == Bye("leaving")


def test_another_major_protocol_can_still_be_named() -> None:
    other = msgspec.msgpack.encode({"v": PROTOCOL + 1, "frame": msgspec.to_builtins(HELLO)})
    assert wire.decode(other) == HELLO
    assert code_of(msgspec.msgpack.encode({"v": 9, "frame": {"type": "ping", "n": 1}})) == "other_version"
    assert code_of(msgspec.msgpack.encode({"v": 9, "frame": {"type": "hello", "who": "?"}})) == "other_version"


def test_sizes_are_bounded_both_ways() -> None:
    with pytest.raises(WireError, match="bye frame"):
        wire.encode(Bye("x" * FRAME_BYTES_MAX))
    assert code_of(b"\x00" * (FRAME_BYTES_MAX + 1)) == "too_large"
    with pytest.raises(WireError) as caught:
        wire.encode_message(message_of("x" * wire.MESSAGE_BYTES_MAX))
    assert caught.value.code == "too_large"
    with pytest.raises(WireError) as caught:
        wire.decode_message(b"\x00" * (wire.MESSAGE_BYTES_MAX + 1))
    assert caught.value.code == "too_large"


def test_the_list_of_kinds() -> None:
    """A kind that is renamed or lost breaks peers of another version: change this list knowingly (docs/wire.md)."""
    assert {
        "hello", "state", "account", "gossip", "roster", "doors", "keys", "drain", "drill", "drilled", "bye", "ping",
        "pong",
        "ask", "taken", "first", "done", "cancel", "carrying", "queued", "grant", "refuse",
    } == KINDS  # fmt: skip
    assert wire.kind_of(State(REPORT)) == "state"
    assert {Ask.__struct_config__.tag, Done.__struct_config__.tag} <= KINDS


def message_of(mesh: str = "default") -> Message:
    return Message(
        kind="hb",
        sender="a" * 16,
        boot="b1",
        seq=1,
        mesh=mesh,
        reign=Reign(3, Rank(True, 100, 2, "a" * 16, "b1")),
        coordinator="a" * 16,
        role=Role.COORDINATOR,
        rank=Rank(True, 100, 2, "a" * 16, "b1"),
        uptime_s=21.0,
    )
