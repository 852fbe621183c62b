"""The node model of replays, by numbers that can be worked out by hand."""

from __future__ import annotations

import pytest
from msgspec import structs

from node.types import ModelState
from router.replay.cache import SequenceCache, TokenCache
from router.replay.machines import Machine, Served
from router.replay.server import STREAM_SLOWDOWN, Server
from router.replay.trace import Job

STEP_S = 0.02
RATE = 1000.0


def machine(**changes: object) -> Machine:
    small = Served(name="small", size_bytes=5 * 10**9, prefill_tps=RATE, step_s=STEP_S, load_s=3.0)
    large = Served(name="large", size_bytes=20 * 10**9, prefill_tps=RATE / 4, step_s=STEP_S * 4, load_s=8.0)
    plain = Machine(name="mac", models=(small, large), begin_s=0.0, context_scale=float("inf"))
    return structs.replace(plain, **changes)


def run(server: Server, jobs: list[tuple[float, Job]]) -> None:
    """Delivers each at its time and lets the server work until all are done."""
    end: float | None = None
    jobs = sorted(jobs, key=lambda pair: pair[0])
    while jobs or end is not None:
        if jobs and (end is None or jobs[0][0] <= end):
            now, job = jobs.pop(0)
            server.deliver(job, now)
            end = server.poke(now) or end
        else:
            assert end is not None
            server.finish()
            end = server.begin(end)


def test_a_prompt_alone_is_read_in_chunks_and_then_written() -> None:
    job = Job(0, 3000, 11, model="small")
    run(Server(0, machine(begin_s=0.1)), [(0.0, job)])
    assert job.first_at == pytest.approx(3.0 + 2 * 0.1 + STEP_S)
    assert job.done_at == pytest.approx(3.2 + 11 * STEP_S)


def test_later_tokens_of_a_prompt_are_dearer() -> None:
    job = Job(0, 4096, 1, model="small")
    run(Server(0, machine(context_scale=2048.0)), [(0.0, job)])
    assert job.first_at == pytest.approx(2.048 + 2.048 * 2 + STEP_S)


@pytest.mark.parametrize(("padded", "read_s"), [(True, 2.0), (False, 1.1)])
def test_prompts_side_by_side_are_padded_to_the_longest(padded: bool, read_s: float) -> None:
    long, short, blocker = Job(0, 1000, 1, model="small"), Job(1, 100, 1, model="small"), Job(2, 1, 1, model="small")
    server = Server(0, machine(padded=padded))
    run(server, [(0.0, blocker), (0.0005, long), (0.0005, short)])
    assert blocker.done_at is not None
    assert short.first_at == long.first_at
    assert long.first_at == pytest.approx(
        0.001 + STEP_S + read_s + (2 * (1 + STREAM_SLOWDOWN) - 1 - STREAM_SLOWDOWN) * STEP_S
    )


def test_a_stream_pauses_while_a_prompt_is_read() -> None:
    stream, late = Job(0, 1, 100, model="small"), Job(1, 2000, 1, model="small")
    run(Server(0, machine()), [(0.0, stream), (1.0, late)])
    alone = 0.001 + 100 * STEP_S
    # One of its steps runs beside the one of the other, which is as long for both.
    assert stream.done_at == pytest.approx(alone + 2.0 + STREAM_SLOWDOWN * STEP_S)


def test_streams_side_by_side_are_slower_each_and_faster_together() -> None:
    jobs = [Job(n, 1, 50, model="small") for n in range(4)]
    run(Server(0, machine(padded=False)), [(0.0, job) for job in jobs])
    step = STEP_S * (1 + STREAM_SLOWDOWN * 3)
    assert jobs[-1].done_at == pytest.approx(50 * step, rel=0.05)


def test_no_more_run_than_there_are_slots() -> None:
    jobs = [Job(n, 1, 10, model="small") for n in range(3)]
    run(Server(0, machine(slots=1)), [(0.0, job) for job in jobs])
    assert [job.done_at for job in jobs] == pytest.approx([n * (0.001 + 10 * STEP_S) for n in (1, 2, 3)])


def test_another_model_waits_until_all_has_ended_and_is_loaded_then() -> None:
    server = Server(0, machine())
    first, other, behind = Job(0, 1, 10, model="small"), Job(1, 250, 1, model="large"), Job(2, 1, 1, model="small")
    server.deliver(first, 0.0)
    end = server.poke(0.0)
    server.deliver(other, 0.0)
    assert server.state("small") is ModelState.DRAINING
    assert server.state("large") is ModelState.ABSENT
    server.deliver(behind, 0.0)
    seen = set()
    while end is not None:
        server.finish()
        end = server.begin(end)
        seen.add((server.state("small"), server.state("large")))
    drained = 0.001 + 10 * STEP_S
    assert first.done_at == pytest.approx(drained)
    assert other.first_at == pytest.approx(drained + 8.0 + 1.0 + 4 * STEP_S)
    assert other.first_at is not None
    assert behind.done_at is not None
    assert behind.done_at > other.first_at + 3.0, "it is loaded back for the one behind"
    assert (ModelState.ABSENT, ModelState.LOADING) in seen
    assert server.loads == 2


def test_resident_models_are_all_ready_and_need_no_load() -> None:
    server = Server(0, machine(resident=True))
    other = Job(0, 250, 1, model="large")
    run(server, [(0.0, other)])
    assert other.first_at == pytest.approx(1.0 + 4 * STEP_S)
    assert {server.state("small"), server.state("large")} == {ModelState.READY}
    assert server.loads == 0


def test_resident_models_share_the_gpu() -> None:
    one, other = Job(0, 1, 200, model="small"), Job(1, 1, 50, model="large")
    run(Server(0, machine(resident=True)), [(0.0, one), (0.0, other)])
    # Step by step in turn, until the shorter answer has ended; neither waits for all of the other.
    assert other.done_at == pytest.approx(50 * STEP_S + 50 * STEP_S * 4, rel=0.05)
    assert one.done_at == pytest.approx(200 * STEP_S + 50 * STEP_S * 4, rel=0.05)


def test_looking_ahead_changes_nothing() -> None:
    server = Server(0, machine())
    server.deliver(Job(0, 1000, 10, model="small"), 0.0)
    end = server.poke(0.0)
    more = Job(1, 1000, 10, blocks=(1, 2), block_tokens=500, model="large")
    alone, both = server.future([], 0.0), server.future([more], 0.0)
    assert alone == pytest.approx((1.0 + STEP_S) + (1.0 + 10 * STEP_S))
    assert both > alone + 2 * 8.0, "its model has to be loaded"
    assert server.segment is not None
    assert (server.segment.end, server.model, more.delivered) == (end, "small", None)
    assert server.caches["large"].match((1, 2)) == 0


def test_a_prompt_that_goes_on_from_another_reads_only_the_rest() -> None:
    server = Server(0, machine())
    before = Job(0, 1000, 1, blocks=(1, 2), block_tokens=500, model="small")
    after = Job(1, 1500, 1, blocks=(1, 2, 3), block_tokens=500, model="small")
    run(server, [(0.0, before), (10.0, after)])
    assert (before.cached, after.cached) == (0, 1000)
    assert after.first_at == pytest.approx(10.0 + 0.5 + STEP_S)


def test_the_cache_is_looked_up_when_a_request_comes_not_when_it_starts() -> None:
    server = Server(0, machine())
    twins = [Job(n, 1000, 1, blocks=(1, 2), block_tokens=500, model="small") for n in range(2)]
    run(server, [(0.0, job) for job in twins])
    assert [job.cached for job in twins] == [0, 0]


def test_a_whole_prompt_is_never_all_cached() -> None:
    server = Server(0, machine())
    twins = [Job(n, 1000, 1, blocks=(1, 2), block_tokens=500, model="small") for n in range(2)]
    run(server, [(5.0 * n, job) for n, job in enumerate(twins)])
    assert twins[1].cached == 999


def test_a_cache_by_tokens_forgets_ends_before_the_starts_they_need() -> None:
    cache = TokenCache(300)
    cache.insert((1, 2, 3), 100)
    cache.insert((1, 9), 100)
    assert cache.match((1, 2, 3)) == 2
    assert cache.match((1, 9)) == 2
    assert cache.match((7,)) == 0


def test_a_cache_by_sequences_keeps_the_last_few_and_replaces_what_is_continued() -> None:
    cache = SequenceCache(2)
    cache.insert((1,), 100)
    cache.insert((1, 2), 100)
    cache.insert((5,), 100)
    assert (cache.match((1, 2)), cache.match((5,))) == (2, 1)
    cache.insert((6,), 100)
    assert cache.match((1, 2)) == 0


def test_a_slower_machine_takes_longer() -> None:
    server = Server(0, machine())
    server.speeds["small"].times(0.5)
    job = Job(0, 1000, 1, model="small")
    run(server, [(0.0, job)])
    assert job.first_at == pytest.approx(2 * (1.0 + STEP_S))
