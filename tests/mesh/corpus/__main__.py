"""python -m tests.mesh.corpus: writes an example of each kind of message that has none yet.

What is there is never rewritten: it is what this version's nodes say to each other and keep on disk, and each later
version must go on reading it (tests/mesh/test_corpus.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import inspect

from election.messages import Message
from mesh.advert import Advert
from mesh.draining import DrainFile
from mesh.peers import PeerFile
from mesh.seal import Seals
from mesh.wire import KINDS, MESSAGE_KINDS, PROTOCOL, Frame, WellKnown, encode, encode_message
from node.types import NodeId
from router.events import Decision, Why

FOLDER = Path(__file__).parent / f"v{PROTOCOL}"


def full(kind: inspect.Type, name: str = "x") -> Any:
    """A value with every field set, none to its default."""
    match kind:
        case inspect.StructType(cls=cls, fields=fields):
            return cls(**{field.name: full(field.type, field.name) for field in fields})
        case inspect.UnionType(types=types):
            return full(next(one for one in types if not isinstance(one, inspect.NoneType)), name)
        case inspect.VarTupleType(item_type=item):
            return (full(item, name),)
        case inspect.ListType(item_type=item):
            return [full(item, name)]
        case inspect.DictType(value_type=value):
            return {name: full(value, name)}
        case inspect.EnumType(cls=cls):
            return list(cls)[-1]
        case inspect.LiteralType(values=choices):
            return choices[-1]
        case inspect.CustomType():
            assert kind.cls is Why
            return Why(full(inspect.type_info(Decision)))
        case inspect.IntType():
            return 4242
        case inspect.FloatType():
            return 1.5
        case inspect.BoolType():
            return True
        case inspect.BytesType():
            return name.encode()
    assert isinstance(kind, inspect.StrType), kind
    if kind.pattern is not None:  # all are of one length, and hexadecimal
        return "a" * int(kind.pattern.partition("{")[2].partition("}")[0])
    return name


def kind_of(frame: Any) -> str:
    return str(frame.__struct_config__.tag)


def sealed() -> bytes:
    """A datagram from one known node to another."""
    seals = Seals(b"sender's", key_of=lambda _: bytes(range(32)), nonce=lambda n: b"challeng"[:n])
    seals.admit({NodeId("receiver"): b"receiver"})
    data = seals.seal(NodeId("receiver"), b"payload")
    assert data is not None
    return data


def examples() -> Iterator[tuple[str, bytes]]:
    """File name and content of each."""
    for frame in get_args(Frame):
        yield f"frame-{kind_of(frame)}.bin", encode(full(inspect.type_info(frame)))
    message = full(inspect.type_info(Message))
    for kind in MESSAGE_KINDS:
        yield f"datagram-{kind}.bin", encode_message(msgspec.structs.replace(message, kind=kind))
    yield "sealed.bin", sealed()
    advert = full(inspect.type_info(Advert))
    advert = msgspec.structs.replace(advert, id="0123456789abcdef", role="L")
    yield "txt.json", json.dumps(advert.txt(), indent=1).encode()
    for name, kind in (("well-known", WellKnown), ("file-peers", PeerFile), ("file-drain", DrainFile)):
        yield f"{name}.json", msgspec.json.format(msgspec.json.encode(full(inspect.type_info(kind))))
    yield "file-term.txt", b"7\n"
    yield "file-id.txt", b"0123456789abcdef\n"


def main() -> None:
    assert {kind_of(frame) for frame in get_args(Frame)} == KINDS
    FOLDER.mkdir(exist_ok=True)
    for name, data in examples():
        file = FOLDER / name
        if file.exists():
            continue
        file.write_bytes(data)
        print(f"new: {file}")


if __name__ == "__main__":
    main()
