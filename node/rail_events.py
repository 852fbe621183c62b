"""What the rail is told and what it says: its events and effects."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

FOREVER = float("inf")

# Events


class Terms(Struct, frozen=True):
    """What holds for `model` from now on: `keep_s` of disuse end it (FOREVER: nothing does), `load_s` to bring back."""

    model: str
    pinned: bool = False
    keep_s: float = FOREVER
    load_s: float = 1.0


class Reserve(Struct, frozen=True):
    """`model` wants to load and will take `size_bytes`; 0 (a server that is not ours) neither waits nor takes room.
    `patient`: it waits in line for room, and room is made for it; else it loads only if there is room now."""

    model: str
    size_bytes: int
    patient: bool = True


class Settled(Struct, frozen=True):
    """The load of `model` is over, well or badly: the next may begin."""

    model: str


class Slow(Struct, frozen=True):
    """The load of `model` takes far longer than it should: the next may begin beside it."""

    model: str


class Release(Struct, frozen=True):
    """The process of `model` is gone, or its load was given up before it began."""

    model: str


class Began(Struct, frozen=True):
    """It answers one more request, `in_flight` in all. `keep_s`: that one's keep_alive, until the model is unloaded."""

    model: str
    in_flight: int
    keep_s: float | None = None


class Ended(Struct, frozen=True):
    """It has ended a request; `in_flight` are left."""

    model: str
    in_flight: int


class Measured(Struct, frozen=True):
    """It takes `size_bytes` in truth."""

    model: str
    size_bytes: int


class Budget(Struct, frozen=True):
    budget_bytes: int


class Gap(Struct, frozen=True):
    """`request-gap` is another one now."""

    request_gap_s: float


class Forget(Struct, frozen=True):
    """`model` is no model of this node any more; its process is gone."""

    model: str


class Tick(Struct, frozen=True):
    pass


RailEvent: TypeAlias = (
    Terms | Reserve | Settled | Slow | Release | Began | Ended | Measured | Budget | Gap | Forget | Tick
)

# Effects


class Load(Struct, frozen=True):
    """Its bytes are reserved and it is its turn."""

    model: str


class Full(Struct, frozen=True):
    """It does not fit and waits for nothing; `why` says needed and free bytes and what is in the way."""

    model: str
    why: str


class Held(Struct, frozen=True):
    """It waits in line for room; `why` says for what."""

    model: str
    why: str


class Evict(Struct, frozen=True):
    """Unload it. It is ready, answers nothing, and must start no request from now on. `cause`: "evicted" or "idle"."""

    model: str
    why: str
    cause: str


RailEffect: TypeAlias = Load | Full | Held | Evict
