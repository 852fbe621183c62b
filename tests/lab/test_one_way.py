"""A way that carries in one direction only, and an address that changes under a request: a client waits for neither
until a connection's silence is over.

mac1 coordinates and holds no model, mac2 serves, and the client asks at mac3, which has neither."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh.answers import Node
from mesh.settings import LinkSettings
from router.settings import RouterSettings
from tests.lab.conftest import Place
from tests.lab.macs import Asker, Mac, agreed, wait_for, wait_until

Figure = Callable[[str, float], None]
SILENCE_S = LinkSettings().silence_s
BEFORE_S = SILENCE_S + RouterSettings().hold_s  # what it took when only the link's silence told
WATCH_S = 3.0


class Asked:
    """A client that asks all the time, and how long it waited since something happened."""

    def __init__(self, client: Asker) -> None:
        self._client, self.since = client, time.monotonic()

    def watch(self) -> None:
        self.since = time.monotonic()

    def _answered_late(self) -> bool:
        return sum(one.start >= self.since + WATCH_S for one in self._client.answered()) > 2

    def slowest_s(self) -> float:
        """Of the requests that were open since then: those asked later have answers, so the earlier have ended."""
        wait_until(self._answered_late, "the client is answered")
        return max(one.end - one.start for one in self._client.said() if one.end >= self.since)


@contextmanager
def asking(mac: Mac, model: str, **of: Any) -> Iterator[Asked]:
    """A client on that Mac, of which no request fails."""
    with Asker(mac.lab, mac.name, "http://localhost:4000/v1", model, **of) as client:
        client.go()
        wait_until(client.answered, "the client is answered")
        yield Asked(client)
        assert [one.error for one in client.end() if one.error] == []


@pytest.fixture
def three(place: Callable[[int], Place], model: Path) -> list[Mac]:
    lab = place(3)
    macs = [lab.mac(1, mesh_priority=200), lab.mac(2, model=model), lab.mac(3, mesh_priority=0)]
    macs[0].start()
    wait_until(lambda: macs[0].coordinator == "mac1", "the first rules itself")
    for mac in macs[1:]:
        mac.start()
    wait_until(lambda: agreed(macs) and macs[2].coordinator == "mac1", "all follow the first")
    return macs


def shown(watcher: Mac, name: str, state: str) -> Node | None:
    found = watcher.sees(name)
    return found if found is not None and found.state == state else None


def test_an_edge_cut_off_one_way_from_a_coordinator_that_lives_goes_on_without_it(
    three: list[Mac], model: Path, figure: Figure
) -> None:
    coordinator, _, edge = three

    def cut_off(source: Mac, sink: Mac, asked: Asked) -> None:
        term = edge.log.rulings()[-1].term
        source.lab.partition([source.name], [sink.name], one_way=True)
        asked.watch()
        deaf = wait_for(lambda: shown(sink, source.name, "dead"), "who hears nothing knows it")
        assert "silent" in deaf.reason
        deaf = wait_for(lambda: shown(source, sink.name, "dead"), "and who is not heard knows it")
        assert deaf.reason == "it is heard, but does not hear this node"
        figure(f"no way from {source.name} to {sink.name}, slowest request", asked.slowest_s())
        assert max(route.queue_ms for route in edge.routes(3, asked.since)) < 1000 * BEFORE_S
        source.lab.rejoin()
        wait_until(lambda: agreed(three), "the mesh is whole")
        assert edge.log.rulings()[-1].term == term, "nobody was succeeded"

    with asking(edge, model.name, pause_s=0.05) as asked:
        cut_off(coordinator, edge, asked)
        cut_off(edge, coordinator, asked)


def test_no_request_waits_on_a_connection_to_an_address_that_is_gone(
    three: list[Mac], model: Path, figure: Figure
) -> None:
    _, serving, edge = three

    def move(moved: Mac, watcher: Mac, number: int, asked: Asked) -> None:
        new = f"{moved.lab.subnet}.0.{number}"
        moved.lab.readdr(moved.name, new)
        asked.watch()
        wait_until(lambda: new in (watcher.sees(moved.name) or moved_away).addresses, "its new address is known")
        figure(f"a new address of {moved.name}, slowest request", asked.slowest_s())
        attempts = [attempt for route in edge.client.routes(1000).routes for attempt in route.attempts]
        assert max((attempt.ms for attempt in attempts if attempt.error), default=0.0) < 1000 * SILENCE_S
        wait_until(lambda: agreed(three), "the mesh is whole")

    moved_away = Node(name="", id="")
    with asking(edge, model.name, workers=2, max_tokens=40) as asked:
        move(serving, edge, 101, asked)
        move(edge, serving, 102, asked)
