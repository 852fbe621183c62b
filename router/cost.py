"""How soon would it answer? Terms in seconds, each with its why; a total is the sum of its terms.

A Lane is one model on one node as one walk of the queue sees it: when its slots come free, what is being read there,
how many streams run. Placing a request changes the lane, so the next request of the walk sees it.
"""

from __future__ import annotations

import heapq

from node.types import ModelStatus, NodeStatus
from router.events import Candidate, Request, Term
from router.settings import RouterSettings
from router.speed import Rates

Seconds = tuple[float, float, float, float, float, float]  # wait, load, prefill, decode, network, headroom


class Lane:
    """`free` is a heap: seconds from now until each slot is free. `load_s` until the model could begin; `steady`
    False while it can begin nothing now (loading, unloading, a pause after `node_busy`)."""

    __slots__ = ("free", "load_s", "load_why", "model", "pause_s", "rates", "reading_s", "status", "steady", "streams")

    def __init__(self, status: NodeStatus, model: ModelStatus, rates: Rates, load_s: float, load_why: str) -> None:
        self.status, self.model, self.rates = status, model, rates
        self.load_s, self.load_why = load_s, load_why
        self.free = [0.0] * max(1, model.slots)
        self.reading_s = self.pause_s = 0.0
        self.streams = 0
        self.steady = True

    @property
    def key(self) -> tuple[str, str]:
        """Ties go to the lower node id, so every node would decide alike."""
        return self.status.node, self.model.name

    @property
    def open(self) -> bool:
        """A request granted now could start now (or start the load that it needs)."""
        return self.steady and self.free[0] <= 0.0

    def occupy(self, seconds: float) -> None:
        """A slot is taken for so long, from when it comes free: by a running request, or by one that will."""
        heapq.heapreplace(self.free, self.free[0] + seconds)

    def wait_s(self) -> float:
        """Seconds until a request could begin here: prompts are read one after another, and it needs a slot."""
        return max(self.reading_s, self.free[0], self.pause_s)


def seconds(lane: Lane, request: Request, output: float, settings: RouterSettings) -> Seconds:
    """The six terms. `output` = expected tokens of the answer."""
    rates = lane.rates
    left = max(0.0, lane.status.headroom_bytes - (lane.model.size_bytes if lane.load_s > 0 else 0))
    slower = 1 + settings.stream_slowdown * lane.streams
    return (
        lane.wait_s(),
        lane.load_s,
        settings.begin_s + request.prompt_tokens / rates.prefill_tps,
        settings.decode_weight * output * slower / rates.decode_tps,
        max(0.0, lane.status.rtt_s),
        settings.headroom_s * settings.headroom_half_bytes / (settings.headroom_half_bytes + left),
    )


def service_s(lane: Lane, request: Request, output: float, settings: RouterSettings) -> tuple[float, float]:
    """Seconds that `request` would read and write there, once it has begun."""
    read = settings.begin_s + request.prompt_tokens / lane.rates.prefill_tps
    return read, output * (1 + settings.stream_slowdown * lane.streams) / lane.rates.decode_tps


def explain(lane: Lane, request: Request, output: float, settings: RouterSettings) -> Candidate:
    """The same seconds, with a why each."""
    parts = seconds(lane, request, output, settings)
    rates, free = lane.rates, sum(1 for s in lane.free if s <= 0.0)
    source = f"learned from {rates.learned} samples" if rates.learned else "expected of this hardware"
    whys = (
        _why_wait(lane, free),
        lane.load_why,
        f"{request.prompt_tokens} tokens at {rates.prefill_tps:.0f}/s ({source}) and {settings.begin_s:g} s to begin",
        f"{settings.decode_weight:g} x {output:.0f} tokens at {rates.decode_tps:.1f}/s, beside {lane.streams} streams",
        f"{lane.status.rtt_s * 1000:.1f} ms there and back",
        f"{lane.status.headroom_bytes / 1e9:.1f} GB of memory left there",
    )
    names = ("wait", "load", "prefill", "decode", "network", "headroom")
    terms = tuple(Term(n, s, w) for n, s, w in zip(names, parts, whys, strict=True))
    return Candidate(lane.status.node, lane.model.name, sum(parts), terms)


def _why_wait(lane: Lane, free: int) -> str:
    slots = f"{free} of {len(lane.free)} slots free"
    if lane.pause_s > 0 and lane.pause_s >= max(lane.reading_s, lane.free[0]):
        return "it said it was full a moment ago"
    if free == 0:
        return f"no slot free for another {lane.free[0]:.1f} s"
    return f"{slots}, {lane.reading_s:.1f} s of prompts to read first" if lane.reading_s > 0 else slots
