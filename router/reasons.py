"""From the numbers of a decision to its words: why it costs so many seconds there, and the Decision that people read.

A request's numbers are kept until somebody asks: hardly any decision is ever read, and its words take longer to put
together than the decision took.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct, structs

from node.types import NodeId, Pressure
from router.cost import NAMES, Price
from router.events import Candidate, Decision, Facts, Term, Why
from router.settings import RouterSettings


class Used(Struct, frozen=True, array_like=True):
    """What settings were when it was decided, as far as the words name them."""

    begin_s: float
    decode_weight: float
    stream_slowdown: float
    hurt_weight: float

    @classmethod
    def of(cls, settings: RouterSettings) -> Used:
        return cls(settings.begin_s, settings.decode_weight, settings.stream_slowdown, settings.hurt_weight)


class Priced(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """A Price, and what it rests on, as numbers that do not change any more; without a say: of a model in memory."""

    node: NodeId
    model: str
    total: float
    terms: tuple[float, ...]  # as NAMES
    cached: int
    streams: int
    read_s: float
    write_s: float
    output: float
    token_s: float
    taken: int
    slots: int
    learned: int
    rtt_s: float
    headroom_bytes: int
    pressure: str
    size_bytes: int
    guard_why: str
    guard_soon: float = 0.0
    pause_s: float = 0.0
    load_s: float = 0.0
    whole_s: float = 0.0
    load_why: str = "loaded"
    evicts: bool = False
    back_s: float = 0.0


def priced(found: Price) -> Priced:
    """Read before the walk goes on: lanes change."""
    lane, status, model, guard = found.lane, found.lane.status, found.lane.model, found.lane.guard
    return Priced(
        status.node,
        model.name,
        found.total,
        found.terms,
        found.cached,
        found.streams,
        found.read_s,
        found.write_s,
        found.output,
        found.token_s,
        found.taken,
        lane.slots,
        lane.pace.learned,
        status.rtt_s,
        status.headroom_bytes,
        status.pressure.value,
        model.size_bytes,
        guard.why,
        guard.soon,
        lane.pause_s,
        lane.load_s,
        lane.whole_s,
        lane.load_why,
        bool(lane.evicts),
        lane.back_s,
    )


class Reasons(Struct, frozen=True, array_like=True):
    """All that a Decision is made of. `priced` in the order in which they were looked at; `others` were excluded.
    `names` of nodes, as people know them; `left_out`: the edge's own reasons for whom it had excluded."""

    facts: Facts
    chosen: NodeId | None
    waited_s: float
    used: Used
    priced: tuple[Priced, ...]
    others: tuple[Candidate, ...] = ()
    names: Mapping[NodeId, str] = {}
    left_out: Mapping[NodeId, str] = {}

    def named(self, names: Mapping[NodeId, str], left_out: Mapping[NodeId, str]) -> Reasons:
        """The same for people: with as much of `names` as occurs."""
        mine = {node: names[node] for node in map(NodeId, self._nodes()) if node in names}
        return structs.replace(self, names=mine, left_out=left_out)

    def _nodes(self) -> list[str]:
        excluded = self.facts.get("excluded")
        barred = excluded if isinstance(excluded, list) else []
        return [*(p.node for p in self.priced), *(c.node for c in self.others), *barred]

    @property
    def decision(self) -> Decision:
        """In words: everyone who was looked at, cheapest first, then everyone who cannot."""
        prompt = self._prompt_tokens
        found = [explain(p, prompt, self.used) for p in self.priced]
        found.sort(key=lambda c: (c.total_s or 0.0, c.node))
        made = Decision(
            request=self.facts,
            chosen=self.chosen,
            waited_ms=max(0.0, self.waited_s) * 1000,
            candidates=(*found, *self.others),
        )
        return in_names(made, self.names, self.left_out)

    @property
    def brief(self) -> str:
        """Why there, in a few words: how many could, and what its time was expected to go into. "" of a refusal."""
        mine = [p for p in self.priced if p.node == self.chosen]
        if not mine:
            return ""
        best = min(mine, key=lambda p: p.total)
        most = max(range(len(NAMES)), key=best.terms.__getitem__)
        return brief(
            len(self.priced),
            best.total,
            NAMES[most],
            _WHYS[most](best, self._prompt_tokens, self.used) if best.terms[most] > 0 else "",
        )

    @property
    def _prompt_tokens(self) -> int:
        said = self.facts.get("prompt_tokens")
        return said if isinstance(said, int) else 0


def brief(able: int, total_s: float, name: str, why: str) -> str:
    """`why` "" when the largest part is nothing."""
    return f"soonest of {able}, expected {total_s:.2f} s" + (f", most of it {name}: {why}" if why else "")


def named(why: Why, names: Mapping[NodeId, str], left_out: Mapping[NodeId, str]) -> Reasons | Decision:
    """`why` as people read it."""
    grounds = why.grounds
    if isinstance(grounds, Reasons):
        return grounds.named(names, left_out)
    return in_names(why.decision, names, left_out)


def in_names(decision: Decision, names: Mapping[NodeId, str], left_out: Mapping[NodeId, str]) -> Decision:
    """The coordinator decides over ids, people know names; and it only knows that its edge left somebody out."""
    if not names and not left_out:
        return decision

    def name(node: str) -> NodeId:
        return NodeId(names.get(NodeId(node), node))

    request = dict(decision.request)
    if isinstance(excluded := request.get("excluded"), list):
        request["excluded"] = [name(node) for node in excluded]
    told = (
        structs.replace(c, node=name(c.node), excluded=left_out.get(c.node, c.excluded))
        if c.total_s is None
        else structs.replace(c, node=name(c.node))
        for c in decision.candidates
    )
    return structs.replace(
        decision,
        request=request,
        chosen=None if decision.chosen is None else name(decision.chosen),
        candidates=tuple(told),
    )


def explain(found: Priced, prompt_tokens: int, used: Used) -> Candidate:
    """The same seconds, with a why each."""
    terms = tuple(
        Term(name, seconds, why(found, prompt_tokens, used))
        for name, seconds, why in zip(NAMES, found.terms, _WHYS, strict=True)
        if name != "again" or seconds
    )
    return Candidate(found.node, found.model, found.total, terms)


def why_not_now(found: Priced) -> str:
    """Why a request that was priced so cannot begin there yet."""
    return _wait(found) if found.terms[0] > 0 else _load(found)


def _wait(found: Priced, *_: object) -> str:
    wait_s = found.terms[0]
    slots = f"{max(0, found.slots - found.taken)} of {found.slots} slots free"
    if wait_s <= 0:
        return slots
    if found.pause_s >= wait_s:
        return "it said it was full a moment ago"
    if found.taken >= found.slots:
        which = "its only slot is taken, and" if found.slots == 1 else f"all {found.slots} slots are taken, one is"
        return f"{which} free in about {wait_s:.1f} s"
    return f"{slots}, but other prompts are read first for about {wait_s:.1f} s"


def _load(found: Priced, *_: object) -> str:
    load_s = found.terms[1]
    if load_s <= 0:
        return "loaded"
    if load_s == found.load_s:
        return found.load_why
    return f"another model is placed there first, then loading takes about {found.whole_s:.1f} s"


def _prefill(found: Priced, prompt_tokens: int, used: Used) -> str:
    tokens = prompt_tokens - found.cached
    cached = f"{found.cached} of {prompt_tokens} tokens are in its prompt cache, " if found.cached else ""
    source = (
        f"learned from {found.learned} request{'s' if found.learned > 1 else ''}"
        if found.learned
        else "expected of this hardware"
    )
    return f"{cached}{tokens} to read at {1 / found.token_s:.0f} tokens/s ({source}), {used.begin_s:g} s to begin"


def _decode(found: Priced, _: int, used: Used) -> str:
    beside = f" beside {found.streams} other answer{'s' if found.streams > 1 else ''}" if found.streams else ""
    expected = f"{found.output:.0f} tokens expected in {found.write_s:.1f} s{beside}"
    return f"{expected}; {used.decode_weight:.0%} of that counts, for the first token matters most"


def _network(found: Priced, *_: object) -> str:
    return f"{found.rtt_s * 1000:.1f} ms there and back"


def _hurt(found: Priced, _: int, used: Used) -> str:
    parts = []
    if found.streams:
        slower = used.stream_slowdown
        each_s = found.read_s + slower * found.write_s / (1 + slower * found.streams)
        who = f"{found.streams} other answers there lose" if found.streams > 1 else "another answer there loses"
        parts.append(f"{who} {each_s:.1f} s{' each' if found.streams > 1 else ''}")
    if found.evicts:
        parts.append(f"what leaves memory takes {found.back_s:.1f} s to load again")
    return f"{', '.join(parts)}; {used.hurt_weight:.0%} of that counts" if parts else "nobody else is delayed"


def _guard(found: Priced, *_: object) -> str:
    return found.guard_why


def _headroom(found: Priced, *_: object) -> str:
    if found.terms[1] <= 0:
        return f"{found.headroom_bytes / 1e9:.1f} GB of memory left there"
    if found.pressure != Pressure.NORMAL.value:
        return f"memory pressure is {found.pressure} there: the next load will need an eviction"
    left = max(0, found.headroom_bytes - found.size_bytes)
    return f"{left / 1e9:.1f} GB of memory left there after loading it: the less, the sooner the next load must evict"


def _again(found: Priced, *_: object) -> str:
    soon = found.guard_soon
    return f"when that machine's own model comes back ({soon:.0%} likely), the conversation is read anew elsewhere"


_WHYS: tuple[Callable[[Priced, int, Used], str], ...] = (  # as NAMES
    *(_wait, _load, _prefill, _decode, _network, _hurt, _guard, _headroom, _again),
)
