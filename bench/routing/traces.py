"""The traces of a run: the public ones where they are, else seeded ones of our own of the same three kinds."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from random import Random

from bench.report import ROOT
from router.replay.trace import Row, Trace, parse

PUBLIC = ("azure_conv", "mooncake_conversation", "agent_miniswe")
CALLS = 1600  # of a synthetic trace


def folder() -> Path | None:
    """$TRACES, else `../shared/traces` beside the project; None when there are no traces."""
    place = Path(os.environ.get("TRACES") or ROOT.parent / "shared" / "traces")
    return place if any(place.glob("*.jsonl")) else None


def load(names: tuple[str, ...] = ()) -> dict[str, Trace]:
    """By name. `names`: those only; none: the three public ones, or all in the folder where these are not."""
    place = folder()
    if place is None:
        made = {trace.name: trace for trace in (chat(), documents(), agents())}
        return {name: made[name] for name in names or made}
    there = [path.stem for path in sorted(place.glob("*.jsonl"))]
    wanted = names or tuple(name for name in PUBLIC if name in there) or tuple(there)
    return {name: parse(name, (place / f"{name}.jsonl").read_text(encoding="utf-8")) for name in wanted}


def digest(trace: Trace) -> str:
    """Tells traces of one name apart."""
    return blake2b(repr((trace.block, trace.rows)).encode(), digest_size=8).hexdigest()


def chat() -> Trace:
    """Independent calls in bursts, prompts of a thousand tokens, no prefix in common."""
    rng, at, rows = Random(21), 0.0, []
    for _ in range(CALLS):
        at += rng.expovariate(4.0 if (at // 60) % 2 else 1.0)
        rows.append(Row(round(at, 3), _tokens(rng, 800, 1.0, 8000), _tokens(rng, 180, 0.9, 1500)))
    return Trace("synthetic_chat", tuple(rows))


def documents() -> Trace:
    """Long prompts; a third goes on from an earlier one. Blocks of 512 tokens."""
    rng, at, rows = Random(22), 0.0, []
    talks: list[list[int]] = []
    fresh = 1
    for _ in range(CALLS):
        at += rng.expovariate(1.0)
        goes_on = bool(talks) and rng.random() < 0.35
        blocks = talks.pop(rng.randrange(max(0, len(talks) - 40), len(talks))) if goes_on else [0]
        more = max(1, _tokens(rng, 3500, 1.0, 28_000) // 512)
        blocks = [*blocks, *range(fresh, fresh + more)][:60]
        fresh += more
        talks.append(blocks)
        prompt = min(32_000, len(blocks) * 512 + rng.randrange(512))
        rows.append(Row(round(at, 1), prompt, _tokens(rng, 250, 0.8, 2000), tuple(blocks)))
    return Trace("synthetic_documents", tuple(rows), 512)


def agents() -> Trace:
    """Sessions that ask, think for some seconds and go on with a longer prompt. Blocks of 64 tokens."""
    rng, rows = Random(23), []
    fresh = 20
    for session in range(24):
        blocks, tokens = list(range(20)), 1300.0  # All share the system prompt.
        for turn in range(max(4, round(rng.gauss(18, 5)))):
            tokens = min(30_000.0, tokens + _tokens(rng, 350, 0.8, 4000))
            more = int(tokens // 64) - len(blocks)
            blocks = [*blocks, *range(fresh, fresh + more)]
            fresh += max(0, more)
            output = _tokens(rng, 100, 0.6, 600)
            gap = 0.0 if turn == 0 else round(rng.expovariate(0.7), 2)
            rows.append(Row(0.0, int(tokens), output, tuple(blocks), session, gap))
            tokens += output
    return Trace("synthetic_agents", tuple(rows), 64)


def _tokens(rng: Random, median: float, spread: float, most: int) -> int:
    return max(8, min(most, round(median * rng.lognormvariate(0.0, spread))))
