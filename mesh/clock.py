"""The clock by which nodes judge each other: it runs while the machine sleeps.

The event loop's own clock need not: on macOS `time.monotonic()` stands still in sleep (cpython issue 86273), and a node
that slept through a night would believe that its peers spoke a moment ago.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def sleepless(platform: str) -> Callable[[], float]:
    """Seconds since some moment, never going back: CLOCK_BOOTTIME on Linux, CLOCK_MONOTONIC_RAW on macOS (both run in
    sleep), else time.monotonic, which may not."""
    name = {"linux": "CLOCK_BOOTTIME", "darwin": "CLOCK_MONOTONIC_RAW"}.get(platform, "")
    number = getattr(time, name, None)
    return time.monotonic if number is None else lambda: time.clock_gettime(number)


_read = sleepless(sys.platform)


def now() -> float:
    """Seconds. Only differences mean something, and a timer is set by one: `call_later(deadline - now())`."""
    return _read()
