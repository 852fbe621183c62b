"""Every bound of this package, in one place. mesh/config.py fills some from config.yaml."""

from __future__ import annotations

from msgspec import Struct


class EdgeSettings(Struct, frozen=True, kw_only=True):
    """Bounds of one edge. Times in seconds, sizes in bytes."""

    request_timeout_s: float = 600.0  # `request-timeout`: a whole request; x-mesh-deadline-ms lowers it
    body_limit_bytes: int = 32 * 2**20
    bodies_limit_bytes: int = 512 * 2**20  # of all requests that are open
    body_timeout_s: float = 120.0  # for the client to send its body
    answer_limit_bytes: int = 32 * 2**20  # a non-streamed answer is put together in memory
    open_limit: int = 4096  # requests that this edge carries at once

    bytes_per_token: float = 4.0  # estimate of a prompt's length; the node's report corrects it afterwards
    names_listed: int = 50  # of models, in the message that says what exists

    failures_limit: int = 6  # attempts of one request that may fail
    busy_limit: int = 30  # grants of one request that may meet a full node
    rounds: int = 3  # times that every candidate may have failed
    round_pause_s: float = 1.0  # before the next round: a worker restarts, a node comes back
    busy_pause_s: float = 0.1  # when every candidate was full; doubles each time
    busy_pause_cap_s: float = 2.0
    retry_after_s: float = 2.0  # told to a client when nothing better is known

    head_hold_s: float = 10.0  # a stream's head waits this long for the first byte
    comfort_every_s: float = 5.0  # after that: comments, so that the client sees a sign of life

    connect_floor_s: float = 0.25  # to one address of a peer: four round trips, but at least this,
    connect_cap_s: float = 1.0  # at most this
    silence_s: float = 5.0  # the serving node says `: alive` each second
    upload_floor_bytes_per_s: float = 1e6  # a body still on its way to the node is no silence
    pool_limit: int = 0  # connections to peers: as many as requests are open
    refusal_limit_bytes: int = 64 * 2**10  # of a node's refusal, and of one block of its stream beside the answer

    def __post_init__(self) -> None:
        assert self.failures_limit >= 1
        assert self.busy_limit >= 1
        assert self.rounds >= 1
        assert 0 < self.busy_pause_s <= self.busy_pause_cap_s
        assert 0 < self.connect_floor_s <= self.connect_cap_s
        assert self.silence_s > 1.0
