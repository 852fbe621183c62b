"""How many tokens is that many bytes? One ratio per model, learned from the answers' own usage."""

from __future__ import annotations

from collections import OrderedDict

from router.prompt import Prompt
from router.settings import PromptSettings


class Lengths:
    """Of one edge. A ratio is all bytes over all tokens seen, each answer fading what was before it, beside a small
    prior that never fades. Short prompts teach nothing: most of those is what the chat template adds."""

    def __init__(self, settings: PromptSettings) -> None:
        self._settings = settings
        self._seen: OrderedDict[str, tuple[float, float]] = OrderedDict()  # name -> bytes, tokens; oldest use first

    def bytes_per_token(self, model: str) -> float:
        s = self._settings
        size, tokens = self._seen.get(model, (0.0, 0.0))
        ratio = (s.prior_tokens * s.bytes_per_token + size) / (s.prior_tokens + tokens)
        return min(max(ratio, s.ratio_least), s.ratio_most)

    def tokens(self, model: str, prompt: Prompt) -> int:
        """Of the whole prompt, about."""
        return prompt.tokens + round(prompt.size_bytes / self.bytes_per_token(model))

    def block_tokens(self, model: str) -> int:
        """Of one block; 1 at least."""
        return max(1, round(self._settings.block_bytes / self.bytes_per_token(model)))

    def learn(self, model: str, prompt: Prompt, tokens: int) -> None:
        """The engine counted `tokens` in it."""
        s = self._settings
        if prompt.guessed or prompt.tokens or prompt.size_bytes < s.learn_least_bytes or tokens <= 0:
            return
        size, weight = float(prompt.size_bytes), min(1.0, s.sample_tokens / tokens)
        size = min(max(size, s.ratio_least * tokens), s.ratio_most * tokens)  # An engine that counts oddly.
        had_size, had_tokens = self._seen.pop(model, (0.0, 0.0))
        self._seen[model] = s.forget * had_size + weight * size, s.forget * had_tokens + weight * tokens
        if len(self._seen) > s.models_limit:
            self._seen.popitem(last=False)
