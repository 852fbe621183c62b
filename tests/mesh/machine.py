"""What a test needs of the machine it runs on and not every one has."""

from __future__ import annotations

import socket

import pytest


def _ipv6_loopback() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# Every Mac has it, and CI; a container may be started without.
needs_ipv6 = pytest.mark.skipif(not _ipv6_loopback(), reason="no IPv6 loopback on this machine")
