"""bench/routing: every restated router and reference plays a trace to its end, and knows what it should."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest

from bench.routing import figures, timing, traces
from bench.routing.clairvoyant import REFERENCES
from bench.routing.fleets import FLEETS, MIX, by_sequences
from bench.routing.peers import PEERS, THEORY
from bench.routing.runs import OURS, Run
from router.replay.result import Result, Share, result
from router.replay.trace import Job, Trace, arrive, jobs_of
from router.replay.world import World

ROUTERS = {**PEERS, **THEORY, **REFERENCES}


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("fleet", ["hetero4", "tiers"])
def test_every_router_plays_agents_to_their_end(name: str, fleet: str) -> None:
    trace = traces.agents()
    jobs = jobs_of(trace, MIX[fleet], 1, Random(5))[:40]
    for job in jobs:
        job.then = None
    arrive(trace, jobs, 0.5, Random(11), Random(3))
    got = result(World(FLEETS[fleet], jobs, ROUTERS[name]()).run())
    assert got.jobs == 40
    assert sum(share.jobs for share in got.machines) == 40
    assert 0 < got.ttft_s_mean <= got.ttft_s_p99 <= got.e2e_s_p99


def burst(count: int, blocks: tuple[int, ...] = (), block_tokens: int = 0) -> list[Job]:
    jobs = [Job(n, 500, 20, model="8b", blocks=blocks, block_tokens=block_tokens) for n in range(count)]
    for job in jobs:
        job.arrived = 0.0
    return jobs


def test_those_who_count_requests_give_the_slowest_machine_its_full_share() -> None:
    world = World(FLEETS["hetero4"], burst(40), PEERS["round robin"]()).run()
    assert [server.finished for server in world.servers] == [10, 10, 10, 10]


def test_a_clairvoyant_gives_the_fastest_machine_the_most() -> None:
    done = {name: World(FLEETS["hetero4"], burst(40), REFERENCES[name]()).run() for name in REFERENCES}
    for world in done.values():
        counts = [server.finished for server in world.servers]
        assert counts == sorted(counts)
        assert counts[0] < counts[3]


@pytest.mark.parametrize("name", ["vLLM prefix", "SGLang", "llm-d", "LMetric", "sticky"])
def test_those_who_look_at_prefixes_go_back_to_them(name: str) -> None:
    jobs = burst(6, blocks=tuple(range(7)), block_tokens=64)
    for n, job in enumerate(jobs):
        job.arrived = 60.0 * n
    world = World(FLEETS["equal2"], jobs, PEERS[name]()).run()
    assert len({job.server for job in world.jobs}) == 1


def test_caches_by_sequences_are_an_option_of_a_fleet() -> None:
    assert {machine.cache_seqs for machine in by_sequences(FLEETS["tiers"], 10)} == {10}


@pytest.mark.parametrize("make", [traces.chat, traces.documents, traces.agents], ids=lambda make: make.__name__)
def test_synthetic_traces_are_the_same_each_time(make: Callable[[], Trace]) -> None:
    one, again = make(), make()
    assert traces.digest(one) == traces.digest(again)
    assert all(row.i >= 1 and row.o >= 1 for row in one.rows)
    assert all(len(row.h) * one.block <= row.i for row in one.rows)


def played(ttft: float) -> Result:
    return Result(
        jobs=1,
        ttft_s_mean=ttft,
        ttft_s_p50=ttft,
        ttft_s_p99=ttft,
        e2e_s_mean=ttft,
        e2e_s_p99=ttft,
        makespan_s=1.0,
        hit=0.0,
        idle_s=12.0,
        refused=0,
        machines=(Share("mac", 1, 1.0, 0),),
    )


def test_figures_compare_with_the_best_of_each_scenario() -> None:
    matrix = figures.Matrix(("equal2", "hetero4"), ("agent_some",), (0.6,), 10, ("agent_some",))
    runs = [*figures.main_runs(matrix), *figures.robust_runs(matrix)]
    results = {run: played(2.0 if run.policy == OURS else 4.0) for run in runs}
    reference = next(iter(REFERENCES))
    for run in runs:
        if run.policy == reference:
            results[run] = played(1.9)
    rows = {row.name: row for row in [*figures.main_figures(matrix, results), *figures.robust_figures(matrix, results)]}
    assert rows["hetero4, TTFT p99 / best clairvoyant, gm"].value == pytest.approx(2.0 / 1.9, abs=1e-4)
    assert not rows["hetero4, TTFT p99 / best clairvoyant, gm"].holds
    assert rows["hetero4, TTFT p99 / best peer, gm"].value == 0.5
    assert rows["hetero4, agents, TTFT mean / llm-d's rule, worst (agent_some, 60%)"].holds
    assert rows["prompt caches believed 4x, TTFT mean / told well, gm"].value == 1.0
    assert rows["longest idle while work waits"].value == 12.0


def test_the_geometric_mean() -> None:
    assert figures.gm([1.0, 4.0]) == pytest.approx(2.0)


def test_a_run_is_known_by_all_that_changes_it() -> None:
    run = Run(fleet="tiers", trace="some", load=0.6, policy="llm-d", calls=10)
    others = [
        Run(fleet="tiers", trace="some", load=math.inf, policy="llm-d", calls=10),
        Run(fleet="tiers", trace="some", load=0.6, policy="llm-d", calls=10, seqs=10),
        Run(fleet="tiers", trace="some", load=0.6, policy="llm-d", calls=10, slow=((0.4, 3, 0.5),)),
    ]
    assert len({run.key, *(other.key for other in others)}) == 4


@pytest.mark.parametrize(
    ("fleet", "trace", "rate", "policy", "ttft_mean", "ttft_p99", "e2e_mean", "hit"),
    [
        ("hetero4", traces.chat, 1.2, "least in flight", 19.3232, 153.9836, 35.2682, 0.0),
        ("hetero4", traces.documents, 0.25, "llm-d", 17.2357, 128.7070, 41.2644, 0.2836),
        ("tiers", traces.agents, 0.6, "herd", 5.9006, 39.8030, 17.2729, 0.8687),
        ("tiers", traces.documents, 0.05, "late binding", 39.7822, 303.0762, 64.7738, 0.1707),
        ("equal2", traces.agents, 0.6, "replay, greedy", 2.8028, 11.7811, 12.3328, 0.9143),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_model_is_the_one_that_research_measured(
    fleet: str,
    trace: Callable[[], Trace],
    rate: float,
    policy: str,
    ttft_mean: float,
    ttft_p99: float,
    e2e_mean: float,
    hit: float,
) -> None:
    """Figures of the simulator that the goals of bench-routing come from, on the same requests."""
    made = trace()
    jobs = jobs_of(made, MIX[fleet], 150, Random(5))
    arrive(made, jobs, rate, Random(11), Random(3))
    got = result(World(FLEETS[fleet], jobs, ROUTERS[policy]()).run())
    assert (got.ttft_s_mean, got.ttft_s_p99) == pytest.approx((ttft_mean, ttft_p99), rel=1e-3)
    assert (got.e2e_s_mean, got.hit) == pytest.approx((e2e_mean, hit), rel=1e-3)


def test_thinking_time_is_measured_on_full_and_on_empty_queues() -> None:
    for row in timing.figures(events=50):
        assert row.value is not None
        assert row.value > 0
