"""Who has to leave memory for whom, and what do they lose by it?

By bytes, as nodes report them; and by what is seen: a model that left a node when another came did not fit beside it,
whatever the bytes say. A node's own models are guarded by how often they are asked for.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable

from node.types import ModelState, ModelStatus, NodeId, NodeStatus
from router.cost import Guard, Lane
from router.settings import RouterSettings
from router.speed import Speeds

CAN_ANSWER = (ModelState.READY, ModelState.BUSY)
IN_MEMORY = (*CAN_ANSWER, ModelState.LOADING, ModelState.DRAINING)


class Demand:
    """How often each name is asked for: the mean gap between requests, and the prompt tokens they brought."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._names: OrderedDict[str, list[float]] = OrderedDict()  # -> gap, last time, tokens

    def note(self, name: str, tokens: int, now: float) -> None:
        known = self._names.get(name)
        if known is None:
            self._names[name] = [0.0, now, float(tokens)]
            if len(self._names) > self._settings.names_limit:
                self._names.popitem(last=False)
            return
        part, gap = self._settings.rate_forget, max(now - known[1], 1e-3)
        known[0] = known[0] + part * (gap - known[0]) if known[0] else gap
        known[1] = now
        known[2] += part * (tokens - known[2])
        self._names.move_to_end(name)

    def rate(self, names: Iterable[str], now: float) -> float:
        """Requests per second. A name that is asked for no more loses its claim with time."""
        known = (self._names[n] for n in names if n in self._names)
        return sum(1 / max(gap, now - last) for gap, last, _ in known if gap)

    def tokens(self, names: Iterable[str]) -> float:
        """Prompt tokens of a request, on average."""
        known = [self._names[n][2] for n in names if n in self._names]
        return sum(known) / len(known) if known else 0.0


class Swaps:
    """What is known of models that cannot be in one memory together."""

    def __init__(self, settings: RouterSettings, speeds: Speeds, demand: Demand) -> None:
        self._settings, self._speeds, self._demand = settings, speeds, demand
        self._clashes: dict[NodeId, set[frozenset[str]]] = {}

    def seen(self, old: NodeStatus | None, new: NodeStatus) -> None:
        """A node reports anew."""
        there = {m.name for m in new.models if m.state in CAN_ANSWER}
        clashes = self._clashes.get(new.node, set())
        clashes -= {pair for pair in clashes if pair <= there}
        before = {m.name: m.state for m in old.models} if old is not None else {}
        came = [m.name for m in new.models if m.state in IN_MEMORY and before.get(m.name) is ModelState.ABSENT]
        gone = [m.name for m in new.models if m.state is ModelState.ABSENT and before.get(m.name) in IN_MEMORY]
        clashes |= {frozenset((a, b)) for a in came for b in gone}
        if clashes:
            self._clashes[new.node] = clashes

    def drop(self, node: NodeId) -> None:
        self._clashes.pop(node, None)

    def evicts(self, status: NodeStatus, model: ModelStatus) -> tuple[str, ...]:
        """Models in memory there that leave for `model`: those it was seen to push out, and then whoever is cheapest to
        bring back, until it fits."""
        clashes = self._clashes.get(status.node, ())
        others = [m for m in status.models if m.name != model.name and m.state in IN_MEMORY]
        gone = [m for m in others if frozenset((m.name, model.name)) in clashes]
        short = model.size_bytes - status.headroom_bytes - sum(m.size_bytes for m in gone)
        for other in sorted(others, key=lambda m: (self._speeds.load_s(status.node, m), m.name)):
            if short > 0 and other not in gone:
                gone.append(other)
                short -= other.size_bytes
        return tuple(sorted(m.name for m in gone))

    def guard(self, lane: Lane, homes: dict[str, int], now: float) -> Guard:
        """For a lane whose model takes, or has taken, the place of the node's own ones. `homes`: nodes that hold each
        name as their own."""
        status, model = lane.status, lane.model
        if lane.evicts:
            out = [m for m in status.models if m.own and m.name in lane.evicts]
        elif model.own or model.state not in IN_MEMORY:
            return lane.guard
        else:  # A guest that is in already: whoever does not fit beside it waits for it to go.
            clashes = self._clashes.get(status.node, ())
            out = [
                m
                for m in status.models
                if m.own
                and m.state is ModelState.ABSENT
                and (m.size_bytes > status.headroom_bytes or frozenset((m.name, model.name)) in clashes)
            ]
        weight, back_s, rates, names = 0.0, 0.0, 0.0, []
        for own in out:
            called = (own.name, *own.aliases)
            rate = self._demand.rate(called, now)
            if rate > 0:
                weight += (
                    self._settings.guard_weight * self._busier(lane, own, rate, homes, now) * rate / homes[own.name]
                )
                rates += rate / homes[own.name]
                back_s = max(back_s, self._speeds.load_s(status.node, own))
                names.append(f"{own.name!r}, asked for every {1 / rate:.0f} s,")
        if not names:
            return lane.guard
        has = "has" if not lane.evicts else "would have"
        why = f"{' and '.join(names)} {has} to wait until it is back in memory, which takes {back_s:.1f} s"
        return Guard(weight, back_s, not lane.evicts, why, 1 - math.exp(-rates * self._settings.talk_s))

    def _busier(self, lane: Lane, own: ModelStatus, rate: float, homes: dict[str, int], now: float) -> float:
        """A second lost delays all who come before the queue is empty again: 1 / (1 - load) of them."""
        pace = self._speeds.pace(lane.status, own, now)
        called = (own.name, *own.aliases)
        served_s = pace.token_s * self._demand.tokens(called) + 0.25 * self._speeds.output(own.name, 0) * pace.step_s
        load = min(1.0, rate * served_s / homes[own.name])
        return min(self._settings.guard_cap, 1 / max(1e-9, 1 - load))
