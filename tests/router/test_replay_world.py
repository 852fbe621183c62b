"""Replays: every job ends, the same twice, and the shipped scheduler is told what edges and nodes would tell it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from node.types import ModelState
from router import schedule
from router.replay.machines import Machine, Served
from router.replay.peers import LeastInFlight, RoundRobin
from router.replay.result import result
from router.replay.shipped import Knows, Shipped
from router.replay.trace import Job, Row, Trace, arrive, jobs_of
from router.replay.world import Policy, Slow, World
from router.settings import RouterSettings

TALKS = Trace(
    "talks",
    tuple(
        Row(0.0, 300 + 200 * turn, 40, (0, *range(100 * talk, 100 * talk + turn + 1)), talk, 2.0)
        for talk in range(1, 6)
        for turn in range(6)
    ),
    128,
)
CALLS = Trace("calls", tuple(Row(0.4 * n, 200 + 37 * (n % 23), 20 + n % 50) for n in range(60)))


def served(name: str, factor: float = 1.0, *, own: bool = True) -> Served:
    return Served(
        name=name,
        size_bytes=int(5e9 * factor),
        prefill_tps=500 / factor,
        step_s=0.02 * factor,
        load_s=2.0 * factor,
        own=own,
    )


def machines() -> list[Machine]:
    return [
        Machine(name="mini", models=(served("small"),), bandwidth=120, slots=2),
        Machine(name="studio", models=(served("large", 3.0), served("small", 0.4, own=False)), bandwidth=800, slots=4),
    ]


def shipped(settings: RouterSettings | None = None) -> Shipped:
    return Shipped(settings or RouterSettings(), Random(3))


POLICIES: dict[str, Callable[[], Policy]] = {
    "shipped": shipped,
    "least in flight": lambda: LeastInFlight(Random(1)),
    "round robin": lambda: RoundRobin(Random(1)),
}


def jobs(trace: Trace, rate: float = 1.0, mix: dict[str, float] | None = None) -> list[Job]:
    made = jobs_of(trace, mix or {"small": 0.7, "large": 0.3}, 60, Random(5))
    arrive(trace, made, rate, Random(11), Random(3))
    return made


@pytest.mark.parametrize("trace", [TALKS, CALLS], ids=lambda trace: trace.name)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_job_ends_and_the_same_inputs_give_the_same_run(policy: str, trace: Trace) -> None:
    seen = []
    for _ in range(2):
        world = World(machines(), jobs(trace), POLICIES[policy]()).run()
        for job in world.jobs:
            assert job.arrived is not None
            assert job.first_at is not None
            assert job.done_at is not None
            assert job.arrived < job.first_at <= job.done_at
        seen.append(result(world))
    assert seen[0] == seen[1]
    assert sum(share.jobs for share in seen[0].machines) == len(world.jobs)


def test_the_calls_of_a_session_follow_each_other() -> None:
    world = World(machines(), jobs(TALKS), shipped()).run()
    chained = [job for job in world.jobs if job.then is not None]
    assert len(chained) == 5 * 5 * 2, "two copies of five talks"
    for job in chained:
        assert job.then is not None
        assert job.then.arrived is not None
        assert job.done_at is not None
        assert job.then.arrived >= job.done_at + job.then.think_s


def test_peers_keep_to_machines_whose_own_model_it_is() -> None:
    world = World(machines(), jobs(CALLS), LeastInFlight(Random(1))).run()
    assert {job.server for job in world.jobs if job.model == "small"} == {0}
    assert [server.loads for server in world.servers] == [0, 0]


def test_a_refused_job_asks_again_and_its_time_goes_on() -> None:
    world = World(machines(), jobs(CALLS, 50.0, {"small": 1.0}), shipped(RouterSettings(queue_limit=3))).run()
    assert world.refused > 0
    assert all(job.done_at is not None for job in world.jobs)


def test_a_machine_that_slows_down_takes_longer_from_then_on() -> None:
    usual = result(World(machines()[:1], jobs(CALLS, 0.5, {"small": 1.0}), shipped()).run())
    slowed = World(machines()[:1], jobs(CALLS, 0.5, {"small": 1.0}), shipped(), [Slow(20.0, 0, 0.5)]).run()
    assert result(slowed).e2e_s_mean > usual.e2e_s_mean


def test_a_world_that_can_never_end_says_so() -> None:
    class Nobody(LeastInFlight):
        def arrived(self, job: Job) -> list[tuple[Job, int]]:
            return []

    with pytest.raises(RuntimeError, match="60 of 60"):
        World(machines(), jobs(CALLS), Nobody(Random(1))).run()


def test_idle_time_counts_while_somebody_waits_and_only_then() -> None:
    class Late(LeastInFlight):
        """Sends the first job when the second comes."""

        def start(self) -> None:
            self.held: list[Job] = []

        def arrived(self, job: Job) -> list[tuple[Job, int]]:
            self.held.append(job)
            return [self.assign(j, 0) for j in self.held] if len(self.held) == 2 else []

    pair = [Job(0, 10, 5, model="small"), Job(1, 10, 5, model="small")]
    pair[0].arrived, pair[1].arrived = 5.0, 47.0
    assert World(machines()[:1], pair, Late(Random(1))).run().idle_s == pytest.approx(42.0)


# What the scheduler is told


class Listening(Shipped):
    def __init__(self, knows: Knows | None = None) -> None:
        super().__init__(RouterSettings(), Random(3), knows or Knows(bandwidth_error=0.0))
        self.heard: list[tuple[float, schedule.SchedulerEvent]] = []

    def _step(self, event: schedule.SchedulerEvent) -> list[tuple[Job, int]]:
        self.heard.append((self._world.now, event))
        return super()._step(event)

    def states(self, model: str) -> list[tuple[float, ModelState]]:
        """As reported of the second machine, with their times."""
        found: list[tuple[float, ModelState]] = []
        for at, event in self.heard:
            if isinstance(event, schedule.NodeChanged) and event.status.name == "studio":
                found += [(at, m.state) for m in event.status.models if m.name == model]
        return found


def one_foreign_job() -> list[Job]:
    """Only the second machine has the large model, and it has to swap for the small one that the first refuses."""
    job = Job(0, 100, 5, model="small")
    job.arrived = 1.0
    return [job]


def test_a_machine_of_one_model_at_a_time_is_all_evictable() -> None:
    policy = Listening()
    world = World(machines()[1:], one_foreign_job(), policy)
    status = policy.status(world.servers[0])
    assert (status.headroom_bytes, status.evictable_bytes) == (0, int(15e9))
    large, small = status.models
    assert (large.state, large.own, small.state, small.own) == (ModelState.READY, True, ModelState.ABSENT, False)
    assert small.load_s == pytest.approx(0.8)
    assert status.bandwidth == 800


def test_a_swap_is_reported_as_a_node_would() -> None:
    policy = Listening()
    World(machines()[1:], one_foreign_job(), policy).run()
    assert [state for _, state in policy.states("small")] == [ModelState.LOADING, ModelState.READY]
    assert [state for _, state in policy.states("large")] == [ModelState.ABSENT, ModelState.ABSENT]
    loaded = [event for _, event in policy.heard if isinstance(event, schedule.Loaded)]
    assert [event.model for event in loaded] == ["small"]
    assert loaded[0].seconds == pytest.approx(0.8)
    kinds = [type(event).__name__ for _, event in policy.heard]
    assert kinds == ["Submit", "NodeChanged", "Started", "Loaded", "NodeChanged", "FirstToken", "Finished"] or (
        kinds == ["Submit", "Started", "NodeChanged", "Loaded", "NodeChanged", "FirstToken", "Finished"]
    )


def test_reports_may_come_late() -> None:
    usual, late = Listening(), Listening(Knows(bandwidth_error=0.0, report_age_s=5.0))
    for policy in (usual, late):
        jobs = [*one_foreign_job(), Job(1, 100, 5, model="large")]
        jobs[1].arrived = 30.0
        World(machines()[1:], jobs, policy).run()
    first = usual.states("small")[0][0]
    assert late.states("small")[0][0] == pytest.approx(first + 5.0, abs=0.01)


def test_a_cache_can_be_reported_wrongly_and_the_chip_too() -> None:
    policy = Shipped(RouterSettings(), Random(3), Knows(bandwidth_error=0.25, cache_factor=4.0))
    world = World(machines(), one_foreign_job(), policy)
    status = policy.status(world.servers[0])
    assert status.models[0].cache_tokens == 4 * world.servers[0].machine.home.cache_tokens
    assert status.bandwidth != 120
    assert 90 <= status.bandwidth <= 150


def test_a_node_that_says_nothing_of_eviction_reports_what_memory_is_left() -> None:
    policy = Shipped(RouterSettings(), Random(3), Knows(evictable=False))
    studio = Machine(name="studio", models=machines()[1].models, bandwidth=800, memory_bytes=int(64e9))
    world = World([studio], one_foreign_job(), policy)
    status = policy.status(world.servers[0])
    assert (status.headroom_bytes, status.evictable_bytes) == (int(48e9 - 15e9), None)
    world.run()
    assert policy.status(world.servers[0]).headroom_bytes == int(48e9 - 2e9), "the small one is in memory now"
