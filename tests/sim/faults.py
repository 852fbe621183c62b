"""What can go wrong, one function each, and the nemesis that mixes them. Times in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from election.messages import Leave, Retune
from tests.sim.node import Node
from tests.sim.world import GATEWAY, World

TWIN_S = 2.0  # by then a clone that can be reached has been told that its id is taken


def bye(world: World, node: Node) -> None:
    """`down`: hands over, says goodbye, ends."""
    world.say(node, "is told to leave")
    node.leaving = True
    if node.paused_until <= world.now:
        node.elect(Leave())


def kill(world: World, node: Node) -> None:
    """The process dies, the kernel closes its links."""
    world.kill(node)


def power(world: World, node: Node) -> None:
    """The machine dies: nobody is told."""
    world.kill(node, fin=False)


def cut(world: World, node: Node) -> None:
    """The cable is out: the node runs on and hears nobody."""
    world.cut(node.name)


def stall(world: World, node: Node, seconds: float = 2.0) -> None:
    """SIGSTOP, swap, a busy machine: messages queue up, timers come late."""
    world.pause(node, seconds)


def sleep(world: World, node: Node, seconds: float = 60.0) -> None:
    """The lid is closed: nothing comes in, and at waking the clock has jumped."""
    world.pause(node, seconds, asleep=True)


def deaf(world: World, node: Node, seconds: float) -> None:
    """The radio is off its channel: nothing in, nothing out."""
    node.deaf_until = world.now + seconds
    world.say(node, f"radio deaf for {seconds:.2f} s")


def move(world: World, node: Node) -> None:
    """A new address; found anew when addresses are polled next."""
    world.move(node, world.rng.uniform(0.1, 2.1))


def restart(world: World, node: Node) -> None:
    if not node.up:
        world.start(node)


def forget(world: World, node: Node) -> None:
    """Its disk has lost the file of the term (and it restarts, or nobody would notice)."""
    node.disk_term = 0
    if not node.up:
        world.say(node, "has lost its term")
        world.start(node)


def clone(world: World, node: Node) -> None:
    """A second machine with the same disk; settled between the two as soon as anything passes between them."""
    twin = world.clone(node)
    world.at(world.now + world.rng.uniform(0.2, TWIN_S), _settle_twins, world, (twin, node))


def _settle_twins(world: World, pair: tuple[Node, Node]) -> None:
    one, other = pair
    if one.id != other.id:
        return
    if one.runs and other.runs and world.path(one, other):
        world.rename(max(pair, key=lambda n: n.born))
    else:
        world.at(world.now + 0.5, _settle_twins, world, pair)


def split(world: World, inside: set[str]) -> None:
    """Two halves that do not hear each other; replaces what was blocked before."""
    everything = (*world.nodes, GATEWAY)
    world.blocked = {(a, b) for a in everything for b in everything if (a in inside) != (b in inside)}
    world.say(",".join(sorted(inside)) or "-", "split from the rest")


def one_way(world: World, a: str, b: str) -> None:
    """b does not hear a any more."""
    world.blocked.add((a, b))
    world.say(a, f"is no longer heard by {b}")


def mute(world: World, node: Node) -> None:
    world.blocked |= {(node.name, other) for other in (*world.nodes, GATEWAY)}
    world.say(node, "is heard by nobody")


def deafen(world: World, node: Node) -> None:
    world.blocked |= {(other, node.name) for other in (*world.nodes, GATEWAY)}
    world.say(node, "hears nobody")


def heal(world: World) -> None:
    """Every link works; that is a change of links, so everybody announces itself."""
    world.blocked = set()
    world.say("-", "every link works again")
    for node in world.up():
        world.announce(node)


def retune(world: World, node: Node, priority: int) -> None:
    """`config set mesh-priority`."""
    if node.paused_until <= world.now:
        node.priority = priority
        world.say(node, f"priority is set to {priority}")
        node.elect(Retune(priority))


def roam(world: World, node: Node) -> None:
    """It is carried to the other site, and reaches those it knows from there."""
    world.move(node, world.rng.uniform(0.1, 2.1), site=1 - node.site)


def mend(world: World) -> None:
    """No fault is left: links, addresses, stalls, radios, clones; every node runs."""
    world.blocked, world.stale, world.net = set(), set(), replace(world.net, deaf_every_s=0.0)
    world.say("-", "every fault is over")
    for node in list(world.nodes.values()):
        node.deaf_until = 0.0
        world.resume(node)
        if node.up and node.leaving:
            world.kill(node)
        restart(world, node)
    for node in list(world.nodes.values()):
        if any(n.id == node.id and n is not node and n.born <= node.born for n in world.nodes.values()):
            world.rename(node)
    for node in world.nodes.values():
        world.announce(node)


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


def _clone_any(world: World) -> None:
    if not any(name.endswith("'") for name in world.nodes):
        _some(clone)(world)


def _forget_any(world: World) -> None:
    forget(world, world.nodes[world.rng.choice(sorted(world.nodes))])


NEMESIS: tuple[Callable[[World], None], ...] = (
    _random_split,
    _random_one_way,
    heal,
    _restart_any,
    _restart_any,
    _forget_any,
    _some(mute),
    _some(deafen),
    _some(bye),
    _some(kill),
    _some(power),
    _some(lambda w, n: stall(w, n, w.rng.uniform(0.1, 4.0))),
    _some(lambda w, n: stall(w, n, w.rng.uniform(10.0, 20.0))),
    _some(lambda w, n: sleep(w, n, w.rng.uniform(1.0, 25.0))),
    _some(lambda w, n: deaf(w, n, w.rng.uniform(0.08, 1.0))),
    _some(lambda w, n: retune(w, n, w.rng.choice((0, 100, 200)))),
    _some(move),
    _clone_any,
)
ROAMING = _some(roam)  # only where the end is given the time of a mesh with two sites


def unleash(world: World, until: float) -> None:
    """Random faults, up to 3 s apart; each seed draws from its own share of them, so that rare mixes occur too."""
    faults = (*NEMESIS, ROAMING) if len({n.site for n in world.nodes.values()}) > 1 else NEMESIS
    mix = world.rng.sample(faults, world.rng.randint(3, len(faults)))
    while world.now < until:
        world.run(world.now + world.rng.random() * 3.0)
        world.rng.choice(mix)(world)
