"""A hostile network between two nodes that are restarted at any time: what is believed was said, once, and lately."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mesh.seal import Opened, Refused, Seals
from mesh.settings import SealSettings
from mesh.wire import DATAGRAM_BYTES_MAX
from node.types import NodeId
from tests.mesh.test_seal import A, B, process

AT = st.integers(0, 2**20)
PAIR = {A: B, B: A}


class Hostile(RuleBasedStateMachine):
    """The network keeps every datagram, and delivers what it likes, to whom it likes, as often as it likes."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.rng, self.now, self.count = random.Random(seed), 0.0, 0
        self.nodes: dict[NodeId, Seals] = {node: process(node, self.rng) for node in PAIR}
        self.births = dict.fromkeys(PAIR, 0)
        self.kept: list[tuple[bytes, NodeId, int]] = []  # with who said it, in which life
        self.taken: dict[NodeId, list[bytes]] = {node: [] for node in PAIR}
        self.newest = dict.fromkeys(PAIR, 0)  # the latest life of the other one that was believed

    def keep(self, data: bytes, sender: NodeId) -> None:
        self.kept.append((data, sender, self.births[sender]))

    def deliver(self, data: bytes, to: NodeId) -> Opened | Refused:
        found = self.nodes[to].open(data, self.now)
        if found.answer is not None:
            self.keep(found.answer, to)
        return found

    @rule(sender=st.sampled_from([A, B]))
    def says(self, sender: NodeId) -> None:
        self.count += 1
        data = self.nodes[sender].seal(PAIR[sender], b"%d" % self.count)
        assert data is not None
        self.keep(data, sender)

    @rule(at=AT, to=st.sampled_from([A, B]))
    def delivers(self, at: int, to: NodeId) -> None:
        if not self.kept:
            return
        data, sender, birth = self.kept[at % len(self.kept)]
        found = self.deliver(data, to)
        if isinstance(found, Opened):
            assert (found.node, PAIR[to]) == (sender, sender)
            assert data not in self.taken[to], "believed twice"
            self.taken[to].append(data)
            assert birth >= self.newest[to], "a former process is believed"
            self.newest[to] = birth
        else:
            assert found.node in (None, sender)

    @rule(at=AT, bit=AT, cut=st.booleans(), to=st.sampled_from([A, B]))
    def damages(self, at: int, bit: int, cut: bool, to: NodeId) -> None:
        if not self.kept:
            return
        data = bytearray(self.kept[at % len(self.kept)][0])
        if cut:
            del data[bit % len(data) :]
        else:
            data[bit // 8 % len(data)] ^= 1 << bit % 8
        found = self.deliver(bytes(data), to)
        assert isinstance(found, Refused)
        assert found.code in {"garbled", "other_version", "stranger", "bad_tag"}
        assert found.answer is None

    @rule(data=st.binary(max_size=DATAGRAM_BYTES_MAX + 9), to=st.sampled_from([A, B]), marked=st.booleans())
    def makes_up(self, data: bytes, to: NodeId, marked: bool) -> None:
        assert isinstance(self.deliver(b"MXM\x02" * marked + data, to), Refused)

    @rule(node=st.sampled_from([A, B]))
    def restarts(self, node: NodeId) -> None:
        self.nodes[node] = process(node, self.rng)
        self.births[node] += 1
        self.taken[node].clear()  # it remembers nothing; that nothing of before is believed twice is checked below
        self.newest[node] = 0
        for data, _, _ in self.kept:
            assert isinstance(self.nodes[node].open(data, self.now), Refused), "it was said before this process was"

    @rule()
    def quiet_minute(self) -> None:
        """Whatever was done before: on a network that delivers, both believe each other within three heartbeats."""
        self.now += 60.0
        for _ in range(3):
            self.now += 0.1
            believed = {node: self.round_from(node) for node in PAIR}
        assert believed == dict.fromkeys(PAIR, True)

    def round_from(self, sender: NodeId) -> bool:
        self.says(sender)
        data, at = self.kept[-1][0], PAIR[sender]
        found = self.deliver(data, at)
        believed = isinstance(found, Opened)
        if believed:
            self.taken[at].append(data)
            self.newest[at] = self.births[sender]
        for _ in range(6):
            if found.answer is None:
                break
            data, at = found.answer, PAIR[at]
            found = self.deliver(data, at)
            if isinstance(found, Opened):
                self.taken[at].append(data)
                self.newest[at] = self.births[PAIR[at]]
        return believed

    @invariant()
    def memory_is_bounded(self) -> None:
        for seals in getattr(self, "nodes", {}).values():
            for pair in seals._pairs.values():
                assert len(pair.boots) <= SealSettings().boots_max
                assert len(pair.answered) <= SealSettings().answered_max


TestHostile = Hostile.TestCase
TestHostile.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
