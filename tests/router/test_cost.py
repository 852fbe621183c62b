"""The terms of a cost: each one's seconds, and that they are the total."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from node.types import ModelState, ModelStatus, NodeId, NodeStatus, Pressure, RequestId
from router.cost import NAMES, Guard, Lane, Price, Spot, place, price
from router.events import Candidate, Request
from router.prefix import Mirror
from router.reasons import Used, explain, priced
from router.settings import RouterSettings
from router.speed import Pace

SETTINGS = RouterSettings()
GB = 10**9


def lane(
    slots: int = 2,
    *,
    rtt_s: float = 0.004,
    headroom: int = 16 * GB,
    load_s: float = 0.0,
    streams: int = 0,
    tps: tuple[float, float] = (200.0, 20.0),
    spot: Spot | None = None,
    name: str = "qwen",
) -> Lane:
    model = ModelStatus(name=name, state=ModelState.READY, slots=slots, size_bytes=4 * GB)
    status = NodeStatus(node=NodeId("n"), rtt_s=rtt_s, headroom_bytes=headroom, models=(model,))
    pace = Pace(1 / tps[0], 1 / tps[0] / 30_000, 1 / tps[1])
    made = Lane(status, model, pace, Mirror(), spot or Spot(0.0, streams))
    made.load_s = made.whole_s = load_s
    if load_s > 0:
        made.load_why = "not in memory"
    return made


def request(tokens: int = 400, **changes: object) -> Request:
    return structs.replace(Request(id=RequestId("1"), models=("qwen",), prompt_tokens=tokens), **changes)


def terms(of: Lane, tokens: int = 400, output: float = 100.0) -> dict[str, float]:
    return dict(zip(NAMES, price(of, request(tokens), output, SETTINGS).terms, strict=True))


def total(of: Lane, tokens: int = 400, output: float = 100.0) -> float:
    return price(of, request(tokens), output, SETTINGS).total


def test_the_terms_of_a_free_node() -> None:
    found = terms(lane())
    assert [found[n] for n in ("wait", "load", "network", "hurt", "guard")] == [0.0, 0.0, 0.004, 0.0, 0.0]
    assert found["prefill"] == pytest.approx(0.03 + 400 / 200 * (1 + 200 / 30_000))  # later tokens are dearer
    assert found["decode"] == pytest.approx(0.25 * 100 / 20)
    assert found["headroom"] == pytest.approx(0.005)  # half of the most, at 16 GB left


def test_waiting_is_for_a_slot_or_for_the_prompts_ahead_whichever_is_longer() -> None:
    busy = lane(slots=2)
    busy.hold(9.0)
    assert busy.slot_s() == 0.0
    busy.spot.busy_s = 1.5
    assert terms(busy)["wait"] == 1.5
    busy.spot.busy_s = 0.0
    busy.hold(4.0)
    assert terms(busy)["wait"] == 4.0
    busy.hold(7.0)  # queued behind the one that ends first
    assert terms(busy)["wait"] == 7.0


def test_streams_slow_each_other_and_a_prompt_stops_them_all() -> None:
    busy = lane(slots=4, streams=2)
    found = terms(busy)
    assert found["decode"] == pytest.approx(0.25 * 100 / 20 * 1.3)
    read_s = 0.03 + 2 * (1 + 200 / 30_000) + 1.15 / 20  # one step of the two between the prompt's pieces
    assert found["prefill"] == pytest.approx(read_s)
    assert found["hurt"] == pytest.approx(0.25 * 2 * (read_s + 0.15 * 100 / 20))


def test_what_the_cache_holds_is_not_read_again_nor_what_is_ahead_in_the_walk() -> None:
    warm = lane()
    warm.mirror.bound(10, 0)
    warm.mirror.insert((1, 2), 100)
    ask = request(400, blocks=(1, 2, 3), block_tokens=100)
    assert price(warm, ask, 1.0, SETTINGS).cached == 200
    warm.spot.ahead.update((1, 2, 3, 4))
    assert price(warm, ask, 1.0, SETTINGS).cached == 300
    whole = request(300, blocks=(1, 2, 3), block_tokens=100)
    assert price(warm, whole, 1.0, SETTINGS).cached == 299  # The last token is always read.
    assert price(lane(), ask, 1.0, SETTINGS).total > price(warm, ask, 1.0, SETTINGS).total


def test_a_load_that_already_goes_on_is_not_waited_for_twice() -> None:
    coming = lane(load_s=8.0)
    coming.coming, coming.steady = True, False
    coming.spot.busy_s = 9.0
    assert (terms(coming)["wait"], terms(coming)["load"]) == (9.0, 0.0)
    coming.spot.busy_s = 3.0
    assert (terms(coming)["wait"], terms(coming)["load"]) == (3.0, 5.0)


def test_the_node_with_more_memory_left_wins_a_tie_and_only_a_tie() -> None:
    roomy, tight = lane(headroom=100 * GB), lane(headroom=GB)
    assert total(roomy) < total(tight)
    assert total(lane(headroom=0, rtt_s=0.0)) < total(lane(headroom=10**12, rtt_s=0.02))


def test_a_load_that_leaves_little_memory_costs_part_of_the_next_ones_eviction() -> None:
    roomy, tight = lane(headroom=100 * GB, load_s=8.0), lane(headroom=4 * GB, load_s=8.0)
    assert terms(tight)["headroom"] == pytest.approx(0.25 * 8.0)
    assert terms(roomy)["headroom"] == pytest.approx(0.25 * 8.0 * 4 / 100)
    warned = lane(headroom=100 * GB, load_s=8.0)
    warned.status = structs.replace(warned.status, pressure=Pressure.WARN)
    assert terms(warned)["headroom"] == pytest.approx(0.25 * 8.0)


def test_who_takes_the_place_of_a_nodes_own_model_pays_for_those_who_will_want_it() -> None:
    guest = lane(load_s=5.0)
    guest.evicts, guest.back_s = ("own",), 14.0
    free = total(guest)
    guest.guard = Guard(0.01, 14.0, why="'own', asked for every 100 s")
    held_s = 5.0 + terms(guest)["prefill"] + 100 / 20
    assert terms(guest)["guard"] == pytest.approx(0.01 * (held_s + 14.0) ** 2 / 2)
    assert total(guest) == pytest.approx(free + terms(guest)["guard"])
    assert terms(guest)["hurt"] == pytest.approx(0.25 * 14.0)
    away = Guard(0.01, 14.0, gone=True)
    assert away.seconds(10.0) == pytest.approx(0.01 * 10.0 * (5.0 + 14.0))
    assert away.seconds(0.0) == 0.0


def test_the_walk_sees_what_it_has_placed() -> None:
    spot = Spot()
    own, guest = lane(spot=spot), lane(spot=spot, name="guest", load_s=5.0)
    own.whole_s = 14.0
    guest.evicts = ("qwen",)
    found = price(guest, request(), 100.0, SETTINGS)
    place(found)
    assert spot.busy_s == pytest.approx(5.0 + found.read_s)
    after = terms(guest)
    assert after["load"] == 0.0  # It is there by then.
    assert after["wait"] == spot.busy_s
    assert terms(own)["load"] == pytest.approx(14.0 + found.write_s)  # It has to leave, and to come back.
    place(price(own, request(), 100.0, SETTINGS))
    assert terms(guest)["load"] == pytest.approx(5.0 + 5.0, rel=0.2)


def explained(found: Price, prompt_tokens: int) -> Candidate:
    return explain(priced(found), prompt_tokens, Used.of(SETTINGS))


lanes = st.builds(
    lane,
    slots=st.integers(1, 4),
    rtt_s=st.floats(0, 0.2),
    headroom=st.integers(0, 100 * GB),
    load_s=st.sampled_from([0.0, 0.5, 30.0]),
    streams=st.integers(0, 5),
)


@given(
    lanes,
    st.lists(st.floats(0.01, 50), max_size=6),
    st.integers(0, 30_000),
    st.floats(1, 2000),
    st.floats(0, 60),
    st.floats(0, 5),
    st.booleans(),
)
def test_the_explained_terms_are_the_total(
    busy: Lane, ahead: list[float], tokens: int, output: float, pause_s: float, weight: float, evicts: bool
) -> None:
    busy.pause_s = pause_s
    for left_s in ahead:
        busy.hold(left_s)
    if evicts and busy.load_s > 0:
        busy.evicts, busy.back_s, busy.guard = ("own",), 3.0, Guard(weight, 3.0, why="own")
    found = price(busy, request(tokens), output, SETTINGS)
    shown = explained(found, tokens)
    assert shown.total_s == found.total
    assert shown.total_s == sum(t.seconds for t in shown.terms)
    assert [t.name for t in shown.terms] == [name for name in NAMES if name != "again"]  # Nobody is a guest here.
    assert all(t.seconds >= 0 and t.why for t in shown.terms)
    assert shown.excluded is None


@given(
    st.tuples(st.floats(11, 9e4), st.floats(0.6, 1900)),
    st.tuples(st.floats(1, 5), st.floats(1, 5)),
    st.integers(0, 5),
    st.integers(0, 30_000),
    st.floats(1, 2000),
)
def test_a_faster_machine_is_never_dearer_all_else_equal(
    tps: tuple[float, float], faster: tuple[float, float], streams: int, tokens: int, output: float
) -> None:
    slow = lane(tps=tps, streams=streams)
    fast = lane(tps=(tps[0] * faster[0], tps[1] * faster[1]), streams=streams)
    assert total(fast, tokens, output) <= total(slow, tokens, output)


@given(
    lanes, st.lists(st.floats(0.01, 100), max_size=10), st.floats(0.01, 100), st.integers(0, 9000), st.floats(1, 2000)
)
def test_a_longer_queue_never_makes_a_node_cheaper(
    busy: Lane, ahead: list[float], more: float, tokens: int, output: float
) -> None:
    for left_s in ahead:
        busy.hold(left_s)
    before = total(busy, tokens, output)
    busy.hold(more)
    assert total(busy, tokens, output) >= before
    busy.spot.busy_s += more
    assert total(busy, tokens, output) >= before
    busy.spot.streams += 1
    assert total(busy, tokens, output) >= before


def test_every_why_is_a_sentence_for_people() -> None:
    busy = lane(slots=2, streams=2, load_s=5.0)
    busy.hold(3.0)
    busy.hold(4.0)
    busy.evicts, busy.back_s = ("own",), 7.0
    found: Price = price(busy, request(), 100.0, SETTINGS)
    why = {t.name: t.why for t in explained(found, request().prompt_tokens).terms}
    assert why["wait"] == "all 2 slots are taken, one is free in about 3.0 s"
    assert why["prefill"].endswith("tokens/s (expected of this hardware), 0.03 s to begin")
    assert why["decode"].startswith("100 tokens expected in 6.5 s beside 2 other answers; 25% of that counts, for")
    assert (
        why["hurt"]
        == "2 other answers there lose 2.9 s each, what leaves memory takes 7.0 s to load again; 25% of that counts"
    )
    busy.spot.busy_s = 9.0
    free = lane(slots=2)
    free.spot.busy_s = 9.0
    why = {t.name: t.why for t in explained(price(free, request(), 1.0, SETTINGS), request().prompt_tokens).terms}
    assert why["wait"] == "2 of 2 slots free, but other prompts are read first for about 9.0 s"
