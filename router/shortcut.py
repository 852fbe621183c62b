"""The same answer as a walk of the queue, sooner: nobody waits, and every node that could serve it is idle.

Then nothing is waited for, loaded or disturbed, and of a cost's terms few are left. They are added up in the order of
`cost.price`, so that even ties fall alike.
"""

from __future__ import annotations

from typing import NamedTuple

from router.cost import Lane, Price, Spot, price
from router.events import Request
from router.fleet import Fleet, Options, Ready
from router.settings import RouterSettings
from router.speed import Pace
from router.walk import Choice


class Found(NamedTuple):
    """`best` of `ready`, and what was seen of each of them then: (prompt tokens cached, pace)."""

    best: int
    ready: tuple[Ready, ...]
    seen: list[tuple[int, Pace]]
    output: float

    def price(self, number: int, request: Request, settings: RouterSettings, fleet: Fleet) -> Price:
        """What `ready[number]` would cost."""
        here, (cached, pace) = self.ready[number], self.seen[number]
        lane = Lane(here.status, here.model, pace, fleet.mirrors.of(here.status.node, here.model), Spot())
        return price(lane, request, self.output, settings, cached)

    def choice(self, best: Price, request: Request, settings: RouterSettings, fleet: Fleet) -> Choice:
        """The same as a walk would have made it."""
        numbers = range(len(self.ready))
        return Choice(best, [best if n == self.best else self.price(n, request, settings, fleet) for n in numbers])


def quickest(fleet: Fleet, options: Options, request: Request, settings: RouterSettings, now: float) -> Found | None:
    """The cheapest, if all are idle; None: walk."""
    ready = options.ready
    if ready is None:
        ready = fleet.ready(options, now)
    if not ready:
        return None
    name = ready[0].key[1]
    output, blocks, prompt = fleet.output(name, request), request.blocks, request.prompt_tokens
    begin_s, weight = settings.begin_s, settings.decode_weight
    seen: list[tuple[int, Pace]] = []
    best, least = -1, 0.0
    mirror_of = fleet.mirrors.get
    for key, status, model, learner, tally, network_s, tie_s in ready:
        if tally.flights or key[1] != name:
            return None
        if learner.stale_at <= now:
            fleet.speeds.learner(status, model, now)
        pace = learner.pace
        cached = 0
        if blocks and (mirror := mirror_of(key)) is not None:
            cached = max(0, min(mirror.match(blocks) * request.block_tokens, prompt - 1))
        tokens = prompt - cached
        read_s = begin_s + tokens * (pace.token_s + pace.place_s * (cached + tokens / 2))
        total = read_s + weight * (output * pace.step_s) + network_s
        total += tie_s
        seen.append((cached, pace))
        if best < 0 or total < least:  # In the order of node ids: ties go to the lower one.
            best, least = len(seen) - 1, total
    return Found(best, ready, seen, output)
