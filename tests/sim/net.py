"""What a link between two simulated nodes does to what is sent over it. Seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Net:
    """One direction of one link. `reorder` of the datagrams take `reorder_s` longer than the rest. Each
    `deaf_every_s`, on average, a node's radio is off its channel for one of `deaf_s` (0: never)."""

    delay_s: float = 0.0003
    jitter_s: float = 0.0005
    loss: float = 0.0
    dup: float = 0.0
    reorder: float = 0.0
    reorder_s: float = 0.2
    deaf_every_s: float = 0.0
    deaf_s: tuple[float, float] = (0.08, 0.4)


WIRED = Net()
WIFI = Net(delay_s=0.001, jitter_s=0.015, loss=0.01)
BAD_WIFI = Net(delay_s=0.002, jitter_s=0.1, loss=0.05)
DEAF_RADIOS = Net(delay_s=0.002, jitter_s=0.015, loss=0.02, deaf_every_s=20.0)
FAR_LINE = Net(delay_s=0.04, jitter_s=0.005, loss=0.002)  # between two sites
