"""A port of loopback for a daemon of a bench or a test."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

_given: set[int] = set()


def free_port() -> int:
    """Free for TCP and UDP, below the ports that outgoing connections take, and not given to this process before."""
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
