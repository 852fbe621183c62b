"""Speeds of one model here, learned from what its answers took."""

from __future__ import annotations

from node.types import Usage

_WEIGHT = 0.2  # of the newest answer
_LEAST_TOKENS = 16  # an answer with fewer says more about latency than about speed


class Speed:
    """Tokens per second of reading (`prefill_tps`) and writing (`decode_tps`); None until one was measured."""

    def __init__(self) -> None:
        self.prefill_tps: float | None = None
        self.decode_tps: float | None = None

    def learn(self, usage: Usage, ttft_s: float, decode_s: float) -> None:
        """`ttft_s` from the slot to the first token, `decode_s` from the first token to the last.

        What came from the prompt cache was not read, and the first token belongs to the reading.
        """
        read, written = usage.prompt - usage.cached, usage.completion - 1
        if read >= _LEAST_TOKENS and ttft_s > 0:
            self.prefill_tps = _mean(self.prefill_tps, read / ttft_s)
        if written >= _LEAST_TOKENS and decode_s > 0:
            self.decode_tps = _mean(self.decode_tps, written / decode_s)


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
