"""A program of a client's machine, inside a namespace: looks one name up again and again, as any program does.

Its argument is JSON: `host`, and `every_s` between two lookups. It prints a JSON line for each: when it began and ended
(monotonic), and the address, "" for none. The end of its input ends it. With `who`: asks once, on the wire, and prints
a JSON list of all addresses that were answered within that many seconds: more than one means more than one owner.
"""

import json
import secrets
import select
import socket
import struct
import sys
import time


def look_up(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, 4000, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return ""


def who(host: str, seconds: float) -> list[str]:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in host.split("."))
    number = secrets.randbits(16)  # two packets of the same bytes within a second count once
    question = struct.pack("!6H", number, 0, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)
    found: set[str] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(question, ("224.0.0.251", 5353))
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([sock], [], [], left)[0]:
                _, (address, _) = sock.recvfrom(9000)
                found.add(address)  # whoever holds the name answers it with its own address
    return sorted(found)


def main() -> None:
    wanted = json.loads(sys.argv[1])
    if seconds := wanted.get("who"):
        print(json.dumps(who(wanted["host"], seconds)))
        return
    while not select.select([sys.stdin], [], [], wanted["every_s"])[0]:
        start = time.monotonic()
        address = look_up(wanted["host"])
        print(json.dumps({"start": start, "end": time.monotonic(), "address": address}), flush=True)


main()
