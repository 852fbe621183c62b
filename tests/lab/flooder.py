"""Says of thousands of nodes that are not there, over mDNS: `flooder.py ADDRESS RECORDS PER_SECOND`, from that address.

Half of it are whole announcements (PTR, SRV, TXT, A of a node that does not exist, in the default mesh), half are
addresses of made-up names. Prints how many records and seconds it was."""

import secrets
import socket
import struct
import sys
import time

from mesh.advert import Advert
from node.types import NodeId

GROUP = ("224.0.0.251", 5353)
SERVICE = ("_mlx-stack", "_tcp", "local")
A, PTR, TXT, SRV, IN = 1, 12, 16, 33, 1


def name(*labels: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"


def record(owner: bytes, kind: int, data: bytes) -> bytes:
    return owner + struct.pack("!HHIH", kind, IN, 4500, len(data)) + data


def packet(*records: bytes) -> bytes:
    return struct.pack("!6H", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


def node(number: int) -> bytes:
    """The announcement of a node at an address where nothing is."""
    id_ = secrets.token_hex(8)
    advert = Advert(
        id=NodeId(id_), boot="b", name=f"ghost{number}", mesh="default", priority=100, port=4000, peer_port=4001
    )  # fmt: skip
    txt = b"".join(bytes([len(s)]) + s for s in (f"{k}={v}".encode() for k, v in advert.txt().items()))
    instance, host = name(id_, *SERVICE), name(f"ghost-{id_}", "local")
    return packet(
        record(name(*SERVICE), PTR, instance),
        record(instance, SRV, struct.pack("!HHH", 0, 0, 4000) + host),
        record(instance, TXT, txt),
        record(host, A, bytes([10, 77, 0, 128 + number % 100])),
    )


def main() -> None:
    source, wanted, per_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
    sock.bind((source, 0))
    start, sent, number = time.monotonic(), 0, 0
    while sent < wanted:
        number += 1
        if number % 5 == 0:
            data, records = node(number), 4
        else:
            data, records = packet(record(name(secrets.token_hex(12), "local"), A, secrets.token_bytes(4))), 1
        sock.sendto(data, GROUP)
        sent += records
        time.sleep(max(0.0, start + sent / per_s - time.monotonic()))
    print(sent, round(time.monotonic() - start, 2), flush=True)


main()
