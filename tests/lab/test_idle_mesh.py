"""What bench/idle_mesh.py measures with: mDNS as it is on the wire, and the most updates of one node."""

from __future__ import annotations

import io

from bench.announcements import mdns_of
from bench.idle_mesh import most_updates


def frame(port: int, payload: bytes, *, options: bytes = b"", protocol: int = 17) -> bytes:
    """Ethernet, IPv4 with `options`, UDP to `port`."""
    size = 20 + len(options)
    ip = bytes([0x40 | size // 4, *[0] * 8, protocol, *[0] * (size - 10)])
    return bytes(14) + ip + b"\x14\xe9" + port.to_bytes(2, "big") + bytes(4) + payload


def test_mdns_is_found_behind_a_header_of_any_length() -> None:
    assert mdns_of(frame(5353, b"said")) == b"said"
    assert mdns_of(frame(5353, b"said", options=bytes(8))) == b"said"


def test_what_is_no_mdns_is_left_out() -> None:
    assert mdns_of(frame(4001, b"a heartbeat")) is None
    assert mdns_of(frame(5353, b"TCP", protocol=6)) is None
    assert mdns_of(b"too short") is None


def test_updates_are_counted_by_node_in_any_ten_seconds() -> None:
    told = io.StringIO("1.0 a\n2.0 a\n50.0 a\n51.0 b\n59.0 a\n61.0 a\n")
    assert most_updates(told, since=0.0) == 2
    assert most_updates(told, since=51.0) == 2
    assert most_updates(told, since=60.0) == 1
    assert most_updates(told, since=70.0) == 0
