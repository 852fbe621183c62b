"""A share of the simulations. The rest: `make sim`, or `python -m tests.sim --minutes M`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from election.messages import Reign, Role
from election.peers import Peers
from tests.sim import broken, faults, runs, scenarios
from tests.sim.checkers import NoTermGoesBack, OneHolderPerTerm, TheDeafDeposeNobody, ViolationError, all_checkers
from tests.sim.net import BAD_WIFI, Net
from tests.sim.runs import Setup
from tests.sim.summary import Job, Summary
from tests.sim.world import World

ROOT = Path(__file__).parents[2]
PAST_FAILURES = (
    15,
    48,
    79,
    84,
    120,
    206,
    245,
    1000380,
    1000760,
    51000357,
    51000548,
    60000227,
    60000309,
    62000348,
)  # seeds that once showed a fault, of the machine or of the world


def replay(job: Job, seed: int) -> runs.Result:
    """Runs one job; a failure prints how to see it again."""
    try:
        if job.kind == "chaos":
            return runs.chaos(seed, job.nodes or None)
        if job.kind == "fault":
            return runs.one_fault(seed, job.net, job.fault)
        return runs.quiet(seed, job.net, job.nodes, job.hours)
    except AssertionError as error:
        pytest.fail(f"seed {seed}: {error}\nreplay: {job.command(seed)}", pytrace=False)


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_chaos_ends_in_one_agreed_coordinator(first: int) -> None:
    for seed in range(first, first + 20):
        assert replay(Job("chaos", first, 20), seed).agreed_s <= runs.FAR_AGREE_S


@pytest.mark.parametrize("seed", PAST_FAILURES)
def test_seeds_that_failed_once_hold_now(seed: int) -> None:
    assert replay(Job("chaos", seed, 1), seed).steps > 0


@pytest.mark.parametrize("nodes", [9, 16])
def test_chaos_with_many_nodes(nodes: int) -> None:
    assert replay(Job("chaos", 500, 1, nodes=nodes), 500).agreed_s <= runs.AGREE_S


# The bounds are the measured maxima of 60 seeds (docs/election.md), rounded up.
@pytest.mark.parametrize(
    ("net", "fault", "bound_s"),
    [
        ("wired", "bye", 0.05),
        ("wired", "kill", 0.05),
        ("wired", "cut", 0.6),
        ("wired", "stall", 0.6),
        ("wifi", "bye", 0.2),
        ("wifi", "kill", 0.2),
        ("wifi", "cut", 0.9),
        ("wifi", "stall", 0.9),
        ("bad", "bye", 0.5),
        ("bad", "kill", 0.5),
        ("bad", "cut", 1.5),
        ("bad", "stall", 1.5),
    ],
)
def test_one_fault_costs_one_takeover_and_so_long(net: str, fault: str, bound_s: float) -> None:
    for seed in range(4):
        result = replay(Job("fault", 0, 4, net=net, fault=fault), seed)
        assert result.agreed_s <= bound_s, f"seed {seed}"
        assert result.takeovers == 1, f"seed {seed}"


@pytest.mark.parametrize(("net", "nodes"), [("wired", 2), ("wifi", 3), ("bad", 5)])
def test_quiet_hours_have_no_takeover(net: str, nodes: int) -> None:
    assert replay(Job("quiet", 7, 1, net=net, nodes=nodes, hours=0.15), 7).simulated_s > 500


def test_the_same_seed_gives_the_same_trace() -> None:
    setup = Setup(narrate=True)
    first = runs.chaos(11, setup=setup)
    second = runs.chaos(11, setup=setup)
    assert first == second
    assert setup.worlds[0].transcript == setup.worlds[1].transcript
    assert first.digest != runs.chaos(12).digest


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_golden_transcripts(name: str) -> None:
    golden = (scenarios.FOLDER / f"{name}.txt").read_text()
    assert scenarios.text(name) == golden, "meant? then: python -m tests.sim --rewrite"


def test_the_command_replays_a_seed() -> None:
    command = [sys.executable, "-m", "tests.sim", "--seed", "3", "--nodes", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "coordinates, term" in done.stdout
    assert "holds: agreed after" in done.stdout


def test_a_summary_counts_violations_and_names_the_replay() -> None:
    job, summary = Job("fault", 5, 2, net="bad", fault="cut"), Summary()
    violation = {"replay": job.command(5), "error": "x"}
    summary.add(job, [runs.Result(0.5, 1, 98.0, 10, 0)], [violation], core_s=2.0)
    figures = {f.name: f for f in summary.figures(1.0)}
    assert (figures["violations"].value, figures["violations"].holds) == (1, False)
    assert violation["replay"] == "python -m tests.sim --seed 5 --fault cut --net bad"
    agreed = figures["election: agreed after cut, 100 ms jitter, 5 % loss: p99"]
    assert (agreed.value, agreed.unit, agreed.goal, agreed.holds) == (500.0, "ms", "<= 1500", True)


@pytest.mark.parametrize("rule", [rule for rule in broken.RULES if rule.run is not broken._quiet], ids=lambda b: b.rule)
def test_a_broken_rule_is_caught(rule: broken.Broken) -> None:
    caught = broken.catch(rule, 30)
    assert caught.seeds is not None, "no checker minds"


# Scenes on the virtual clock


def settled(priorities: list[int], net: Net = Net()) -> World:  # noqa: B008 - frozen
    world = World(1, priorities, net=net, checkers=all_checkers())
    world.run(60)
    return world


def test_a_higher_priority_coordinates_after_the_handover_time() -> None:
    world = World(1, [100, 100, 200], checkers=all_checkers())
    world.kill(world.nodes["n2"])
    world.run(60)
    joined = world.now
    world.start(world.nodes["n2"])
    world.run(joined + 29)
    assert world.agreed() in ("n0", "n1")
    world.run(joined + 31)
    assert world.agreed() == "n2"
    assert world.takeovers[-1].why == "priority 200 > 100, handed over"


def test_of_equal_priorities_the_longer_uptime_succeeds() -> None:
    world = settled([100, 100, 100])
    coordinator = world.agreed()
    assert coordinator is not None
    older, younger = (n for n in world.nodes if n != coordinator)
    world.kill(world.nodes[younger])
    world.start(world.nodes[younger])
    world.run(90)
    assert world.agreed() == coordinator, "uptime alone takes nothing over"
    world.kill(world.nodes[coordinator])
    world.run(91)
    assert world.agreed() == older


def test_priority_0_never_coordinates() -> None:
    world = settled([100, 0, 0])
    assert world.agreed() == "n0"
    world.kill(world.nodes["n0"])
    world.run(70)
    rest = [world.nodes[n].election for n in ("n1", "n2")]
    assert [(m.coordinator, m.role) for m in rest] == [(None, Role.FOLLOWER)] * 2
    world.kill(world.nodes["n2"])
    world.run(80)
    last = world.nodes["n1"].election
    assert (last.coordinator, last.alone) == (None, True)
    assert {t.node for t in world.takeovers} == {"n0"}
    world.start(world.nodes["n0"])
    world.run(83)
    assert world.agreed() == "n0"


def test_two_nodes_that_lose_each_other_rule_alone_and_find_back_by_rank() -> None:
    world = settled([200, 100])
    world.cut("n1")
    world.run(70)
    assert [n.election.alone for n in world.nodes.values()] == [True, True]
    assert {n.election.term for n in world.nodes.values()} == {1}, "alone takes no term"
    faults.heal(world)
    assert world.run_until(lambda: world.agreed() == "n0", 1.0) is not None


def test_a_deaf_radio_deposes_nobody() -> None:
    world = settled([100] * 4, BAD_WIFI)
    coordinator, before = world.agreed(), len(world.takeovers)
    for second in range(60, 100, 4):
        world.run(second)
        node = next(n for n in world.nodes.values() if n.id != coordinator)
        faults.deaf(world, node, 2.0)
    world.run(110)
    assert len(world.takeovers) == before
    assert world.agreed() == coordinator


def test_one_way_links_leave_one_coordinator() -> None:
    """Who does not hear the coordinator itself follows it on the word of those that do."""
    world = settled([200, 100, 100])
    faults.one_way(world, "n0", "n1")
    world.run(120)
    assert world.agreed() == "n0"
    assert len({t.term for t in world.takeovers}) == 1


def test_a_node_that_keeps_failing_waits_longer_each_time() -> None:
    world = settled([100, 100, 200])
    flaky, waits = world.nodes["n2"], []
    for _ in range(3):
        world.kill(flaky)
        world.run(world.now + 5)
        world.start(flaky)
        begin = world.now
        took = world.run_until(lambda: world.agreed() == "n2", 700, 0.1)
        assert took is not None, f"{begin}"
        waits.append(round(took))
    assert waits == [60, 120, 240]


def test_two_sites_near_first_and_each_on_its_own_when_the_line_is_cut() -> None:
    world = World(4, [100, 200], sites=[0, 1], checkers=all_checkers())
    world.run(60)
    assert world.agreed() == "n0", "the added side ranks last, whatever its priority"
    world.cut("n1")
    world.run(70)
    assert [n.election.alone for n in world.nodes.values()] == [True, True]
    faults.heal(world)
    assert world.run_until(lambda: world.agreed() == "n0", 10.0) is not None


# Checkers catch what they are for


def test_a_second_holder_of_a_reign_is_caught() -> None:
    world = World(1, [100, 100], checkers=[OneHolderPerTerm()])
    world.run(5)
    thief = next(n for n in world.nodes.values() if n.id != world.agreed())
    thief.election.role, thief.election.coordinator = Role.COORDINATOR, thief.id
    with pytest.raises(ViolationError, match="both hold term"):
        world.run(6)


def test_a_follower_of_nobody_who_coordinated_is_caught() -> None:
    world = World(1, [100, 100], checkers=[OneHolderPerTerm()])
    world.run(5)
    follower = next(n for n in world.nodes.values() if n.id != world.agreed())
    follower.election.reign = Reign(99, follower.election.rank(world.now))
    with pytest.raises(ViolationError, match="held by None"):
        world.run(6)


def test_a_term_that_goes_back_is_caught() -> None:
    world = World(1, [100, 100], checkers=[NoTermGoesBack()])
    world.run(5)
    world.nodes[world.agreed() or ""].election.reign = Reign(0)
    with pytest.raises(ViolationError, match="goes back"):
        world.run(6)


def test_a_deaf_usurper_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peers, "live", lambda self, now: [])
    world = World(1, [100, 100], checkers=[TheDeafDeposeNobody()])
    machine = world.nodes["n0"].election
    monkeypatch.setattr(machine, "_take", lambda now: machine._take_office(now, "broken on purpose"))
    with pytest.raises(ViolationError, match="hears nobody"):
        world.run(5)
