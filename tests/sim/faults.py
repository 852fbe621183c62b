"""What can go wrong, one function each, and the nemesis that mixes them."""

from __future__ import annotations

from collections.abc import Callable

from election.messages import Leave, Retune
from tests.sim.world import Node, World


def bye(world: World, node: Node) -> None:
    """`down`: hands over, says goodbye, ends."""
    world.say(node.id, "is told to leave")
    node.leaving = True
    world.inject(node, Leave())


def kill(world: World, node: Node) -> None:
    """The process dies, the kernel closes its links."""
    world.kill(node)


def power(world: World, node: Node) -> None:
    """The machine dies: nobody is told."""
    world.kill(node, fin=False)


def cut(world: World, node: Node) -> None:
    """The cable is out: the node runs on and hears nobody."""
    world.cut(node.id)


def stall(world: World, node: Node, seconds: float = 2.0) -> None:
    """SIGSTOP, swap, a sleeping lid: messages queue up, timers come late."""
    world.stall(node, seconds)


def deaf(world: World, node: Node, seconds: float) -> None:
    """The radio is off its channel: nothing in, nothing out."""
    node.deaf_until = world.now + seconds
    world.say(node.id, f"radio deaf for {seconds:.2f} s")


def restart(world: World, node: Node) -> None:
    if not node.up:
        world.start(node)


def split(world: World, inside: set[str]) -> None:
    """Two halves that do not hear each other; replaces what was blocked before."""
    world.blocked = {(a, b) for a in world.nodes for b in world.nodes if (a in inside) != (b in inside)}
    world.say(",".join(sorted(inside)) or "-", "split from the rest")


def one_way(world: World, a: str, b: str) -> None:
    """b does not hear a any more."""
    world.blocked.add((a, b))
    world.say(a, f"is no longer heard by {b}")


def mute(world: World, node: Node) -> None:
    world.blocked |= {(node.id, other) for other in world.nodes}
    world.say(node.id, "is heard by nobody")


def deafen(world: World, node: Node) -> None:
    world.blocked |= {(other, node.id) for other in world.nodes}
    world.say(node.id, "hears nobody")


def heal(world: World) -> None:
    world.blocked = set()
    world.say("-", "every link works again")


def retune(world: World, node: Node, priority: int) -> None:
    """`config set mesh-priority`."""
    node.priority = priority
    world.say(node.id, f"priority is set to {priority}")
    world.inject(node, Retune(priority))


def mend(world: World) -> None:
    """No fault is left: links, stalls, radios; every node runs."""
    heal(world)
    for node in world.nodes.values():
        node.deaf_until = 0.0
        world.resume(node)
        if node.up and node.leaving:
            world.kill(node)
        restart(world, node)


def _random_split(world: World) -> None:
    split(world, {n for n in world.nodes if world.rng.random() < 0.5})


def _random_one_way(world: World) -> None:
    a, b = world.rng.sample(sorted(world.nodes), 2)
    one_way(world, a, b)


def _some(act: Callable[[World, Node], None]) -> Callable[[World], None]:
    def on_any(world: World) -> None:
        node = world.nodes[world.rng.choice(sorted(world.nodes))]
        if node.up:
            act(world, node)

    return on_any


def _restart_any(world: World) -> None:
    restart(world, world.nodes[world.rng.choice(sorted(world.nodes))])


NEMESIS: tuple[Callable[[World], None], ...] = (
    _random_split,
    _random_one_way,
    heal,
    _restart_any,
    _restart_any,
    _some(mute),
    _some(deafen),
    _some(bye),
    _some(kill),
    _some(power),
    _some(lambda w, n: stall(w, n, w.rng.uniform(0.1, 4.0))),
    _some(lambda w, n: stall(w, n, w.rng.uniform(10.0, 20.0))),
    _some(lambda w, n: deaf(w, n, w.rng.uniform(0.08, 1.0))),
    _some(lambda w, n: retune(w, n, w.rng.choice((0, 100, 200)))),
)


def unleash(world: World, until: float) -> None:
    """Random faults, up to 3 s apart; each seed draws from its own share of them, so that rare mixes occur too."""
    mix = world.rng.sample(NEMESIS, world.rng.randint(3, len(NEMESIS)))
    while world.now < until:
        world.run(world.now + world.rng.random() * 3.0)
        world.rng.choice(mix)(world)
