"""Run inside the hub where the kernel cannot shape: `relay.py DEVICE DEVICE JSON` passes frames between the two, each
after `delay_s` + U(0, `jitter_s`) or, with probability `loss`, never.

Prints a line when it is ready. What it sends more than LATE_S after its time it notes in the file `late`: when
(monotonic), and by how much: on a busy machine it may be late, and the trial is void then.
"""

import heapq
import json
import os
import random
import select
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

LATE_S = 0.005
FRAME_BYTES_MAX, FRAMES_AT_ONCE = 65535, 64
ETH_P_ALL, SO_TIMESTAMPNS = 3, 35
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23  # not our own frames again


def opened(device: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.bind((device, 0))
    sock.setblocking(False)
    return sock


def came(told: list[tuple[int, int, bytes]], ahead: float) -> float:
    """When (monotonic) the frame came, not when we got round to it."""
    for _, kind, data in told:
        if kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", data[:16])
            return float(seconds + nanoseconds / 1e9 - ahead)
    return time.monotonic()


def main() -> None:
    one, two, given = opened(sys.argv[1]), opened(sys.argv[2]), json.loads(sys.argv[3])
    delay_s, jitter_s, loss = given["delay_s"], given["jitter_s"], given["loss"]
    other, ahead, count = {one: two, two: one}, time.time() - time.monotonic(), 0
    heap: list[tuple[float, int, socket.socket, bytes]] = []
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)  # it plays the air, which no busy Mac slows down
    print("ready", flush=True)
    with Path(given["late"]).open("a", buffering=1) as noted:
        while True:
            wait_s = max(0.0, heap[0][0] - time.monotonic()) if heap else None
            for sock in select.select([one, two], [], [], wait_s)[0]:
                for _ in range(FRAMES_AT_ONCE):
                    try:
                        frame, told, _, _ = sock.recvmsg(FRAME_BYTES_MAX, 64)
                    except OSError:
                        break
                    if random.random() >= loss:
                        count += 1
                        due = came(told, ahead) + delay_s + jitter_s * random.random()
                        heapq.heappush(heap, (due, count, other[sock], frame))
            now, worst_s = time.monotonic(), 0.0
            while heap and heap[0][0] <= now:
                due, _, out, frame = heapq.heappop(heap)
                worst_s = max(worst_s, now - due)
                with suppress(OSError):
                    out.send(frame)
            if worst_s > LATE_S:
                noted.write(f"{now:.3f} {worst_s:.3f}\n")


main()
