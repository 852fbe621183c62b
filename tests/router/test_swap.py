"""Who has to leave memory for whom, and what those lose who want it back."""

from __future__ import annotations

import pytest
from msgspec import structs

from node.types import ModelState, ModelStatus, NodeId, NodeStatus
from router.cost import Lane, Spot
from router.prefix import Mirror
from router.settings import RouterSettings
from router.speed import Speeds
from router.swap import Demand, Swaps

GB = 10**9
SETTINGS = RouterSettings()
HOMES = {"home": 1}


def model(name: str, state: ModelState = ModelState.ABSENT, size: int = 4, **changes: object) -> ModelStatus:
    base = ModelStatus(name=name, state=state, size_bytes=size * GB, load_s=float(size))
    return structs.replace(base, **changes)


def node(*models: ModelStatus, headroom: int = 0) -> NodeStatus:
    return NodeStatus(node=NodeId("n"), bandwidth=100.0, headroom_bytes=headroom * GB, models=models)


def swaps() -> tuple[Swaps, Demand, Speeds]:
    speeds, demand = Speeds(SETTINGS), Demand(SETTINGS)
    return Swaps(SETTINGS, speeds, demand), demand, speeds


def lane(status: NodeStatus, name: str, speeds: Speeds, evicts: tuple[str, ...] = ()) -> Lane:
    held = next(m for m in status.models if m.name == name)
    made = Lane(status, held, speeds.pace(status, held, 0.0), Mirror(), Spot())
    made.evicts = evicts
    return made


def test_whoever_is_cheapest_to_bring_back_leaves_until_it_fits() -> None:
    made, *_ = swaps()
    ready = ModelState.READY
    status = node(model("new", size=10), model("big", ready, 20), model("small", ready, 3), model("mid", ready, 5))
    assert made.evicts(status, status.models[0]) == ("big", "mid", "small")
    roomier = structs.replace(status, headroom_bytes=4 * GB)
    assert made.evicts(roomier, status.models[0]) == ("mid", "small")
    assert made.evicts(structs.replace(status, headroom_bytes=10 * GB), status.models[0]) == ()


def test_a_model_that_left_when_another_came_did_not_fit_beside_it() -> None:
    made, *_ = swaps()
    ready, loading = ModelState.READY, ModelState.LOADING
    before = node(model("home", ready), model("guest"), headroom=90)
    made.seen(None, before)
    assert made.evicts(before, before.models[1]) == ()
    after = node(model("home"), model("guest", loading), headroom=90)
    made.seen(before, after)
    assert made.evicts(before, before.models[1]) == ("home",)
    together = node(model("home", ready), model("guest", ready), headroom=90)
    made.seen(after, together)  # They do fit: it had left for another reason.
    assert made.evicts(before, before.models[1]) == ()
    made.seen(before, after)
    made.drop(NodeId("n"))
    assert made.evicts(before, before.models[1]) == ()


def test_how_often_a_name_is_asked_for() -> None:
    demand = Demand(RouterSettings(names_limit=2))
    for n in range(50):
        demand.note("home", 100 if n < 25 else 200, 10.0 * n)
    assert demand.rate(["home", "alias"], 490.0) == pytest.approx(0.1)
    assert demand.rate(["home"], 490.0 + 1000) == pytest.approx(0.001)  # It fades.
    assert 150 < demand.tokens(["home"]) < 200
    assert demand.rate(["other"], 490.0) == demand.tokens(["other"]) == 0.0
    demand.note("x", 1, 0.0)
    demand.note("y", 1, 0.0)
    assert demand.rate(["home"], 490.0) == 0.0


def test_the_guard_grows_with_demand_and_is_shared_by_homes() -> None:
    made, demand, speeds = swaps()
    status = node(model("home", ModelState.READY), model("guest", own=False))
    guest = lane(status, "guest", speeds, ("home",))
    assert made.guard(guest, HOMES, 0.0).weight == 0.0  # Nobody has asked for it yet.
    for n in range(5):
        demand.note("home", 100, 100.0 * n)
    calm = made.guard(guest, HOMES, 400.0)
    assert calm.weight == pytest.approx(0.01, rel=0.2)
    assert calm.back_s == 4.0
    assert not calm.gone
    assert calm.why == "'home', asked for every 100 s, would have to wait until it is back in memory, which takes 4.0 s"
    assert made.guard(guest, {"home": 2}, 400.0).weight < calm.weight
    for n in range(30):
        demand.note("home", 5000, 400.0 + 2 * n)
    busy = made.guard(guest, HOMES, 458.0)
    assert busy.weight > 8 * calm.weight  # Who waits there makes others wait behind him.
    assert busy.weight <= SETTINGS.guard_cap / 1.9


def test_a_guest_that_is_in_already_keeps_the_home_model_out() -> None:
    made, demand, speeds = swaps()
    for n in range(5):
        demand.note("home", 100, 100.0 * n)
    status = node(model("home"), model("guest", ModelState.READY, own=False))
    away = made.guard(lane(status, "guest", speeds), HOMES, 400.0)
    assert away.gone
    assert away.weight > 0
    assert made.guard(lane(structs.replace(status, headroom_bytes=9 * GB), "guest", speeds), HOMES, 400.0).weight == 0.0
    own = node(model("home"), model("guest", ModelState.READY))
    assert made.guard(lane(own, "guest", speeds), HOMES, 400.0).weight == 0.0
