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


SCENARIOS: dict[str, Callable[[], World]] = {f.__name__: f for f in (priorities, losses, splits)}


def text(name: str) -> str:
    """The transcript of a scenario: what it is, then one line for every change."""
    world = SCENARIOS[name]()
    return "\n".join([f"# {SCENARIOS[name].__doc__}", "# seconds  who  what", *(world.transcript or []), ""])


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
