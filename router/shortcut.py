"""The same answer as a walk of the queue, sooner: nobody waits, and wherever it could be served the model is in memory.

Then nothing is loaded, and of a cost's terms few are left. They are added up in the order of `cost.price`, so that even
ties fall alike. What an explanation needs besides is kept, and put together when somebody reads it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from router.cost import NO_GUARD
from router.events import Request
from router.fleet import Fleet, Options, Ready
from router.reasons import Priced
from router.settings import RouterSettings
from router.speed import Pace


class Seen(NamedTuple):
    """One candidate as it was: prompt tokens cached, its pace, answers beside it, seconds of prompts that are read
    first, slots taken, and of those (if all are) the seconds until each is free, in order."""

    cached: int
    pace: Pace
    streams: int = 0
    busy_s: float = 0.0
    taken: int = 0
    lefts: tuple[float, ...] = ()

    @property
    def open(self) -> bool:
        """It can begin there now."""
        return self.busy_s <= 0.0 and not self.lefts

    def slowed(self, slots: int, tokens: int, output: float, settings: RouterSettings) -> tuple[float, float, float]:
        """What others there cost, in seconds: waiting for them, reading the longer, and what they lose."""
        wait_s = max(self.busy_s, self.lefts[self.taken - slots]) if self.lefts else self.busy_s
        if self.streams <= 0:
            return wait_s, 0.0, 0.0
        slower, step_s = settings.stream_slowdown, self.pace.step_s
        longer_s = math.ceil(tokens / settings.chunk_tokens) * step_s * (1 + slower * (self.streams - 1))
        read_s = _read_s(self.pace, tokens, self.cached, settings) + longer_s
        return wait_s, longer_s, settings.hurt_weight * self.streams * (read_s + slower * step_s * output)


class Found(NamedTuple):
    """`best` of `ready`, in which it can begin now, what it will read and write there, and what was seen of each."""

    best: int
    read_s: float
    write_s: float
    ready: tuple[Ready, ...]
    seen: list[tuple[int, Pace] | Seen]  # a Seen, or the start of one where nothing runs
    output: float

    def priced(self, request: Request, settings: RouterSettings) -> tuple[Priced, ...]:
        """What each of `ready` would have cost: the same as a walk would have found."""
        return tuple(self._priced(*each, request, settings) for each in zip(self.ready, self.seen, strict=True))

    def _priced(self, here: Ready, said: tuple[int, Pace] | Seen, request: Request, settings: RouterSettings) -> Priced:
        seen = said if isinstance(said, Seen) else Seen(*said)
        cached, pace, status = seen.cached, seen.pace, here.status
        tokens = request.prompt_tokens - cached
        token_s = pace.token_s + pace.place_s * (cached + tokens / 2)
        wait_s, longer_s, hurt = seen.slowed(here.slots, tokens, self.output, settings)
        read_s = settings.begin_s + tokens * token_s + longer_s
        write_s = self.output * pace.step_s * (1 + settings.stream_slowdown * seen.streams)
        decode = settings.decode_weight * write_s
        total = wait_s + read_s + decode + here.network_s + hurt + here.tie_s
        return Priced(
            node=status.node,
            model=here.model.name,
            total=total,
            terms=(wait_s, 0.0, read_s, decode, here.network_s, hurt, 0.0, here.tie_s, 0.0),
            cached=cached,
            streams=seen.streams,
            read_s=read_s,
            write_s=write_s,
            output=self.output,
            token_s=token_s,
            taken=seen.taken,
            slots=here.slots,
            learned=pace.learned,
            guard_why=NO_GUARD.why,
            rtt_s=status.rtt_s,
            headroom_bytes=status.headroom_bytes,
            pressure=status.pressure.value,
            size_bytes=here.model.size_bytes,
        )


def quickest(fleet: Fleet, options: Options, request: Request, settings: RouterSettings, now: float) -> Found | None:
    """The cheapest, if it can begin now; None: walk."""
    ready = options.ready if options.ready is not None else fleet.ready(options, now)
    if not ready:
        return None
    output, blocks, prompt = fleet.output(ready[0].key[1], request), request.blocks, request.prompt_tokens
    begin_s, weight, slower = settings.begin_s, settings.decode_weight, settings.stream_slowdown
    seen: list[tuple[int, Pace] | Seen] = []
    best, least, best_read_s, best_write_s = -1, 0.0, 0.0, 0.0
    for here in ready:
        key, status, model, learner, tally, slots, _, network_s, tie_s = here
        if learner.stale_at <= now:
            fleet.speeds.learner(status, model, now)
        pace = learner.pace
        cached = fleet.mirrors.cached(key, request) if blocks else 0
        tokens = prompt - cached
        read_s = begin_s + tokens * (pace.token_s + pace.place_s * (cached + tokens / 2))
        write_s = output * pace.step_s
        if not tally.count:
            seen.append((cached, pace))
            total = read_s + weight * write_s + network_s + tie_s
        else:
            there = _there(here, cached, pace, now)
            if there is None:
                return None
            seen.append(there)
            wait_s, longer_s, hurt = there.slowed(slots, tokens, output, settings)
            read_s += longer_s
            write_s *= 1 + slower * there.streams
            total = wait_s + read_s + weight * write_s + network_s + hurt + tie_s
        if best < 0 or total < least:  # In the order of node ids: ties go to the lower one.
            best, least, best_read_s, best_write_s = len(seen) - 1, total, read_s, write_s
    chosen = seen[best]
    if isinstance(chosen, Seen) and not chosen.open:
        return None  # It has to wait.
    return Found(best, best_read_s, best_write_s, ready, seen, output)


def _read_s(pace: Pace, tokens: int, cached: int, settings: RouterSettings) -> float:
    return settings.begin_s + tokens * (pace.token_s + pace.place_s * (cached + tokens / 2))


def _there(here: Ready, cached: int, pace: Pace, now: float) -> Seen | None:
    """A candidate that something runs on. None: its model may have to leave memory for a prompt that is read there."""
    tally = here.tally
    if here.shared and tally.reading:
        return None
    flights = tally.flights.get(here.key[1])
    taken = len(flights) if flights else 0
    lefts = tuple(sorted(f.left_s(now) for f in flights.values())) if flights and taken >= here.slots else ()
    return Seen(cached, pace, tally.streams, tally.busy_s(now), taken, lefts)
