"""What comes from other nodes, or from whoever says so: datagrams, link frames, TXT records.

A datagram comes as it is, and under the seal of a member; what a member puts around a frame is TLS, which ends before
any of our code.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import msgspec
from zeroconf import ServiceInfo

from bench.fuzz.corpus import FOLDER
from bench.fuzz.target import Run, Target, want
from bench.fuzz.trees import remade
from election.machine import Election
from election.messages import Heard, Message, PeerKnown, Send, Tick
from election.settings import ElectionSettings
from mesh.advert import TXT_BYTES_MAX, seen_of, txt_bytes
from mesh.events import Beat, Framed, LinkUp, Reported, Seen
from mesh.events import Tick as MeshTick
from mesh.heartbeats import Heartbeats
from mesh.membership import Membership
from mesh.seal import HINT_BYTES, Seals
from mesh.settings import MembershipSettings
from mesh.wire import (
    MESSAGE_BYTES_MAX,
    PROTOCOL,
    AccountFrame,
    Frame,
    Gossip,
    Hello,
    State,
    WireError,
    decode,
    decode_message,
    encode,
    encode_message,
)  # fmt: skip
from node.types import NodeId, NodeReport, status_of
from router.account import Standing, account
from router.asker import Asker, Follow, FromDesk
from router.desk import Desk, DeskEvent, FromEdge, Rule
from router.desk import Reported as Ran
from router.events import NodeChanged, NodeUp
from router.events import Tick as DeskTick
from router.frames import CoordinatorFrame, EdgeFrame, Say
from router.settings import RouterSettings

ME, PEER = NodeId("00" * 8), NodeId("aa" * 8)
_WIRE = FOLDER.parents[1] / "mesh" / "corpus" / f"v{PROTOCOL}"
_NEXT = b"\xc1NEXT"  # between two frames of one input; no msgpack begins with 0xc1


class _Pair:
    """Two members that have heard each other: `mine` is this process's, the datagrams of `peer` come in."""

    def __init__(self, peer: NodeId) -> None:
        rng, key = Random(1), bytes(32)
        self.mine = Seals(b"m" * HINT_BYTES, key_of=lambda _: key, nonce=rng.randbytes)
        self._theirs = Seals(b"t" * HINT_BYTES, key_of=lambda _: key, nonce=rng.randbytes)
        self.mine.admit({peer: b"t" * HINT_BYTES})
        self._theirs.admit({ME: b"m" * HINT_BYTES})
        for _ in range(2):  # each learns the other's challenge
            said = self._theirs.open(self.mine.seal(peer, b"") or b"", 0.0)
            heard = self.mine.open(said.answer or self._theirs.seal(ME, b"") or b"", 0.0)
            self._theirs.open(heard.answer or b"", 0.0)

    def sealed(self, payload: bytes) -> bytes:
        """As it stands on the wire when that member has sent it."""
        return self._theirs.seal(ME, payload[:MESSAGE_BYTES_MAX]) or b""


def _files(pattern: str) -> list[bytes]:
    return [file.read_bytes() for file in sorted(Path(_WIRE).glob(pattern))]


# Datagrams: one input is several, which one Election hears one after the other


@contextmanager
def _datagrams() -> Iterator[Run]:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()

        async def hear(data: bytes) -> str:
            return _heard(data)

        yield lambda data: loop.run_until_complete(hear(data))


def _heard(data: bytes) -> str:
    messages: list[Message] = []
    noise: list[str] = []
    parts = [part[:MESSAGE_BYTES_MAX] for part in data.split(_NEXT)[:32]]
    read = [message for part in parts if (message := _read(part))]
    pair = _Pair(NodeId(read[0].sender) if read else PEER)
    heartbeats = Heartbeats(
        seals=pair.mine,
        on_message=lambda message, _: messages.append(message),
        on_noise=lambda _, code: noise.append(code),
    )
    heartbeats.set_peer(NodeId("sender"), ("127.0.0.1",), 4001)
    for part in parts:
        before = len(messages)
        heartbeats.received(part, ("127.0.0.1", 4001))
        want(len(messages) == before, "a datagram without a seal is heard")
        heartbeats.received(pair.sealed(part), ("127.0.0.1", 4001))
    said = sum(1 for part in parts if part)  # an empty one only shows a challenge
    want(len(messages) + len(noise) == len(parts) + said, "a datagram is neither heard nor noise")
    want(heartbeats.counts.received == len(messages) <= len(read), "datagrams are miscounted")
    _elect(messages)
    return "+".join(sorted({*noise, *(message.kind for message in messages)}))


def _read(payload: bytes) -> Message | None:
    with suppress(WireError):
        message = decode_message(payload)
        again = encode_message(message)  # as bytes: a NaN is not equal to itself
        want(encode_message(decode_message(again)) == again, "a message is not said as it was read")
        return message
    return None


def _elect(messages: Sequence[Message]) -> None:
    """What one election and one membership make of them, and that what they say in turn fits a datagram."""
    now = 1000.0
    election = Election(me=ME, boot="boot", mesh="default", priority=100, settings=ElectionSettings(), term=1,
                        now=now, rng=Random(1))  # fmt: skip
    membership = Membership(_report(ME), enabled=True)
    election.step(PeerKnown("sender"), now)
    for message in messages:
        now += 0.05
        effects = [*election.step(Heard(message), now), *election.step(Tick(), now)]
        for effect in effects:
            if isinstance(effect, Send):
                encode_message(effect.message)
        membership.step(Beat(NodeId(message.sender), message.boot, message.deaf), now)
        want(election.deadline > now - 1e-9, "the election wants to be woken in the past")
    for _ in range(5):
        now += 1.0
        for effect in election.step(Tick(), now):
            if isinstance(effect, Send):
                encode_message(effect.message)


def _report(node: NodeId) -> NodeReport:
    return NodeReport(id=node, boot="b", name=node, version="0", protocol=PROTOCOL, priority=100, uptime_s=1.0)


def _remade_datagram(data: bytes, rng: Random) -> bytes:
    parts = data.split(_NEXT)
    at = rng.randrange(len(parts))
    new = remade(parts[at], rng, msgspec.msgpack.decode, msgspec.msgpack.encode)
    return _NEXT.join(rng.choice(([new], [*parts[:at], new, *parts[at + 1 :]], [*parts, new])))


# Frames: one input is several, on one link


class _Node:
    """The deciding parts of one node that has a link with PEER, which it follows in the end."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._membership = Membership(_report(ME), enabled=True)
        self._desk, self._asker = Desk(ME, RouterSettings(), Random(1)), Asker(ME, RouterSettings(), self._now)
        hello = Hello(id=PEER, boot="b", name="peer", mesh="default", mesh_id="", version="", protocol=PROTOCOL,
                      peer_port=1, port=1)  # fmt: skip
        self._membership.step(LinkUp(hello, "127.0.0.1"), self._now)
        self._ask(Rule(ruling=True), NodeUp(status_of(_report(PEER), 0.0)))
        self._asker.step(Follow(PEER, 1, ruling=False), self._now)

    def take(self, frame: Frame) -> None:
        self._now += 0.1
        self._membership.step(Framed(PEER), self._now)
        if isinstance(frame, Hello):
            self._membership.step(LinkUp(frame, "127.0.0.1"), self._now)
        elif isinstance(frame, State):
            self._membership.step(Reported(frame.report), self._now)
            self._ask(NodeChanged(status_of(frame.report, 0.0)), Ran(PEER, frame.report.running))
        elif isinstance(frame, Gossip):
            for peer in frame.peers[: MembershipSettings().gossip_max]:
                self._membership.step(Seen(peer), self._now)
        elif isinstance(frame, EdgeFrame):
            self._ask(FromEdge(PEER, frame))
        elif isinstance(frame, CoordinatorFrame):
            for said in self._asker.step(FromDesk(PEER, frame), self._now):
                if isinstance(said, Say):
                    encode(said.frame)

    def _ask(self, *events: DeskEvent) -> None:
        for event in events:
            for said in self._desk.step(event, self._now):
                encode(said.frame)

    def wait(self) -> None:
        """Time passes, and what is known is shown and passed on."""
        for later_s in (0.1, 1.0, 10.0, 1000.0):
            self._now += later_s
            self._membership.step(MeshTick(), self._now)
            self._ask(DeskTick())
            msgspec.json.encode(self._membership.view().nodes)
            encode(Gossip(self._membership.gossip()))
            standings = [Standing(r, o.attempt, o.node if o.holds else None, True) for r, o in self._desk.open()]
            encode(AccountFrame(account(standings, list(self._desk.reports()))))


@contextmanager
def _frames() -> Iterator[Run]:
    def run(data: bytes) -> str:
        node, outcomes = _Node(), set[str]()
        for one in data.split(_NEXT)[:32]:
            try:
                frame = decode(one)
            except WireError as error:
                outcomes.add(error.code)
                continue
            again = encode(frame)
            want(encode(decode(again)) == again, "a frame is not said as it was read")
            node.take(frame)
            outcomes.add(type(frame).__name__)
        node.wait()
        return "+".join(sorted(outcomes))

    yield run


def _remade_frame(data: bytes, rng: Random) -> bytes:
    parts = data.split(_NEXT)
    at = rng.randrange(len(parts))
    new = remade(parts[at], rng, msgspec.msgpack.decode, msgspec.msgpack.encode)
    return _NEXT.join(rng.choice(([new], [*parts[:at], new, *parts[at + 1 :]], [*parts, new])))


# TXT records


@contextmanager
def _txt() -> Iterator[Run]:
    def run(data: bytes) -> str:
        info = ServiceInfo("_x._tcp.local.", "a._x._tcp.local.", properties=data)
        try:
            txt = info.decoded_properties
        except ValueError:
            return "no text"
        seen = seen_of(txt, ["192.0.2.7"] * 100)
        if seen is None:
            return "none of ours"
        want(len(msgspec.json.encode(seen)) < 16 * TXT_BYTES_MAX, "more is kept than was said")
        Membership(_report(ME), enabled=True).step(Seen(seen), 1.0)
        encode(Gossip((seen,)))
        return "ours"

    yield run


def _txt_seeds() -> list[bytes]:
    txt = json.loads((_WIRE / "txt.json").read_text())
    want(txt_bytes(txt) < TXT_BYTES_MAX, "the example is too large")
    strings = [f"{key}={value}".encode() for key, value in txt.items()]
    return [b"".join(bytes([len(one)]) + one for one in strings), b"\x02id", b"\x03id=\x00", b""]


TARGETS = (
    Target(
        name="datagrams",
        about="mesh/wire.decode_message, Heartbeats.received, Election.step and Membership.step of what was heard",
        opened=_datagrams,
        remake=_remade_datagram,
        seeds=lambda: [*(seeds := _files("datagram-*.bin")), _NEXT.join(seeds), b"MXM", *_files("sealed.bin")],
        words=(b"MXM\x01", b"kind", b"hb", b"ask", b"bye", b"sender", b"term", b"\xcb\x7f\xf8\0\0\0\0\0\0",
               b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc0", b"\xa0"),
    ),
    Target(
        name="frames",
        about="mesh/wire.decode and encode, Membership, Desk and Asker of what came on a link",
        opened=_frames,
        remake=_remade_frame,
        seeds=lambda: [*(seeds := _files("frame-*.bin")), _NEXT.join(seeds[:3])],
        words=(_NEXT, b"type", b"frame", b"\x82\xa1v\x01\xa5frame", b"\xcb\x7f\xf8\0\0\0\0\0\0", b"\x91" * 50,
               b"\xcb\x7f\xf0\0\0\0\0\0\0", b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc0"),
        size_max=16384,
    ),
    Target(
        name="txt",
        about="TXT records as zeroconf takes them apart, mesh/advert.seen_of, Membership",
        opened=_txt,
        seeds=_txt_seeds,
        words=(b"id=", b"api=", b"peer=", b"v=", b"name=", b"mesh=", b"0123456789abcdef", b"\xff"),
    ),
)  # fmt: skip
