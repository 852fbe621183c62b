"""Prompt caches of a model server: which start of a prompt need not be read again. Blocks are chained hashes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

Blocks = tuple[int, ...]


class PromptCache(Protocol):
    """What it keeps is its own rule; both kinds forget what was not used for longest."""

    def match(self, blocks: Blocks) -> int:
        """How many blocks from the start are here."""
        ...

    def insert(self, blocks: Blocks, block_tokens: int, /) -> None: ...


class TokenCache:
    """At most `limit` tokens, block by block. (One that is bounded by bytes, seen from outside.)"""

    __slots__ = ("_blocks", "_limit", "_tokens")

    def __init__(self, limit: int) -> None:
        self._limit, self._tokens = limit, 0
        self._blocks: OrderedDict[int, int] = OrderedDict()

    def match(self, blocks: Blocks) -> int:
        count = 0
        for block in blocks:
            if block not in self._blocks:
                break
            count += 1
        return count

    def insert(self, blocks: Blocks, block_tokens: int) -> None:
        for block in reversed(blocks):  # Ends become older than the starts they need.
            if block in self._blocks:
                self._blocks.move_to_end(block)
            else:
                self._blocks[block] = block_tokens
                self._tokens += block_tokens
        while self._tokens > self._limit and self._blocks:
            self._tokens -= self._blocks.popitem(last=False)[1]


class SequenceCache:
    """At most `limit` whole sequences, as mlx_lm's LRUPromptCache; one that another continues is replaced by it."""

    __slots__ = ("_limit", "_sequences")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sequences: OrderedDict[Blocks, None] = OrderedDict()

    def match(self, blocks: Blocks) -> int:
        return max((shared(known, blocks) for known in self._sequences), default=0)

    def insert(self, blocks: Blocks, _block_tokens: int, /) -> None:
        for known in [k for k in self._sequences if blocks[: len(k)] == k]:
            del self._sequences[known]
        self._sequences[blocks] = None
        while len(self._sequences) > self._limit:
            self._sequences.popitem(last=False)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many blocks two prompts have in common from their starts."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
