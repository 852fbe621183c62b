"""Jobs to replay: from the rows of a trace, or from what a mesh has recorded of itself.

A trace is one JSON object a line, the first `{"meta": {"block": tokens}}`. Fields of a row: `t` seconds from the start,
`i` prompt tokens, `o` output tokens, `h` chained ids of the prompt's blocks, `s` session (-1: on its own), `g` seconds
between the end of the session's previous call and this one, and maybe `m`, the model it asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import msgspec
from msgspec import Struct

OUTPUT_LIMIT = 2048  # longer answers are cut
JITTER_S = 0.5  # within the second that a stamp was rounded to
COPIES = 4  # of a short trace of sessions, to have enough calls


class Row(Struct, frozen=True):
    """One line of a trace."""

    t: float
    i: int
    o: int
    h: tuple[int, ...] = ()
    s: int = -1
    g: float = 0.0
    m: str = ""


class _Meta(Struct):
    block: int | None = None


class _Head(Struct):
    meta: _Meta | None = None


class Trace(Struct, frozen=True):
    """`block` tokens stand behind each id of a row's `h`."""

    name: str
    rows: tuple[Row, ...]
    block: int = 0


class Job:
    """One call, and what became of it in the replay that runs now. Times are seconds of the replay; None: not yet.

    `cached` prompt tokens were found in the cache when it reached its server, `left` are still to be read, at
    `position`; `written` tokens of the answer are there. `then`: the session's next call, `think_s` after this one.
    """

    __slots__ = (
        "arrived",
        "block_tokens",
        "blocks",
        "cached",
        "delivered",
        "done_at",
        "first_at",
        "id",
        "left",
        "model",
        "output",
        "position",
        "prompt",
        "sent",
        "server",
        "session",
        "then",
        "think_s",
        "written",
    )

    def __init__(
        self,
        number: int,
        prompt: int,
        output: int,
        *,
        blocks: tuple[int, ...] = (),
        block_tokens: int = 0,
        model: str = "",
        session: int = -1,
        think_s: float = 0.0,
    ) -> None:
        self.id, self.prompt, self.output = number, max(1, prompt), max(1, output)
        self.blocks, self.block_tokens, self.model = blocks, block_tokens, model
        self.session, self.think_s = session, think_s
        self.then: Job | None = None
        self.arrived: float | None = None
        self.sent: float | None = None
        self.delivered: float | None = None
        self.first_at: float | None = None
        self.done_at: float | None = None
        self.server = -1
        self.cached = self.left = self.position = self.written = 0


def parse(name: str, text: str) -> Trace:
    """Reads a trace. Raises msgspec.MsgspecError or ValueError for what is none."""
    lines = [line for line in text.splitlines() if line.strip()]
    meta = msgspec.json.decode(lines[0], type=_Head).meta if lines else None
    block = meta.block or 0 if meta is not None else 0
    decoder = msgspec.json.Decoder(Row)
    rows = tuple(decoder.decode(line) for line in (lines if meta is None else lines[1:]))
    if not rows:
        raise ValueError("it holds no calls")
    return Trace(name, rows, block)


def jobs_of(trace: Trace, mix: Mapping[str, float], count: int, rng: Random) -> list[Job]:
    """At most `count` calls without arrival times; those of a session follow each other. Models that a row does not
    name are drawn from `mix` (name -> share), one for each session."""

    def model() -> str:
        return rng.choices(list(mix), list(mix.values()))[0]

    if trace.rows[0].s < 0:
        return [
            Job(n, r.i, min(r.o, OUTPUT_LIMIT), blocks=r.h, block_tokens=trace.block, model=r.m or model())
            for n, r in enumerate(trace.rows[:count])
        ]
    top = 1 + max((block for r in trace.rows for block in r.h), default=0)
    common = {block for r in trace.rows for block in r.h[:1]}
    jobs: list[Job] = []
    for copy in range(COPIES):
        if len(jobs) >= count:
            break
        last: dict[int, Job] = {}
        models: dict[int, str] = {}
        for r in trace.rows:
            blocks = tuple(b if b in common or copy == 0 else b + copy * top for b in r.h)  # Copies share first blocks.
            models.setdefault(r.s, r.m or model())
            output = min(r.o, OUTPUT_LIMIT)
            job = Job(len(jobs), r.i, output, blocks=blocks, block_tokens=trace.block, model=models[r.s])
            job.session, job.think_s = r.s + copy * 1000, r.g
            if r.s in last:
                last[r.s].then = job
            last[r.s] = job
            jobs.append(job)
    return jobs


def arrive(trace: Trace, jobs: Sequence[Job], rate: float, starts: Random, jitter: Random) -> None:
    """Gives first calls their times so that `rate` calls/s come on average (inf: all at once). Independent calls keep
    the trace's own pattern, sessions start as a Poisson stream; the calls after the first follow by themselves."""
    followers = {job.then.id for job in jobs if job.then is not None}
    heads = [job for job in jobs if job.id not in followers]
    if rate == float("inf"):
        for job in heads:
            job.arrived = 0.0
    elif trace.rows[0].s >= 0:
        at = 0.0
        starts.shuffle(heads)
        for job in heads:
            job.arrived = at
            at += starts.expovariate(rate * len(heads) / len(jobs))
    else:
        times = [r.t for r in trace.rows[: len(jobs)]]
        stretch = len(jobs) / rate / max(times[-1] - times[0], 1e-9)
        for job in heads:
            job.arrived = (times[job.id] - times[0] + jitter.random() * JITTER_S) * stretch
