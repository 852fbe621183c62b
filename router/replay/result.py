"""What came out of a replay, in the figures people compare."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from router.replay.world import World


class Share(Struct, frozen=True):
    """One machine's part: jobs it finished, the part of the time it was busy, and how often it loaded a model."""

    name: str
    jobs: int
    busy: float
    loads: int


class Result(Struct, frozen=True, kw_only=True):
    """Seconds. `hit`: the part of all prompt tokens that caches held. `idle_s`: the longest time a machine stood idle
    while a job waited that it could do."""

    jobs: int
    ttft_s_mean: float
    ttft_s_p50: float
    ttft_s_p99: float
    e2e_s_mean: float
    e2e_s_p99: float
    makespan_s: float
    hit: float
    idle_s: float
    refused: int
    machines: tuple[Share, ...]


def percentile(values: Sequence[float], part: float) -> float:
    """Of sorted values, the nearest above."""
    return values[min(len(values) - 1, int(part * len(values)))]


def result(world: World) -> Result:
    """Of a replay that has ended."""
    first = sorted((j.first_at or 0.0) - (j.arrived or 0.0) for j in world.jobs)
    whole = sorted((j.done_at or 0.0) - (j.arrived or 0.0) for j in world.jobs)
    makespan = max(j.done_at or 0.0 for j in world.jobs)
    asked = sum(s.prompt_tokens for s in world.servers)
    return Result(
        jobs=len(world.jobs),
        ttft_s_mean=sum(first) / len(first),
        ttft_s_p50=percentile(first, 0.5),
        ttft_s_p99=percentile(first, 0.99),
        e2e_s_mean=sum(whole) / len(whole),
        e2e_s_p99=percentile(whole, 0.99),
        makespan_s=makespan,
        hit=sum(s.cached_tokens for s in world.servers) / max(1, asked),
        idle_s=world.idle_s,
        refused=world.refused,
        machines=tuple(
            Share(s.machine.name, s.finished, s.busy_s / max(makespan, 1e-9), s.loads) for s in world.servers
        ),
    )
