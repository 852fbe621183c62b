"""Scripted runs whose transcripts are kept (transcripts/*.txt) and read as the specification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.sim import faults
from tests.sim.checkers import all_checkers
from tests.sim.world import World

FOLDER = Path(__file__).with_name("transcripts")


def priorities() -> World:
    """A node of priority 200 joins two of 100; priority 0 never coordinates; the better node leaves."""
    world = World(1, [100, 100, 200, 0], checkers=all_checkers(), narrate=True)
    world.kill(world.nodes["n2"])
    world.run(20)
    world.start(world.nodes["n2"])
    world.run(60)
    faults.bye(world, world.nodes["n2"])
    world.run(65)
    faults.kill(world, world.nodes["n0"])
    faults.kill(world, world.nodes["n1"])
    world.run(70)
    world.start(world.nodes["n0"])
    world.run(75)
    return world


def losses() -> World:
    """Five equal nodes: the coordinator is killed, the next one cut off and back, the next one stalls."""
    world = World(2, [100] * 5, checkers=all_checkers(), narrate=True)
    world.run(30)
    for fault in (faults.kill, faults.cut, faults.stall):
        coordinator = world.agreed()
        assert coordinator is not None
        fault(world, world.nodes[coordinator])
        world.run(world.now + 10)
        faults.mend(world)
        world.run(world.now + 10)
    return world


def splits() -> World:
    """Five nodes fall into 2 and 3 and meet again; then one is deaf for a while and deposes nobody."""
    world = World(3, [100] * 5, checkers=all_checkers(), narrate=True)
    world.run(30)
    faults.split(world, {"n3", "n4"})
    world.run(40)
    faults.heal(world)
    world.run(50)
    faults.deaf(world, world.nodes["n0"], 5.0)
    world.run(60)
    return world


def two_macs() -> World:
    """Two Macs: one is lost silently, the other rules itself and has the name; it returns; then a cable is out, and who
    hears nothing at all lets the name go."""
    world = World(4, [200, 100], checkers=all_checkers(), narrate=True)
    world.run(30)
    faults.power(world, world.nodes["n0"])
    world.run(45)
    world.start(world.nodes["n0"])
    world.run(90)
    faults.cut(world, world.nodes["n1"])
    world.run(105)
    faults.heal(world)
    world.run(115)
    return world


def clone() -> World:
    """A copied disk: while two have one id, the one that was there first is undisturbed; the younger takes a new id."""
    world = World(5, [200, 100, 100], checkers=all_checkers(), narrate=True)
    world.run(30)
    faults.clone(world, world.nodes["n0"])
    world.run(70)
    return world


def sleep() -> World:
    """The coordinator's lid is closed for ten minutes; at waking it steps back before it speaks, and is a follower. It
    has a better priority, so it gets its place back, later."""
    world = World(6, [200, 100, 100], checkers=all_checkers(), narrate=True)
    world.run(90)
    faults.sleep(world, world.nodes["n0"], 600)
    world.run(730)
    return world


def two_sites() -> World:
    """Two Macs here, one of higher priority at another site, added by hand: it ranks last. The line is cut and comes
    back; then the Macs here are lost, and return."""
    world = World(7, [100, 100, 200], sites=[0, 0, 1], checkers=all_checkers(), narrate=True)
    world.run(40)
    faults.split(world, {"n2"})
    world.run(60)
    faults.heal(world)
    world.run(80)
    faults.power(world, world.nodes["n0"])
    faults.power(world, world.nodes["n1"])
    world.run(100)
    world.start(world.nodes["n0"])
    world.start(world.nodes["n1"])
    world.run(140)
    return world


def deaf_radio() -> World:
    """The coordinator's radio is off its channel, longer each time: the others learn patience; 3 s are too much."""
    world = World(8, [200, 100, 100], checkers=all_checkers(), narrate=True)
    world.run(30)
    for seconds in (0.2, 0.35, 0.6, 0.8, 3.0):
        faults.deaf(world, world.nodes["n0"], seconds)
        world.run(world.now + 10)
    return world


def hold_down() -> World:
    """A node of better priority that fails soon after each takeover: it gets its turn after 30 s, 60 s, 120 s."""
    world = World(9, [100, 100, 200], checkers=all_checkers(), narrate=True)
    world.run(90)
    for _ in range(3):
        faults.kill(world, world.nodes["n2"])
        world.run(world.now + 5)
        world.start(world.nodes["n2"])
        world.run_until(lambda: world.agreed() == "n2", 200)
        world.run(world.now + 5)
    return world


SCENARIOS: dict[str, Callable[[], World]] = {
    f.__name__: f for f in (priorities, losses, splits, two_macs, clone, sleep, two_sites, deaf_radio, hold_down)
}


def text(name: str) -> str:
    """The transcript of a scenario: what it is, then one line for every change."""
    world = SCENARIOS[name]()
    return "\n".join(
        [
            f"# {' '.join((SCENARIOS[name].__doc__ or '').split())}",
            "# seconds  who  what",
            *(world.transcript or []),
            "",
        ]
    )


def rewrite() -> list[Path]:
    """Writes the golden files anew; returns those that changed."""
    FOLDER.mkdir(exist_ok=True)
    changed = []
    for name in SCENARIOS:
        path, now = FOLDER / f"{name}.txt", text(name)
        if not path.exists() or path.read_text() != now:
            path.write_text(now)
            changed.append(path)
    return changed
