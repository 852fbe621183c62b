"""What does a request that ran teach? How fast its node is, what its prompt cache held, how long answers are."""

from __future__ import annotations

import math

from node.types import ModelState, ModelStatus, Usage
from router.fleet import Fleet
from router.ledger import Flight, Ledger
from router.prefix import Weights
from router.settings import RouterSettings


class Lessons:
    """Only clean samples count: a prompt that waited for no load; steps of streams beside it are taken out.

    Prompts are read one at a time, unless one takes so much longer than expected that another is sent. What such ones
    take must count, or a node that is much slower than believed would never be found out while it is busy. Of each
    counts the time since the one before it was read: whether they are read in turn or side by side, all of that time
    and all of their tokens are counted once.
    """

    def __init__(self, settings: RouterSettings, fleet: Fleet, ledger: Ledger) -> None:
        self._settings, self._fleet, self._ledger = settings, fleet, ledger

    def granted(self, flight: Flight, model: ModelStatus) -> None:
        """`flight` begins; what is expected of it is known."""
        reading = self._ledger.tally(flight.node).reading
        flight.clean = flight.load_s <= 0 and (not reading or all(other.clean for other in reading.values()))
        request, mirrors = flight.request, self._fleet.mirrors
        if request.blocks:
            flight.rests_on = mirrors.insert(flight.node, model, request.blocks, request.block_tokens)
        marks = request.marks
        if marks:
            mirrors.begin(marks, Weights(model.name, model.fingerprint))

    def first(self, flight: Flight, cached_tokens: int, now: float) -> None:
        """Its first token: the model is loaded there. An engine that says nothing of its cache says 0; then the end of
        the answer, whose usage may, has to be waited for."""
        found = self._fleet.believe(flight.node, flight.model, ModelState.READY)
        if found is not None and flight.clean:
            begin = max(flight.begin, self._ledger.tally(flight.node).since)
            flight.sample_s = now - begin - max(0.0, found[0].rtt_s)
        self._ledger.first(flight, now)
        if cached_tokens > 0 or not flight.request.blocks:
            self._read(flight, flight.request.prompt_tokens, cached_tokens, now)

    def ended(self, flight: Flight, usage: Usage, now: float) -> None:
        """It ended well."""
        if usage.prompt > 0:
            if flight.request.blocks:
                whole = self._settings.early_part * usage.prompt
                self._fleet.speeds.went_on(flight.model, cached=usage.cached >= whole)
            self._read(flight, usage.prompt, usage.cached, now)
        if usage.completion <= 0:
            return
        self._fleet.speeds.ended(flight.model, usage.completion)
        found = self._fleet.find(flight.node, flight.model)
        if found is None or flight.first_at is None:
            return
        tally = self._ledger.tally(flight.node)
        whole_s = now - flight.first_at
        seconds = whole_s - (tally.stalled - flight.stalled)
        if tally.reading:
            seconds -= max(0.0, now - max(tally.since, flight.first_at))
        if whole_s > 0 and seconds > 0.1 * whole_s:
            streams = (tally.streamed - flight.streamed) / whole_s  # Its own is in it.
            self._fleet.speeds.wrote(*found, usage.completion - 1, seconds, streams=streams, now=now)

    def _read(self, flight: Flight, prompt: int, cached: int, now: float) -> None:
        """Its prompt of so many tokens was read, but for `cached` ones."""
        if cached < self._settings.cached_least * flight.cached:
            self._fleet.mirrors.missed(flight.node, flight.model, flight.rests_on)
        elif cached > flight.cached + self._settings.cached_more * prompt:
            self._fleet.mirrors.found_more(flight.node, flight.model)
        flight.rests_on = flight.cached = 0
        sample_s, flight.sample_s = flight.sample_s, None
        if sample_s is None or (found := self._fleet.find(flight.node, flight.model)) is None:
            return
        tokens = max(0, prompt - cached)
        pace = self._fleet.speeds.pace(*found, now)
        steps = 1 + (math.ceil(tokens / self._settings.chunk_tokens) if flight.beside else 0)
        step_s = pace.step_s * (1 + self._settings.stream_slowdown * max(0, flight.beside - 1))
        least_s = max(0.2 * sample_s, 1e-6)  # A step that is believed too slow must not eat the whole sample.
        seconds = max(sample_s - self._settings.begin_s - steps * step_s, least_s)
        self._fleet.speeds.read(*found, tokens, seconds, position=cached, now=now)
