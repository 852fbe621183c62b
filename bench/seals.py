"""What it costs to prove a heartbeat (mesh/seal.py), and a connection (mesh/tls.py): processor time of one core."""

from __future__ import annotations

import os
import secrets
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.report import Figure, within
from election.messages import Message, Rank, Reign, Role
from mesh.records import Member
from mesh.seal import HINT_BYTES, Opened, Seals
from mesh.tls import PeerTls
from mesh.trust import Trust
from mesh.wire import decode_message, encode_message
from node.io import identity as identities
from node.types import NodeId

BATCH = 2000
BATCHES = 15
BEATS_PER_S = 10
SHAKES = 40
SEAL_MOST_US = 10.0


async def figures() -> list[Figure]:
    """A heartbeat of a coordinator, as it is said; a handshake between two members, both sides."""
    with tempfile.TemporaryDirectory(prefix="mlx-seals-") as folder:
        one, two = _trust(Path(folder) / "one"), _trust(Path(folder) / "two")
        one.found("default", "one")
        one.admit(two.identity.id, "two", two.identity.cert)
        two.adopt(one.records())
        return [*_seals(one, two), *_shakes(one, two)]


def _trust(home: Path) -> Trust:
    (home / "mesh").mkdir(parents=True)
    return Trust(home / "mesh", identities.load(home, _never), _never, clock=time.time)


def _never(text: str) -> None:
    raise AssertionError(text)


def _seals(one: Trust, two: Trust) -> list[Figure]:
    here, there = _seals_of(one), _seals_of(two)
    a, b = one.identity.id, two.identity.id
    message = encode_message(_beat(a))
    for _ in range(3):  # until they believe each other
        for sender, to, receiver in ((here, b, there), (there, a, here)):
            found = receiver.open(_sealed(sender, to, message), 0.0)
            if found.answer is not None:
                sender.open(found.answer, 0.0)
    assert isinstance(found, Opened)
    seal_us = _each_us([lambda: here.seal(b, message)] * BATCHES)
    said = [[_sealed(here, b, message) for _ in range(BATCH)] for _ in range(BATCHES)]
    left = iter(data for batch in said for data in batch)
    open_us = _each_us([lambda: there.open(next(left), 0.0)] * BATCHES)
    assert next(left, None) is None
    bare_us = _each_us([lambda: decode_message(message)] * BATCHES) + _each_us(
        [lambda: encode_message(_BEAT)] * BATCHES
    )
    percent = 100 * (seal_us + open_us) * BEATS_PER_S * 1e-6
    return [
        within(f"seal: a heartbeat of {len(message)} bytes sealed", seal_us, "us", None, SEAL_MOST_US),
        within("seal: the same proven", open_us, "us", None, SEAL_MOST_US),
        within("seal: for comparison, its msgpack written and read", bare_us, "us", None, None),
        within("seal: of a core, both ways, for each peer", percent, "%", None, None),
    ]


def _seals_of(trust: Trust) -> Seals:
    seals = Seals(_hint(trust.identity), key_of=trust.pair_key, nonce=secrets.token_bytes)
    seals.admit({node: _hint(member) for node, member in trust.members.items()})
    return seals


def _hint(who: identities.Identity | Member) -> bytes:
    return bytes.fromhex(identities.fingerprint(who.cert))[:HINT_BYTES]


def _sealed(sender: Seals, to: NodeId, message: bytes) -> bytes:
    data = sender.seal(to, message)
    assert data is not None
    return data


def _each_us(batches: Sequence[Callable[[], object]]) -> float:
    """Of one call; the median over batches of as many calls."""
    taken = []
    for call in batches:
        began = time.process_time()
        for _ in range(BATCH):
            call()
        taken.append((time.process_time() - began) / BATCH)
    return 1e6 * statistics.median(taken)


def _shakes(one: Trust, two: Trust) -> list[Figure]:
    """In memory, without sockets."""
    server, client = PeerTls(one).server(), PeerTls(two).client(one.identity.id)
    assert client is not None
    taken = []
    for _ in range(SHAKES):
        began = time.process_time()
        _shake(server, client)
        taken.append(time.process_time() - began)
    contexts = []
    for _ in range(SHAKES):
        began = time.process_time()
        PeerTls(two).client(one.identity.id)
        contexts.append(time.process_time() - began)
    return [
        within("tls: a handshake, both sides together", 1e3 * statistics.median(taken), "ms", None, None),
        within("tls: a context, once for each member", 1e3 * statistics.median(contexts), "ms", None, None),
    ]


def _shake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(to_server, to_client, server_side=True)
    here = client.wrap_bio(to_client, to_server)
    waiting = [here, there]
    while waiting:
        for side in tuple(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)


def _beat(sender: NodeId) -> Message:
    rank = Rank(True, 100, 8640, sender, "0123abcd")
    return Message(kind="hb", sender=sender, boot="0123abcd", seq=1_000_000, mesh="default", reign=Reign(12, rank),
                   coordinator=sender, role=Role.COORDINATOR, rank=rank, uptime_s=86_400.5, age_s=0.1)  # fmt: skip


_BEAT = _beat(NodeId("0123456789abcdef"))


if __name__ == "__main__":
    import asyncio

    from bench.report import show

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    show("seals", asyncio.run(figures()))
