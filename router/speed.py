"""How fast each node reads and writes with each model: learned from clean samples, on a prior that never fades.

Reading u new tokens after c cached ones takes u (a + k (c + u/2)) seconds: attention makes later tokens dearer. `a` and
`k` are a ridge fit of relative errors; samples lose weight with each newer one and with time, the prior does not: a
wrong or stale figure drifts back to the prior, so no node can look slow for good. Writing speed is a mean in the same
manner. Sources: the prior's factors and the forgetting are measured choices, argued in docs/scoring.md.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

from msgspec import Struct

from node.types import ModelStatus, NodeId, NodeStatus
from router.settings import RouterSettings

PREFILL_RANGE = (10.0, 100_000.0)  # tokens/s; what any machine and model lies within
DECODE_RANGE = (0.5, 2_000.0)
POSITION = 1e4  # tokens: the fit's unit of position, so that both of its columns are of one size,
TOKENS = 1e3  # and of length
SHORT = 0.25  # thousands of tokens below which a sample's relative error counts less


class Rates(Struct, frozen=True):
    """Tokens per second: reading the start of a prompt, and one stream's answer when it runs alone. `learned` counts
    samples."""

    prefill_tps: float
    decode_tps: float
    learned: int = 0


class Fit:
    """Seconds per thousand tokens, at position 0 (`a`) and more for each 10^4 tokens of position (`k`)."""

    __slots__ = ("_s0", "_s01", "_s1", "_settings", "_y0", "_y1", "at", "count")

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._s0 = self._s01 = self._s1 = self._y0 = self._y1 = self.at = 0.0
        self.count = 0

    def add(self, tokens: int, position: int, seconds: float, *, prior: float, now: float) -> None:
        """`tokens` after `position` took `seconds`. Absurd ones are pulled to `prior_distance` from the prior."""
        settings = self._settings
        u = tokens / TOKENS
        x = u * (position + tokens / 2) / POSITION
        expected = u * prior + x * _slope(prior, settings)
        d = settings.prior_distance
        seconds = _within(seconds, expected / d, expected * d)
        weight = 1 / max(u, SHORT) ** 2
        keep = settings.forget * _fading(self.at, now, settings)
        ofu, ofx = weight * u, weight * x
        self._s0 = keep * self._s0 + ofu * u
        self._s01 = keep * self._s01 + ofu * x
        self._s1 = keep * self._s1 + ofx * x
        self._y0 = keep * self._y0 + ofu * seconds
        self._y1 = keep * self._y1 + ofx * seconds
        self.at, self.count = now, self.count + 1

    def value(self, prior: float, now: float) -> tuple[float, float]:
        """(a, k) as prior and samples weigh now; neither is absurd, and k is never negative."""
        settings = self._settings
        fading, p, slope = _fading(self.at, now, settings), settings.prior_weight, _slope(prior, settings)
        s0, s01, s1 = fading * self._s0 + p, fading * self._s01, fading * self._s1 + p
        y0, y1 = fading * self._y0 + p * prior, fading * self._y1 + p * slope
        det = s0 * s1 - s01 * s01
        a, k = (y0 * s1 - y1 * s01) / det, (s0 * y1 - s01 * y0) / det
        if k < 0:
            a, k = y0 / s0, 0.0
        elif a < 0:
            a, k = 0.0, y1 / s1
        d = settings.prior_distance
        return _within(a, prior / d, prior * d), _within(k, 0.0, slope * d)


def _slope(prior: float, settings: RouterSettings) -> float:
    """`k` of a machine whose `a` is `prior`, before anything is known."""
    return prior * POSITION / settings.position_scale


class Mean:
    """One figure: the weighted geometric mean of its samples and the prior."""

    __slots__ = ("_settings", "at", "count", "logs", "weight")

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self.weight = self.logs = self.at = 0.0
        self.count = 0

    def add(self, sample: float, prior: float, now: float) -> None:
        """One more sample, in the prior's unit; absurd ones are pulled to `prior_distance` from it."""
        settings, d = self._settings, self._settings.prior_distance
        keep = settings.decode_forget * _fading(self.at, now, settings)
        self.weight = self.weight * keep + 1.0
        self.logs = self.logs * keep + math.log(_within(sample, prior / d, prior * d))
        self.at, self.count = now, self.count + 1

    def value(self, prior: float, now: float) -> float:
        """The mean of prior and samples, as they weigh now."""
        settings = self._settings
        fading = _fading(self.at, now, settings)
        total = settings.prior_weight + self.weight * fading
        return math.exp((settings.prior_weight * math.log(prior) + self.logs * fading) / total)


class Pace(NamedTuple):
    """What to expect of one model on one node, in seconds: `token_s` for the first token of a prompt, `place_s` more
    for each token before it, `step_s` for one decode step of one stream. Positive and finite, `place_s` maybe 0.
    `learned` counts samples."""

    token_s: float
    place_s: float
    step_s: float
    learned: int = 0

    def read_s(self, tokens: int, position: int) -> float:
        """Seconds to read `tokens` after `position` others."""
        return tokens * (self.token_s + self.place_s * (position + tokens / 2))


class Learner:
    """Learns the pace of one model on one node. `pace` is to be trusted until `stale_at`."""

    __slots__ = ("_decode", "_fit", "_prior", "_said", "_settings", "load_s", "pace", "stale_at")

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._fit, self._decode = Fit(settings), Mean(settings)
        self._prior = (0.0, 0.0)  # seconds per thousand tokens read, and per token written
        self._said: tuple[NodeStatus, ModelStatus] | None = None  # what that rests on
        self.load_s: float | None = None  # of its last load
        self.pace = Pace(0.0, 0.0, 0.0)
        self.stale_at = -math.inf

    def expect(self, status: NodeStatus, model: ModelStatus) -> None:
        """What to expect before anything is learned. The hardware may report anew."""
        said = self._said
        if said is not None and said[0] is status and said[1] is model:
            return
        self._said = status, model
        new = prior(status, model, self._settings)
        if new != self._prior:
            self._prior, self.stale_at = new, -math.inf

    def refresh(self, now: float) -> None:
        """What was learned fades with time: done again every few seconds."""
        if now < self.stale_at:
            return
        self.stale_at = now + self._settings.refresh_s
        a, k = self._fit.value(self._prior[0], now)
        step_s = self._decode.value(self._prior[1], now)
        self.pace = Pace(a / TOKENS, k / TOKENS / POSITION, step_s, self._fit.count + self._decode.count)

    def read(self, tokens: int, position: int, seconds: float, now: float) -> None:
        self._fit.add(tokens, position, seconds, prior=self._prior[0], now=now)
        self.stale_at = -math.inf

    def wrote(self, step_s: float, now: float) -> None:
        self._decode.add(step_s, self._prior[1], now)
        self.stale_at = -math.inf


class Speeds:
    """All that is learned. Past `speeds_limit` pairs those are forgotten that have taught nothing for longest."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._learners: OrderedDict[tuple[NodeId, str], Learner] = OrderedDict()
        self._output: OrderedDict[str, float] = OrderedDict()
        self._goes_on: OrderedDict[str, float] = OrderedDict()

    def pace(self, status: NodeStatus, model: ModelStatus, now: float) -> Pace:
        """What to expect of `model` on that node, now."""
        return self.learner(status, model, now).pace

    def learner(self, status: NodeStatus, model: ModelStatus, now: float) -> Learner:
        """The one of `model` on that node, with a fresh pace."""
        learner = self._of(status, model)
        learner.refresh(now)
        return learner

    def rates(self, status: NodeStatus, model: ModelStatus, now: float) -> Rates:
        """The same in tokens per second, for people."""
        pace = self.pace(status, model, now)
        return Rates(1 / pace.token_s, 1 / pace.step_s, pace.learned)

    def read(
        self, status: NodeStatus, model: ModelStatus, tokens: int, seconds: float, *, position: int = 0, now: float
    ) -> None:
        """`tokens` new prompt tokens after `position` cached ones took `seconds`, nothing else being read there.
        Too short ones are ignored."""
        if tokens >= self._settings.read_least_tokens and seconds > 0:
            self._taught(status, model).read(tokens, position, seconds, now)

    def wrote(
        self, status: NodeStatus, model: ModelStatus, tokens: int, seconds: float, *, streams: float, now: float
    ) -> None:
        """One stream wrote `tokens` in `seconds` while `streams` (itself included) ran on average."""
        if tokens >= self._settings.decode_least_tokens and seconds > 0:
            beside = 1 + self._settings.stream_slowdown * (max(1.0, streams) - 1)
            self._taught(status, model).wrote(seconds / tokens / beside, now)

    def ended(self, model: str, tokens: int) -> None:
        """An answer of `model` had so many tokens."""
        known = self._output.get(model)
        if known is None:
            known = self._settings.output_tokens
            if len(self._output) >= self._settings.speeds_limit:
                self._output.popitem(last=False)
        self._output[model] = known + self._settings.output_forget * (tokens - known)
        self._output.move_to_end(model)

    def went_on(self, model: str, *, cached: bool) -> None:
        """A prompt that may go on from another one: `cached`, most of it was in the node's cache."""
        known = self._goes_on.get(model, 0.0)
        self._goes_on[model] = known + self._settings.output_forget * (cached - known)
        self._goes_on.move_to_end(model)
        if len(self._goes_on) > self._settings.speeds_limit:
            self._goes_on.popitem(last=False)

    def goes_on(self, model: str) -> float:
        """How likely a conversation with `model` has another turn: the part of its prompts that were one."""
        return self._goes_on.get(model, 0.0)

    def output(self, model: str, max_tokens: int) -> float:
        """Expected tokens of an answer, at least 1; `max_tokens` 0 = no bound set."""
        mean = self._output.get(model, self._settings.output_tokens)
        return max(1.0, min(mean, float(max_tokens)) if max_tokens > 0 else mean)

    def loaded(self, node: NodeId, model: str, seconds: float) -> None:
        """The last load is the best forecast of the next: disk, cache and size are the same."""
        self._at(node, model).load_s = max(0.0, seconds)
        self._learners.move_to_end((node, model))

    def load_s(self, node: NodeId, model: ModelStatus) -> float:
        """Seconds from absent to ready: measured here, else as the node says, else from bytes."""
        learner = self._learners.get((node, model.name))
        if learner is not None and learner.load_s is not None:
            return learner.load_s
        return model.load_s or self._settings.load_base_s + model.size_bytes / self._settings.load_bytes_per_s

    def _of(self, status: NodeStatus, model: ModelStatus) -> Learner:
        learner = self._at(status.node, model.name)
        learner.expect(status, model)
        return learner

    def _taught(self, status: NodeStatus, model: ModelStatus) -> Learner:
        learner = self._of(status, model)
        self._learners.move_to_end((status.node, model.name))
        return learner

    def _at(self, node: NodeId, model: str) -> Learner:
        learner = self._learners.get((node, model))
        if learner is None:
            learner = self._learners[node, model] = Learner(self._settings)
            if len(self._learners) > self._settings.speeds_limit:
                self._learners.popitem(last=False)
        return learner


def prior(status: NodeStatus, model: ModelStatus, settings: RouterSettings) -> tuple[float, float]:
    """Seconds per thousand prompt tokens, and per token written, from memory bandwidth and bytes of weights
    (docs/scoring.md)."""
    bandwidth = status.bandwidth if status.bandwidth > 0 else settings.bandwidth_unknown
    size = model.size_bytes if model.size_bytes >= settings.size_least_bytes else settings.size_unknown_bytes
    reads_per_s = bandwidth / (size / 1e9)
    return (
        TOKENS / _within(settings.prefill_prior * reads_per_s, *PREFILL_RANGE),
        1 / _within(settings.decode_prior * reads_per_s, *DECODE_RANGE),
    )


def guessed(status: NodeStatus, model: ModelStatus, settings: RouterSettings) -> bool:
    """Whether the prior says little: the machine's bandwidth is unknown, or the size of the weights."""
    return status.bandwidth <= 0 or model.size_bytes < settings.size_least_bytes


def _fading(at: float, now: float, settings: RouterSettings) -> float:
    """What is left of the weight that samples had at `at`."""
    return math.exp((at - now) / settings.fade_s) if now > at else 1.0


def _within(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)
