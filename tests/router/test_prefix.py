"""The mirror of a prompt cache: what it believes, by the node's own rule, and how it takes a correction."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from node.types import ModelStatus, NodeId
from router.prefix import Mirror, Mirrors, Weights, start
from router.replay.cache import shared
from router.settings import RouterSettings

Blocks = tuple[int, ...]
A, B = NodeId("a"), NodeId("b")
paths = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def chained(path: list[int] | str) -> Blocks:
    """Hashes of all the starts of a path: equal exactly where the paths agree from the start."""
    return tuple(hash(tuple(path[: k + 1])) for k in range(len(path)))


def mirror(seqs: int = 0, tokens: int = 0) -> Mirror:
    made = Mirror()
    made.bound(seqs, tokens)
    return made


@given(paths, st.lists(paths, max_size=5))
def test_how_much_of_a_start_is_known_is_found_by_halving(path: list[int], known: list[list[int]]) -> None:
    blocks = {block for each in known for block in chained(each)}
    assert start(chained(path), blocks) == max((shared(chained(path), chained(k)) for k in known), default=0)


class Lru:
    """mlx_lm's LRUPromptCache, said plainly."""

    def __init__(self, seqs: int, tokens: int) -> None:
        self.seqs, self.tokens = seqs, tokens
        self.held: OrderedDict[Blocks, None] = OrderedDict()

    def match(self, blocks: Blocks) -> int:
        return max((shared(known, blocks) for known in self.held), default=0)

    def insert(self, blocks: Blocks) -> None:
        for known in [k for k in self.held if blocks[: len(k)] == k]:
            del self.held[known]
        self.held[blocks] = None
        while len(self.held) > self.seqs or (self.tokens and 10 * sum(map(len, self.held)) > self.tokens):
            self.held.popitem(last=False)


@given(st.lists(st.tuples(paths, st.booleans()), max_size=40), st.integers(1, 5), st.sampled_from([0, 60, 150]))
def test_it_keeps_what_the_server_keeps(script: list[tuple[list[int], bool]], seqs: int, tokens: int) -> None:
    ours, theirs = mirror(seqs, tokens), Lru(seqs, tokens)
    for path, read in script:
        blocks = chained(path)
        assert ours.match(blocks) == theirs.match(blocks)
        if read:
            ours.insert(blocks, 10)
            theirs.insert(blocks)
        assert ours.held == len({b for known in theirs.held for b in known})


@given(st.lists(paths, max_size=40), st.integers(1, 12))
def test_an_engine_that_keeps_blocks_forgets_ends_before_starts(script: list[list[int]], limit: int) -> None:
    ours = mirror(tokens=limit * 10)
    for path in script:
        blocks = chained(path)
        ours.insert(blocks, 10)
        assert ours.held <= limit
        assert ours.match(blocks) == min(len(blocks), limit)


def test_a_node_that_has_less_than_believed_has_nothing_older_either() -> None:
    for seqs, tokens in ((9, 0), (0, 10_000)):
        ours = mirror(seqs, tokens)
        old, held, new = chained("old"), chained("held"), chained("new")
        for blocks in (old, held, new):
            ours.insert(blocks, 10)
        rests_on = ours.insert(chained("held on"), 10)
        ours.missed(rests_on)
        assert ours.match(old) == 0
        assert ours.match(new) == 3
        assert ours.match(chained("held on")) == 7  # It has just been read.


def test_a_node_that_finds_more_than_it_should_is_taken_to_hold_more_until_it_misses() -> None:
    for seqs in (9, 0):
        ours = mirror(seqs, 60)
        ours.insert(chained("one"), 10)
        ours.found_more(2.0, 8.0)
        for word in ("two", "six", "ten"):
            ours.insert(chained(word), 10)
        assert ours.match(chained("one")) == 3
        ours.missed(ours.insert(chained("one more"), 10))
        ours.insert(chained("nil"), 10)
        assert ours.held <= 6
        assert ours.match(chained("six")) == 0


def test_a_belief_in_nothing_cannot_be_wrong() -> None:
    ours = mirror(9)
    ours.insert(chained("one"), 10)
    assert ours.insert(chained("two"), 10) == 0
    ours.missed(0)
    assert ours.match(chained("one")) == 3


SEQS = ModelStatus(name="qwen", cache_seqs=4, cache_tokens=10_000)


def test_each_model_of_each_node_has_its_own() -> None:
    mirrors = Mirrors(RouterSettings())
    blocks = chained("prompt")
    mirrors.insert(A, SEQS, blocks, 10)
    assert mirrors.of(A, SEQS).match(blocks) == 6
    assert mirrors.of(B, SEQS).match(blocks) == 0
    assert mirrors.of(A, ModelStatus(name="other", cache_seqs=4)).match(blocks) == 0
    mirrors.drop(A, "other")
    assert mirrors.of(A, SEQS).match(blocks) == 6
    mirrors.drop(A)
    assert mirrors.of(A, SEQS).match(blocks) == 0


def test_a_cache_nobody_tells_of_is_believed_in_once_it_was_of_use_and_until_it_is_not() -> None:
    mirrors, bare = Mirrors(RouterSettings(cache_unknown_tokens=100)), ModelStatus(name="qwen")
    for _ in range(2):
        assert mirrors.insert(A, bare, chained("prompt"), 10) == 0
        assert mirrors.of(A, bare).match(chained("prompt")) == 0
    mirrors.found_more(A, "qwen")
    assert mirrors.of(A, bare).match(chained("prompt")) == 6
    assert mirrors.of(B, bare).match(chained("prompt")) == 0
    rests_on = mirrors.insert(A, bare, chained("prompt more"), 10)
    assert mirrors.of(A, bare).match(chained("prompt more")) == 11
    mirrors.missed(A, "qwen", rests_on)
    assert mirrors.of(A, bare).match(chained("prompt more")) == 0


def test_a_cache_nobody_tells_of_holds_no_more_than_is_assumed() -> None:
    mirrors, bare = Mirrors(RouterSettings(cache_unknown_tokens=100)), ModelStatus(name="qwen")
    mirrors.insert(A, bare, chained("a"), 10)
    mirrors.found_more(A, "qwen")
    for letter in "bcdefghijklmnop":
        mirrors.insert(A, bare, chained(letter), 10)
    assert mirrors.of(A, bare).match(chained("p")) == 1
    assert mirrors.of(A, bare).match(chained("a")) == 0


def test_smaller_bounds_are_kept_as_soon_as_they_are_reported() -> None:
    mirrors = Mirrors(RouterSettings())
    for name in ("first", "second"):
        mirrors.insert(A, SEQS, chained(name), 10)
    one = ModelStatus(name="qwen", cache_seqs=1, cache_tokens=10_000)
    assert mirrors.of(A, one).match(chained("first")) == 0
    assert mirrors.of(A, one).match(chained("second")) == 6


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.booleans(), paths), max_size=60))
def test_all_mirrors_together_have_a_bound(script: list[tuple[NodeId, bool, list[int]]]) -> None:
    mirrors = Mirrors(RouterSettings(mirror_blocks=8))
    for node, sequences, path in script:
        model = ModelStatus(name=f"m{sequences}", cache_seqs=100 if sequences else 0, cache_tokens=10_000)
        mirrors.insert(node, model, chained(path), 10)
        assert mirrors.held <= 8
        assert mirrors.of(node, model).match(chained(path)) == len(path)


def test_a_conversation_is_known_by_its_latest_turn_and_so_many_are() -> None:
    mirrors, x, y = Mirrors(RouterSettings(conversations_limit=2)), Weights("m", "x"), Weights("m", "y")
    mirrors.begin(chained("sys one"), x)
    mirrors.begin(chained("sys two"), y)
    assert mirrors.began(chained("sys one more")) == x
    assert mirrors.began(chained("sys two more")) == y
    assert mirrors.began(chained("sys three")) is None  # They share no more than the system prompt.
    mirrors.begin(chained("sys three"), x)
    assert mirrors.began(chained("sys one more")) is None


def test_weights_are_told_apart_by_their_content_and_where_nobody_can_read_it_by_their_name() -> None:
    read, unread = Weights("qwen", "x"), Weights("qwen", "")
    assert read.same(Weights("renamed", "x"))
    assert not read.same(Weights("qwen", "y"))
    assert read.same(unread)
    assert unread.same(read)
    assert not unread.same(Weights("llama", ""))


@given(st.lists(st.tuples(paths, st.integers(8, 12)), max_size=12))
def test_edges_may_differ_on_how_many_tokens_a_block_is(prompts: list[tuple[list[int], int]]) -> None:
    it = mirror(seqs=100, tokens=10_000)
    for path, width in prompts:
        it.insert(chained(path), width)
    assert all(it.match(chained(path)) == len(path) for path, _ in prompts)
