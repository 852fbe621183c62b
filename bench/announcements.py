"""Hears every mDNS announcement of a network and prints a line, `SECONDS NAME`, for each TXT record that differs from
the last one of its name. A program of its own: it is to run in a namespace of the lab."""

from __future__ import annotations

import socket
import time

from zeroconf import DNSIncoming, DNSText  # type: ignore[attr-defined]  # there, but not in __all__

_ETH_P_IP = 0x0800
_HEADERS = 14 + 8  # Ethernet and UDP; between them IPv4 says itself how long it is
_UDP, _MDNS = 17, 5353


def mdns_of(frame: bytes) -> bytes | None:
    """The DNS packet in an Ethernet frame; None when there is none."""
    if len(frame) < _HEADERS + 20 or frame[23] != _UDP:
        return None
    udp = 14 + 4 * (frame[14] & 15)
    return frame[udp + 8 :] if int.from_bytes(frame[udp + 2 : udp + 4], "big") == _MDNS else None


def main() -> None:
    """Until killed."""
    last: dict[str, bytes] = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP)) as wire:
        wire.bind(("eth0", _ETH_P_IP))
        while True:
            packet = mdns_of(wire.recv(65535))
            for record in DNSIncoming(packet).answers() if packet else ():
                if isinstance(record, DNSText) and last.get(record.name) != record.text:
                    last[record.name] = record.text
                    print(f"{time.monotonic():.3f} {record.name}", flush=True)


if __name__ == "__main__":
    main()
