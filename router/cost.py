"""How soon would it answer, and what does that do to others? Terms in seconds, each with its why; a total is their sum.

A Lane is one model on one node as one walk of the queue sees it, a Spot the node itself: what is being read there, how
many streams run, what leaves its memory. Placing a request changes both, so the next request of the walk sees it.
"""

from __future__ import annotations

import math
from bisect import insort
from typing import NamedTuple

from node.types import ModelStatus, NodeStatus, Pressure
from router.events import Request
from router.prefix import Mirror, start
from router.settings import RouterSettings
from router.speed import Pace

NAMES = ("wait", "load", "prefill", "decode", "network", "hurt", "guard", "headroom", "again")


class Spot:
    """One node in one walk. `busy_s` until its prompts have been read; `hot` is the model that the walk has put there,
    `leaving` those that go for it; `ahead` the blocks of prompts that the walk has placed there; `quick`: prompts are
    read there side by side."""

    __slots__ = ("ahead", "busy_s", "hot", "leaving", "quick", "rest_s", "streams")

    def __init__(self, busy_s: float = 0.0, streams: int = 0, *, quick: bool = False) -> None:
        self.busy_s, self.streams, self.quick = busy_s, streams, quick
        self.hot: str | None = None
        self.leaving: tuple[str, ...] = ()
        self.rest_s = 0.0  # what was placed last will write so long
        self.ahead: set[int] = set()


class Guard(NamedTuple):
    """What a node's own models lose while another one takes their place: `weight` seconds for each second squared of
    half their absence, which ends `back_s` after the request. `gone`: they are out already. `soon`: how likely they are
    back while a conversation lasts. `why` in words."""

    weight: float = 0.0
    back_s: float = 0.0
    gone: bool = False
    why: str = "no other model has to leave"
    soon: float = 0.0

    def seconds(self, held_s: float) -> float:
        """Expected delay of their requests when they are away for `held_s`, and come back then."""
        if not self.weight:
            return 0.0
        square = held_s * (held_s / 2 + self.back_s) if self.gone else (held_s + self.back_s) ** 2 / 2
        return self.weight * square


NO_GUARD = Guard()


class Lane:
    """`load_s` until the model could begin, `drain_s` of it until those that leave for it have ended (`evicts`);
    `steady` False while it can begin nothing now (loading, unloading, a pause after `node_busy`)."""

    __slots__ = (
        "back_s",
        "coming",
        "drain_s",
        "evicts",
        "guard",
        "lefts",
        "load_s",
        "load_why",
        "mirror",
        "model",
        "pace",
        "pause_s",
        "slots",
        "spot",
        "status",
        "steady",
        "taken",
        "whole_s",
    )

    def __init__(self, status: NodeStatus, model: ModelStatus, pace: Pace, mirror: Mirror, spot: Spot) -> None:
        self.status, self.model, self.pace, self.mirror, self.spot = status, model, pace, mirror, spot
        self.load_s = self.drain_s = self.back_s = self.pause_s = 0.0
        self.whole_s = 0.0  # of a load from absent
        self.load_why = "loaded"
        self.coming = False  # it loads already, whatever else is waited for
        self.evicts: tuple[str, ...] = ()
        self.guard = NO_GUARD
        self.slots = max(1, model.slots)
        self.taken = 0
        self.lefts: list[float] = []  # of those that hold a slot: seconds until it is free, sorted
        self.steady = True

    @property
    def key(self) -> tuple[str, str]:
        """Ties go to the lower node id, so every node would decide alike."""
        return self.status.node, self.model.name

    @property
    def open(self) -> bool:
        """A request granted now could start now (or start the load that it needs)."""
        return self.steady and self.taken < self.slots and self.spot.busy_s <= 0.0 and self.drain_s <= 0.0

    def slot_s(self) -> float:
        """Seconds until a slot is free."""
        return 0.0 if self.taken < self.slots else self.lefts[self.taken - self.slots]

    def wait_s(self) -> float:
        """Seconds until a request could begin here: prompts are read one after another, and it needs a slot."""
        return max(self.spot.busy_s, self.slot_s(), self.pause_s)

    def hold(self, left_s: float) -> None:
        """A slot is taken for so long from now, by one that runs or will run."""
        self.taken += 1
        insort(self.lefts, left_s)

    def loads_s(self) -> float:
        """Seconds of loading before a request could be read, as the walk has left this node."""
        spot = self.spot
        if spot.hot is None:
            return self.load_s
        if spot.hot == self.model.name:
            return 0.0  # Whoever was placed before pays for it.
        return self.whole_s + spot.rest_s if self.model.name in spot.leaving or self.load_s > 0 else self.load_s

    def cached(self, request: Request) -> int:
        """Prompt tokens that need not be read by then; always one less than the prompt at most."""
        blocks = request.blocks
        if not blocks:
            return 0
        found = self.mirror.match(blocks)
        if self.spot.ahead:
            found = max(found, start(blocks, self.spot.ahead))
        return max(0, min(found * request.block_tokens, request.prompt_tokens - 1))


class Price(NamedTuple):
    """What one request would cost in one lane, and what that rests on (for `explain`)."""

    lane: Lane
    total: float
    terms: tuple[float, float, float, float, float, float, float, float, float]  # as NAMES
    cached: int
    streams: int
    read_s: float
    write_s: float
    taken: int
    output: float
    token_s: float  # of reading, on average


class Held(NamedTuple):
    """What kept a request from starting when it was first looked at: `best` would have been its place, `free` the
    cheapest that it could have begun at (None: none was), `ahead` that many waited before it. Without `best`, `why`."""

    ahead: int
    best: Price | None = None
    free: Price | None = None
    why: str = ""


def price(
    lane: Lane,
    request: Request,
    output: float,
    settings: RouterSettings,
    *,
    cached: int | None = None,
    again_s: float = 0.0,
) -> Price:
    """`output` = expected tokens of the answer; `cached` prompt tokens, if that is known already; `again_s` that the
    conversation loses if this model leaves memory before its next turn."""
    spot, pace = lane.spot, lane.pace
    streams, step_s, slower = spot.streams, pace.step_s, settings.stream_slowdown
    cached = lane.cached(request) if cached is None else cached
    tokens = request.prompt_tokens - cached
    token_s = pace.token_s + pace.place_s * (cached + tokens / 2)
    read_s = settings.begin_s + tokens * token_s
    hurt = 0.0
    if streams > 0:
        read_s += math.ceil(tokens / settings.chunk_tokens) * step_s * (1 + slower * (streams - 1))
        hurt = settings.hurt_weight * streams * (read_s + slower * step_s * output)
    write_s = output * step_s * (1 + slower * streams)
    wait_s = lane.wait_s()
    load_s = lane.load_s if spot.hot is None else lane.loads_s()
    if lane.coming:
        load_s = max(0.0, load_s - wait_s)
    if lane.evicts:
        hurt += settings.hurt_weight * lane.back_s
    guard = lane.guard.seconds(load_s + read_s + write_s) if lane.guard.weight else 0.0
    network = lane.status.rtt_s if lane.status.rtt_s > 0 else 0.0
    decode = settings.decode_weight * write_s
    headroom = headroom_s(lane, settings) if load_s > 0.0 else tie_s(lane.status, settings)
    again = again_s * lane.guard.soon
    terms = (wait_s, load_s, read_s, decode, network, hurt, guard, headroom, again)
    total = wait_s + load_s + read_s + decode + network + hurt + guard + headroom + again
    return Price(lane, total, terms, cached, streams, read_s, write_s, lane.taken, output, token_s)


def tie_s(status: NodeStatus, settings: RouterSettings) -> float:
    """Of two nodes that cost the same, the one with more memory left."""
    half = settings.headroom_half_bytes
    return settings.headroom_s * half / (half + max(0, status.headroom_bytes))


def headroom_s(lane: Lane, settings: RouterSettings) -> float:
    """A load that leaves little memory costs part of the load that somebody needs next."""
    status, size = lane.status, lane.model.size_bytes or settings.size_unknown_bytes
    left = 0 if status.pressure is not Pressure.NORMAL else max(0, status.headroom_bytes - size)
    return settings.headroom_weight * lane.whole_s * size / (size + left)


def place(found: Price) -> None:
    """The rest of the walk sees this request there."""
    lane, spot = found.lane, found.lane.spot
    start_s = max(found.terms[0], 0.0) + found.terms[1]
    if not spot.quick:
        spot.busy_s = start_s + found.read_s
    spot.rest_s = found.write_s
    if lane.evicts:
        spot.hot, spot.leaving = lane.model.name, (*spot.leaving, *lane.evicts)
    elif spot.hot is not None and spot.hot != lane.model.name:
        spot.leaving = (*(m for m in spot.leaving if m != lane.model.name), spot.hot)
        spot.hot = lane.model.name
    lane.hold(start_s + found.read_s + found.write_s)
