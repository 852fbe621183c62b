"""How fast each node reads and writes with each model: learned from clean samples, on a prior that never fades.

A rate is the weighted geometric mean of its samples and the prior. Samples lose weight with each newer one and with
time, the prior does not: a wrong or stale figure drifts back to the prior, so no node can look slow for good.
Sources: the prior's factors and the forgetting are measured choices, argued in docs/scoring.md.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from msgspec import Struct

from node.types import ModelStatus, NodeId, NodeStatus
from router.settings import RouterSettings

PREFILL_RANGE = (10.0, 100_000.0)  # tokens/s; what any machine and model lies within
DECODE_RANGE = (0.5, 2_000.0)


class Rates(Struct, frozen=True):
    """Tokens per second: reading a prompt, and one stream's answer when it runs alone. `learned` counts samples."""

    prefill_tps: float
    decode_tps: float
    learned: int = 0


class Learned:
    """One rate of one (node, model)."""

    __slots__ = ("at", "count", "logs", "weight")

    def __init__(self) -> None:
        self.weight = self.logs = self.at = 0.0
        self.count = 0

    def add(self, rate: float, prior: float, settings: RouterSettings, now: float) -> None:
        """One more sample, in the prior's unit; absurd ones are pulled to `prior_distance` from it."""
        d = settings.prior_distance
        keep = settings.forget * self._fading(settings, now)
        self.weight = self.weight * keep + 1.0
        self.logs = self.logs * keep + math.log(min(max(rate, prior / d), prior * d))
        self.at, self.count = now, self.count + 1

    def value(self, prior: float, settings: RouterSettings, now: float) -> float:
        """The mean of prior and samples, as they weigh now."""
        fading = self._fading(settings, now)
        total = settings.prior_weight + self.weight * fading
        return math.exp((settings.prior_weight * math.log(prior) + self.logs * fading) / total)

    def _fading(self, settings: RouterSettings, now: float) -> float:
        return math.exp(-max(0.0, now - self.at) / settings.fade_s)


class _Pair:
    __slots__ = ("decode", "load_s", "prefill")

    def __init__(self) -> None:
        self.prefill, self.decode = Learned(), Learned()
        self.load_s: float | None = None


class Speeds:
    """All that is learned. Pairs not used for longest are forgotten past `speeds_limit`."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._pairs: OrderedDict[tuple[NodeId, str], _Pair] = OrderedDict()
        self._output: OrderedDict[str, float] = OrderedDict()

    def rates(self, status: NodeStatus, model: ModelStatus, now: float) -> Rates:
        """What to expect of `model` on that node. Always positive and finite."""
        prefill, decode = prior(status, model, self._settings)
        pair = self._pairs.get((status.node, model.name))
        if pair is None:
            return Rates(prefill, decode)
        return Rates(
            pair.prefill.value(prefill, self._settings, now),
            pair.decode.value(decode, self._settings, now),
            pair.prefill.count + pair.decode.count,
        )

    def read(self, status: NodeStatus, model: ModelStatus, tokens: int, seconds: float, now: float) -> None:
        """`tokens` new prompt tokens took `seconds`, nothing else being read there. Too short ones are ignored."""
        seconds -= self._settings.begin_s
        if tokens >= self._settings.read_least_tokens and seconds > 0:
            prefill, _ = prior(status, model, self._settings)
            self._pair(status.node, model.name).prefill.add(tokens / seconds, prefill, self._settings, now)

    def wrote(
        self, status: NodeStatus, model: ModelStatus, tokens: int, seconds: float, *, streams: float, now: float
    ) -> None:
        """One stream wrote `tokens` in `seconds` while `streams` (itself included) ran on average."""
        if tokens >= self._settings.decode_least_tokens and seconds > 0:
            _, decode = prior(status, model, self._settings)
            alone = tokens / seconds * (1 + self._settings.stream_slowdown * (max(1.0, streams) - 1))
            self._pair(status.node, model.name).decode.add(alone, decode, self._settings, now)

    def ended(self, model: str, tokens: int) -> None:
        """An answer of `model` had so many tokens."""
        known = self._output.pop(model, self._settings.output_tokens)
        self._output[model] = known + self._settings.output_forget * (tokens - known)
        if len(self._output) > self._settings.speeds_limit:
            self._output.popitem(last=False)

    def output(self, model: str, max_tokens: int) -> float:
        """Expected tokens of an answer, at least 1; `max_tokens` 0 = no bound set."""
        mean = self._output.get(model, self._settings.output_tokens)
        return max(1.0, min(mean, float(max_tokens)) if max_tokens > 0 else mean)

    def loaded(self, node: NodeId, model: str, seconds: float) -> None:
        """The last load is the best forecast of the next: disk, cache and size are the same."""
        self._pair(node, model).load_s = max(0.0, seconds)

    def load_s(self, node: NodeId, model: ModelStatus) -> float:
        """Seconds from absent to ready: measured here, else as the node says, else from bytes."""
        pair = self._pairs.get((node, model.name))
        if pair is not None and pair.load_s is not None:
            return pair.load_s
        return model.load_s or self._settings.load_base_s + model.size_bytes / self._settings.load_bytes_per_s

    def _pair(self, node: NodeId, model: str) -> _Pair:
        pair = self._pairs.setdefault((node, model), _Pair())
        self._pairs.move_to_end((node, model))
        if len(self._pairs) > self._settings.speeds_limit:
            self._pairs.popitem(last=False)
        return pair


def prior(status: NodeStatus, model: ModelStatus, settings: RouterSettings) -> tuple[float, float]:
    """Prefill and decode tokens/s from memory bandwidth and bytes of weights (docs/scoring.md)."""
    bandwidth = status.bandwidth if status.bandwidth > 0 else settings.bandwidth_unknown
    reads_per_s = bandwidth / ((model.size_bytes or settings.size_unknown_bytes) / 1e9)
    return (
        _within(settings.prefill_prior * reads_per_s, PREFILL_RANGE),
        _within(settings.decode_prior * reads_per_s, DECODE_RANGE),
    )


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
