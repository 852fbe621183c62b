"""One node id in two processes: a disk that was copied. Who notices, who is asked, and who keeps the id. Pure.

A restart looks alike for a moment: datagrams, announcements and half-open links of the former process linger. So others
believe in two only when both have spoken over the same seconds, and the two themselves only by each other's own word.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

from msgspec import Struct

from mesh.settings import CloneSettings
from mesh.wire import Hello
from node.types import NodeId

Place: TypeAlias = tuple[str, int]  # address and peer port

# Events


class Spoke(Struct, frozen=True):
    """A process of another node was heard: `boot` its nonce, `who` its name and address, where these are known."""

    node: NodeId
    boot: str
    who: str = ""


class Suspected(Struct, frozen=True):
    """Somebody says that this node is at these places, which are not its own."""

    places: tuple[Place, ...]


class Met(Struct, frozen=True):
    """A process with this node's id and another boot nonce answered, just now. `mine` is what it was told."""

    mine: Hello
    theirs: Hello
    address: str


class Tick(Struct, frozen=True):
    pass


Event: TypeAlias = Spoke | Suspected | Met | Tick

# Effects


class Ask(Struct, frozen=True):
    """Who is there? Say hello, and tell Met when it has this node's id."""

    address: str
    peer_port: int


class TakeNewId(Struct, frozen=True):
    """This process gives way."""

    theirs: Hello
    address: str


class Say(Struct, frozen=True):
    """Once, in the log."""

    text: str


Effect: TypeAlias = Ask | TakeNewId | Say


def keeps_id(mine: Hello, theirs: Hello) -> bool:
    """Of two processes with one id the one that runs longer keeps it. Both judge by the same two hellos, so that they
    come to the same result; equal uptimes are settled by the boot nonce."""
    return (mine.uptime_s, mine.boot) > (theirs.uptime_s, theirs.boot)


class Clones:
    """One stay of this node in the mesh; wake it with Tick at `deadline` (seconds on the clock of `now`)."""

    def __init__(self, me: NodeId, settings: CloneSettings | None = None) -> None:
        self._me, self._settings = me, settings or CloneSettings()
        self._boots: OrderedDict[NodeId, Boots] = OrderedDict()  # the one heard last is the last
        self._doubts = Doubts(self._settings)
        self._own: tuple[str, float] | None = None  # what is said of this node's own clone, until when
        self._giving_way = False

    @property
    def deadline(self) -> float | None:
        times = [self._doubts.deadline, self._own[1] if self._own else None, *(b.ends_at for b in self._boots.values())]
        return min((t for t in times if t is not None), default=None)

    def step(self, event: Event, now: float) -> list[Effect]:
        out: list[Effect] = []
        match event:
            case Spoke(node, boot, who):
                if node != self._me:
                    out += self._spoke(node, boot, who, now)
            case Suspected(places):
                self._doubts.add(places, now)
            case Met(mine, theirs, address):
                if theirs.id == mine.id == self._me and theirs.boot != mine.boot:
                    out += self._met(mine, theirs, address, now)
            case Tick():
                pass
            case _:
                assert_never(event)
        self._expire(now)
        return out + [Ask(*place) for place in self._doubts.due(now)]

    def notes(self) -> list[str]:
        """One line for each id that two processes have now."""
        own = [self._own[0]] if self._own else []
        return own + [boots.said for boots in self._boots.values() if boots.said]

    def _spoke(self, node: NodeId, boot: str, who: str, now: float) -> Iterator[Effect]:
        boots = self._boots.get(node)
        if boots is None:
            boots = self._boots[node] = Boots(self._settings)
            if len(self._boots) > self._settings.nodes_max:
                self._boots.popitem(last=False)
        self._boots.move_to_end(node)
        boots.heard(boot, who, now)
        if boots.two_at_once(now) and not boots.said:
            boots.said = (
                f"two machines have the node id {node}{boots.shown()}: a copied disk. The one that started later takes "
                "a new id by itself; should it not, delete node/id in its home folder and restart it"
            )
            yield Say(boots.said)

    def _met(self, mine: Hello, theirs: Hello, address: str, now: float) -> Iterator[Effect]:
        said = f"{theirs.name} at {address} has this node's id {self._me}: one disk is a copy of the other"
        stays = keeps_id(mine, theirs)
        if stays and (self._own is None or not self._own[0].startswith(said)):
            yield Say(f"{said}. It started later, so it takes a new id")
        if stays:
            self._own = f"{said}. It started later, so it takes a new id", now + self._settings.fresh_s
        elif not self._giving_way:
            self._giving_way = True
            yield TakeNewId(theirs, address)

    def _expire(self, now: float) -> None:
        if self._own is not None and now >= self._own[1]:
            self._own = None
        for boots in self._boots.values():
            if boots.said and not boots.two_at_once(now):
                boots.said = ""


@dataclass(slots=True)
class _Life:
    """One process, without a pause: when it was first and last heard."""

    first: float
    last: float
    who: str = ""


@dataclass(slots=True)
class Boots:
    """The processes that have spoken under one id lately, by boot nonce."""

    settings: CloneSettings
    said: str = ""  # what people are told of it now
    lives: dict[str, _Life] = field(default_factory=dict)

    def heard(self, boot: str, who: str, now: float) -> None:
        life = self.lives.pop(boot, None)
        if life is None or not self._fresh(life, now):
            life = _Life(now, now)
        life.last, life.who = now, who or life.who
        self.lives[boot] = life  # the latest is the last in order
        while len(self.lives) > self.settings.boots_max:
            del self.lives[next(iter(self.lives))]

    def two_at_once(self, now: float) -> bool:
        """Two of them have spoken over the same `overlap_s` seconds, and lately."""
        if len(self.lives) < 2:
            return False
        fresh = [life for life in self.lives.values() if self._fresh(life, now)]
        return any(
            min(a.last, b.last) - max(a.first, b.first) >= self.settings.overlap_s
            for i, a in enumerate(fresh)
            for b in fresh[:i]
        )

    @property
    def ends_at(self) -> float | None:
        """When there are no longer two, if one says no more; None while there is one."""
        if not self.said:
            return None
        return sorted(life.last for life in self.lives.values())[-2] + self.settings.fresh_s

    def shown(self) -> str:
        names = [life.who for life in self.lives.values() if life.who]
        return f" ({' and '.join(names)})" if names else ""

    def _fresh(self, life: _Life, now: float) -> bool:
        return now - life.last < self.settings.fresh_s


@dataclass(slots=True)
class _Doubt:
    ask_at: float
    asked: int = 0


class Doubts:
    """Places where another process is said to be that has this node's id. Each is asked until it had time to answer."""

    def __init__(self, settings: CloneSettings) -> None:
        self._settings = settings
        self._places: dict[Place, _Doubt] = {}

    @property
    def deadline(self) -> float | None:
        return min((doubt.ask_at for doubt in self._places.values()), default=None)

    def add(self, places: Collection[Place], now: float) -> None:
        for place in places:
            if place not in self._places and len(self._places) < self._settings.places_max:
                self._places[place] = _Doubt(now)

    def due(self, now: float) -> list[Place]:
        """Places to ask now. A stalled process answers late, so each is asked again, ever less often; one that was
        asked often enough is left alone until it is forgotten."""
        s, asked = self._settings, []
        for place, doubt in list(self._places.items()):
            if now < doubt.ask_at:
                continue
            if doubt.asked > s.asks:
                del self._places[place]
                continue
            doubt.asked += 1
            if doubt.asked > s.asks:
                doubt.ask_at = now + s.forget_s
            else:
                asked.append(place)
                doubt.ask_at = now + s.ask_first_s * 2.0 ** (doubt.asked - 1)
        return asked
