"""mesh/flood.py: what is read of a flood, and what of everybody else meanwhile."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.flood import FloodGate
from mesh.settings import FloodSettings

S = FloodSettings()


def test_a_mesh_of_64_nodes_that_all_start_at_once_is_read_whole() -> None:
    gate = FloodGate()
    for packet in range(4):  # an announcement three times, and an answer, of 600 bytes each
        for node in range(64):
            assert gate.admits(f"10.0.0.{node}", 600, packet * 0.25)
    for second in range(2, 600):  # and an update each 10 s, each said three times
        for node in range(64):
            if (second + node) % 10 == 0:
                assert all(gate.admits(f"10.0.0.{node}", 600, float(second)) for _ in range(3))
    assert gate.refused_lately(600.0) == (0, "")


def test_one_that_floods_is_read_to_its_bound_and_the_others_whole() -> None:
    gate, read = FloodGate(), 0
    for i in range(10_000):
        now = i / 1000
        read += gate.admits("10.0.0.66", 100, now)
        if i % 500 == 0:
            assert gate.admits("10.0.0.2", 400, now)
    assert read * 128 <= S.source_burst_bytes + 10 * S.source_bytes_per_s + 128
    refused, most = gate.refused_lately(10.0)
    assert (refused, most) == (10_000 - read, "10.0.0.66")
    assert gate.refused_lately(10.0 + S.note_s + 1.0) == (0, "")
    assert gate.refused == refused


@given(
    st.lists(
        st.tuples(st.integers(0, 2000), st.integers(0, 9000), st.floats(0.0, 0.05)), min_size=1, max_size=300
    )
)  # fmt: skip
def test_no_crowd_of_sources_gets_more_than_the_bound(sent: list[tuple[int, int, float]]) -> None:
    gate, now, read = FloodGate(FloodSettings(sources_max=8)), 0.0, 0
    for source, size, pause_s in sent:
        now += pause_s
        if gate.admits(f"s{source}", size, now):
            read += size
        assert len(gate._sources) <= 8
        assert len(gate._refused) <= S.note_s + 2
    assert read <= S.burst_bytes + now * S.bytes_per_s + 1e-6
