"""Who likely holds the start of this prompt? A mirror of each node's prompt cache, per (node, model), by its own rule.

Blocks are chained hashes: one names the whole prompt up to its end, so a prompt's longest known start is found by
halving. An engine that reports `cache_seqs` keeps whole sequences, as mlx_lm's LRUPromptCache does: so many, and
`cache_tokens` in all; one that another continues is replaced by it; the one put in longest ago goes first, looking up
does not count. One that reports none keeps blocks, least recently used first, as paged engines do. What a node says it
found (`cached_tokens`) is believed over the mirror, and one that often finds more is taken to hold more.

An engine that reports no bounds (a server that is not ours) may have no cache, or not tell of it: it is mirrored, but
believed in only once it has said that it found something, until it misses.

Memory: at most `mirror_blocks` blocks in all mirrors together, about 200 bytes each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from typing import NamedTuple

from node.types import ModelStatus, NodeId
from router.events import Request
from router.settings import RouterSettings

Blocks = tuple[int, ...]


def start(blocks: Blocks, known: Container[int]) -> int:
    """How many blocks from the start are in `known`. It holds the starts of all that it holds."""
    if not blocks or blocks[0] not in known:
        return 0
    low, high = 1, len(blocks)
    if blocks[high - 1] in known:
        return high
    while low < high:
        middle = (low + high) // 2
        if blocks[middle] in known:
            low = middle + 1
        else:
            high = middle
    return low


class Weights(NamedTuple):
    """Of a model. Of an engine whose files we cannot read only the name is known."""

    name: str
    fingerprint: str

    @classmethod
    def of(cls, model: ModelStatus) -> Weights:
        return cls(model.name, model.fingerprint)

    def same(self, other: Weights) -> bool:
        """As far as anyone can tell."""
        if self.fingerprint and other.fingerprint:
            return self.fingerprint == other.fingerprint
        return self.name == other.name


class Known:
    """One block: in how many sequences, and when it was last put in (as a number that grows)."""

    __slots__ = ("count", "put")

    def __init__(self) -> None:
        self.count = self.put = 0


class Mirror:
    """The cache of one model on one node as we believe it is."""

    __slots__ = (
        "_blocks",
        "_doubted",
        "_kept",
        "_number",
        "_seqs",
        "_seqs_limit",
        "_times",
        "_tokens_limit",
        "_told",
        "_width",
    )

    def __init__(self, *, told: bool = True) -> None:
        self._told = told  # its node reports bounds
        self._doubted = not told
        self._seqs_limit = self._tokens_limit = 0
        self._times = 1.0  # what it proved to hold, over what its node reports
        self._width = 0  # tokens of a block, as last said: edges learn it, a block is the same bytes for all of them
        self._seqs: OrderedDict[int, tuple[Blocks, int]] = OrderedDict()  # last block -> all blocks, number
        self._blocks: OrderedDict[int, Known] = OrderedDict()
        self._kept = self._number = 0  # blocks of all sequences, or of none

    def bound(self, seqs: int, tokens: int) -> None:
        """What its node reports; 0 = no such bound."""
        if seqs == self._seqs_limit and tokens == self._tokens_limit:
            return
        if (seqs > 0) != (self._seqs_limit > 0):
            self.clear()  # It kept blocks before, and sequences now: another engine.
        self._seqs_limit, self._tokens_limit = seqs, tokens
        self._shrink()

    @property
    def held(self) -> int:
        """Blocks that are remembered."""
        return len(self._blocks)

    def match(self, blocks: Blocks) -> int:
        """How many blocks from the start are there."""
        return 0 if self._doubted else start(blocks, self._blocks)

    def insert(self, blocks: Blocks, block_tokens: int) -> int:
        """Such a prompt is being read there. Returns what the belief in its start rests on, for `missed`."""
        matched = self.match(blocks)
        rests_on = self._blocks[blocks[matched - 1]].put if matched else 0
        self._width = block_tokens
        self._number += 1
        if self._seqs_limit > 0:
            for block in blocks[:matched]:
                if block in self._seqs:  # This one continues it.
                    self._remove(self._seqs.pop(block)[0])
            self._seqs[blocks[-1]] = blocks, self._number
            self._kept += len(blocks)
        for block in reversed(blocks):  # Ends become older than the starts they need.
            known = self._blocks.get(block)
            if known is None:
                known = self._blocks[block] = Known()
                self._kept += 1 if self._seqs_limit <= 0 else 0
            else:
                self._blocks.move_to_end(block)
            known.count, known.put = known.count + 1, self._number
        self._shrink()
        return rests_on

    def missed(self, rests_on: int) -> None:
        """The node did not have it: nor, then, what was put in before."""
        self._times, self._doubted = 1.0, not self._told
        while self._seqs and next(iter(self._seqs.values()))[1] <= rests_on:
            self.forget_oldest()
        while not self._seqs and self._blocks and next(iter(self._blocks.values())).put <= rests_on:
            self.forget_oldest()

    def found_more(self, growth: float, cap: float) -> None:
        """The node had much that was thought to be gone: it holds more than its bytes let us think. (Sequences are
        counted, not estimated.) Or nobody knew that it has a cache."""
        self._doubted = False
        self._times = min(self._times * growth, cap)

    def clear(self) -> None:
        self._seqs.clear()
        self._blocks.clear()
        self._kept = 0

    def forget_oldest(self) -> None:
        """What the node would evict next."""
        if self._seqs:
            self._remove(self._seqs.popitem(last=False)[1][0])
        elif self._blocks:
            self._blocks.popitem(last=False)
            self._kept -= 1

    def _remove(self, blocks: Blocks) -> None:
        self._kept -= len(blocks)
        for block in blocks:
            known = self._blocks[block]
            known.count -= 1
            if not known.count:
                del self._blocks[block]

    def _shrink(self) -> None:
        tokens = self._tokens_limit * self._times
        while (0 < self._seqs_limit < len(self._seqs)) or (0 < tokens < self._kept * self._width):
            self.forget_oldest()


class Mirrors:
    """Every mirror, and which weights each conversation began with."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._mirrors: OrderedDict[tuple[NodeId, str], Mirror] = OrderedDict()  # least recently used first
        self._began: OrderedDict[int, Weights] = OrderedDict()  # by a prompt's last block
        self._empty = Mirror()
        self._at_most = 0  # blocks in all mirrors: counted only when that would be too many

    def of(self, node: NodeId, model: ModelStatus) -> Mirror:
        """The mirror of that cache; an empty one as long as nothing is known of it."""
        mirror = self._mirrors.get((node, model.name))
        if mirror is None:
            return self._empty
        self._bound_by(mirror, model)
        return mirror

    def cached(self, key: tuple[NodeId, str], request: Request) -> int:
        """Prompt tokens of it that (node, MODEL.name) has; always one less than the prompt at most."""
        mirror = self._mirrors.get(key)
        if mirror is None:
            return 0
        return max(0, min(mirror.match(request.blocks) * request.block_tokens, request.prompt_tokens - 1))

    def insert(self, node: NodeId, model: ModelStatus, blocks: Blocks, block_tokens: int) -> int:
        """A prompt is granted there; see Mirror."""
        if not blocks or block_tokens <= 0:
            return 0
        key = node, model.name
        mirror = self._mirrors.get(key)
        if mirror is None:
            mirror = self._mirrors[key] = Mirror(told=_told(model))
        self._bound_by(mirror, model)
        self._mirrors.move_to_end(key)
        rests_on = mirror.insert(blocks, block_tokens)
        self._at_most += len(blocks)
        if self._at_most > self._settings.mirror_blocks:
            self._bound()
        return rests_on

    def missed(self, node: NodeId, model: str, rests_on: int) -> None:
        """It did not find what it should have (see Mirror)."""
        mirror = self._mirrors.get((node, model))
        if mirror is not None and rests_on > 0:
            mirror.missed(rests_on)

    def found_more(self, node: NodeId, model: str) -> None:
        """It found much more than it should have (see Mirror)."""
        mirror = self._mirrors.get((node, model))
        if mirror is not None:
            mirror.found_more(self._settings.cached_growth, self._settings.cached_cap)

    def drop(self, node: NodeId, model: str | None = None) -> None:
        """It left that node's memory; None: all of its models did."""
        for key in [k for k in self._mirrors if k[0] == node and model in (None, k[1])]:
            del self._mirrors[key]

    def began(self, blocks: Blocks) -> Weights | None:
        """The weights this conversation has run on, as of its latest turn that is remembered; None: it is new."""
        return next((self._began[b] for b in reversed(blocks) if b in self._began), None)

    def begin(self, blocks: Blocks, weights: Weights) -> None:
        """`blocks` of a turn of it, at least one."""
        last = blocks[-1]
        self._began[last] = weights
        self._began.move_to_end(last)
        if len(self._began) > self._settings.conversations_limit:
            self._began.popitem(last=False)

    @property
    def held(self) -> int:
        return sum(m.held for m in self._mirrors.values())

    def _bound_by(self, mirror: Mirror, model: ModelStatus) -> None:
        tokens = model.cache_tokens if _told(model) else self._settings.cache_unknown_tokens
        mirror.bound(model.cache_seqs, tokens)

    def _bound(self) -> None:
        """The mirrors that were used least recently shrink first."""
        over = self.held - self._settings.mirror_blocks
        while over > 0:
            key, mirror = next(iter(self._mirrors.items()))
            before = mirror.held
            mirror.forget_oldest()
            over -= before - mirror.held
            if not mirror.held:
                del self._mirrors[key]
        self._at_most = self.held


def _told(model: ModelStatus) -> bool:
    """Its node says how large its prompt cache is."""
    return model.cache_seqs > 0 or model.cache_tokens > 0
