"""The join call: what a stranger and a member say to each other on the peer port, and the stranger's side of it.

    Begin  ->  Offer     the newcomer commits to its nonce; the member tells its own
    Reveal ->  Result    the newcomer tells its nonce and proves its key; the member judges

Both are POST /mesh/v1/join over TLS without a client certificate. `Knock` is a hint: "look here". Who
the member is, its certificate in TLS proves; it stands in the transcript, so nobody can pass the call on.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from mesh.doors import Cert, Check, Doors, Id, Text
from mesh.errors import MeshError
from mesh.join_settings import JoinSettings
from mesh.joining import Stance
from mesh.records import Record
from mesh.tls import JOIN, cert_at
from node.types import NodeId, Port

Nonce: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
Proof: TypeAlias = Annotated[bytes, Meta(max_length=32)]
_HEAD_BYTES_MAX = 8 << 10


class Begin(Struct, frozen=True, kw_only=True, tag="begin"):
    """`check`: the number that this node shows for this very member already, from an earlier call."""

    id: Id
    name: Text
    mesh: Text  # the name of the mesh it wants
    cert: Cert
    commit: Annotated[bytes, Meta(min_length=32, max_length=32)]
    check: Check = ""
    invited: bool = False
    port: Port = 4000
    peer_port: Port = 4001


class Reveal(Struct, frozen=True, kw_only=True, tag="reveal"):
    """`records`: what lets it in, if a member has signed that and not all have heard of it."""

    session: Annotated[bytes, Meta(max_length=16)]
    nonce: Nonce
    signature: Annotated[bytes, Meta(max_length=128)]
    proof: Proof = b""
    records: Annotated[tuple[Record, ...], Meta(max_length=4)] = ()


class Knock(Struct, frozen=True, kw_only=True, tag="knock"):
    """A node of mesh `mesh_id` says where it is: `mesh add` was typed there, or who is told was let in."""

    id: Id
    name: Text
    mesh: Text
    mesh_id: Text
    stance: Stance
    hint: Text = ""
    port: Port = 4000
    peer_port: Port = 4001


Question: TypeAlias = Begin | Reveal | Knock


class Offer(Struct, frozen=True, kw_only=True, tag="offer"):
    """`known`: the number of `Begin` is shown here too, and stays."""

    session: bytes
    nonce: Nonce
    cert: Cert
    known: bool = False


class Result(Struct, frozen=True, kw_only=True, tag="result"):
    """`why` for people. Of who is in: how (mesh/door.py), the mesh, and all it needs to know."""

    outcome: Literal["joined", "waiting", "busy", "refused"]
    code: Text = ""
    why: Annotated[str, Meta(max_length=1000)] = ""
    how: Text = ""
    mesh: Text = ""
    mesh_name: Text = ""
    node: Id = NodeId("")
    name: Text = ""
    records: tuple[Record, ...] = ()
    doors: Doors | None = None
    proof: Proof = b""


class Heard(Struct, frozen=True, tag="heard"):
    """The answer to a knock."""


Answer: TypeAlias = Offer | Result | Heard

encode = msgspec.msgpack.Encoder().encode
decode_question = msgspec.msgpack.Decoder(Question).decode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode


class Line:
    """To a stranger's peer port, which takes one question per connection. `cert` is what it has shown, "" before."""

    def __init__(self, address: str, port: int, context: ssl.SSLContext, settings: JoinSettings) -> None:
        self._address, self._port, self._context, self._settings = address, port, context, settings
        self.cert = b""

    async def open(self) -> None:
        """Learns its certificate. Raises OSError (SSLError is one)."""
        _, writer = await self._connected()
        writer.transport.abort()

    async def ask(self, question: Question) -> Answer:
        """Raises MeshError: no_answer, other_key (it is not who answered before); OSError, IncompleteReadError."""
        reader, writer = await self._connected()
        try:
            return await self._asked(question, reader, writer)
        finally:
            writer.transport.abort()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(
            self._address, self._port, ssl=self._context, limit=_HEAD_BYTES_MAX
        )
        cert = cert_at(writer.transport) or b""
        if self.cert not in (b"", cert):
            writer.transport.abort()
            raise MeshError("other_key", "another machine answers than before: somebody may be in between", status=502)
        self.cert = cert
        return reader, writer

    async def _asked(self, question: Question, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
        body = encode(question)
        head = (
            f"POST {JOIN} HTTP/1.1\r\nHost: peer\r\nContent-Type: application/msgpack\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        status, length = _head(await reader.readuntil(b"\r\n\r\n"))
        if status != 200 or length > self._settings.answer_bytes:
            raise MeshError("no_answer", f"it answers {status}: it lets nobody in now", status=502)
        data = await reader.readexactly(length)
        try:
            answer: Answer = _decode_answer(data)
        except (ValueError, RecursionError) as error:
            raise MeshError("no_answer", f"its answer is not understood: {error}", status=502) from error
        return answer


def _head(data: bytes) -> tuple[int, int]:
    """Status and length of the body. Raises MeshError(no_answer)."""
    lines = data.decode("latin-1").split("\r\n")
    length = -1
    for line in lines[1:]:
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-length" and value.strip().isdecimal():
            length = int(value)
    with suppress(ValueError, IndexError):
        status = int(lines[0].split(" ")[1])
        if length >= 0 or status != 200:
            return status, max(length, 0)
    raise MeshError("no_answer", "what answers there is no peer port", status=502)
