"""Who is next: clients take turns, age orders each one's own, low priority waits but never starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.types import RequestId
from router.events import Request
from router.fair import Queue


def request(name: str, client: str = "", *, low: bool = False) -> Request:
    return Request(id=RequestId(name), models=("m",), client=client, priority="low" if low else "normal")


def names(queue: Queue, now: float = 0.0) -> list[str]:
    return [w.request.id for w in queue.ordered(now)]


def test_one_client_is_served_in_the_order_of_age() -> None:
    queue = Queue(30.0)
    for name, since in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        queue.add(request(name), since)
    assert names(queue) == ["a", "b", "c"]
    queue.remove(RequestId("b"))
    queue.remove(RequestId("b"))
    assert (names(queue), len(queue)) == (["a", "c"], 2)


def test_clients_take_turns_whoever_came_first() -> None:
    queue = Queue(30.0)
    for n in range(4):
        queue.add(request(f"a{n}", "a"), float(n))
    queue.add(request("b0", "b"), 10.0)
    queue.add(request("b1", "b"), 11.0)
    assert names(queue) == ["a0", "b0", "a1", "b1", "a2", "a3"]
    queue.remove(RequestId("a0"), served=True)
    assert names(queue) == ["b0", "a1", "b1", "a2", "a3"]
    queue.remove(RequestId("b0"), served=True)
    queue.add(request("c0", "c"), 12.0)
    assert names(queue)[:3] == ["a1", "b1", "c0"]  # Who had nothing waiting joins the round that is being served.


def test_a_cancelled_request_is_no_turn() -> None:
    queue = Queue(30.0)
    for n in range(3):
        queue.add(request(f"a{n}", "a"), float(n))
        queue.add(request(f"b{n}", "b"), n + 0.5)
    queue.remove(RequestId("a0"))
    assert names(queue)[:2] == ["b0", "a1"]


def test_low_priority_stands_behind_the_rest_until_it_has_waited_long() -> None:
    queue = Queue(30.0)
    queue.add(request("low", "x", low=True), 0.0)
    queue.add(request("a", "y"), 10.0)
    queue.add(request("b", "y"), 40.0)
    assert names(queue, 29.0) == ["a", "b", "low"]
    assert names(queue, 30.0) == ["a", "low", "b"]  # From now on it is one of the others, and has its turn.


def test_one_that_is_over_soon_goes_a_little_before_its_turn() -> None:
    queue = Queue(30.0)
    queue.add(request("long", "a"), 1.0)
    queue.add(request("older"), 0.0)
    queue.add(request("short", "b"), 3.0, early_s=2.5)
    assert names(queue) == ["older", "short", "long"]


def test_told_anew_it_keeps_its_place_even_as_another_client() -> None:
    queue = Queue(30.0)
    queue.add(request("1", "a"), 1.0)
    queue.add(request("2", "a"), 2.0)
    known = queue.get(RequestId("1"))
    assert known is not None
    queue.replace(known, request("1", "b"))
    assert names(queue) == ["1", "2"]


scripts = st.lists(
    st.tuples(st.sampled_from(["add", "serve", "cancel"]), st.sampled_from("abc"), st.booleans(), st.floats(0, 40)),
    max_size=60,
)


@given(scripts)
def test_nobody_is_lost_or_doubled_and_each_clients_own_keep_their_order(
    script: list[tuple[str, str, bool, float]],
) -> None:
    queue, here, now = Queue(30.0), dict[str, float](), 0.0
    for number, (what, client, low, after) in enumerate(script):
        now += after
        if what == "add":
            queue.add(request(f"{client}{number}", client, low=low), now)
            here[f"{client}{number}"] = now + (30.0 if low else 0.0)
        elif here:
            gone = names(queue, now)[0] if what == "serve" else next(iter(here))
            queue.remove(RequestId(gone), served=what == "serve")
            del here[gone]
        order = names(queue, now)
        assert sorted(order) == sorted(here)
        ripe = [n for n in order if here[n] <= now]
        for each in "abc":
            own = [here[n] for n in ripe if n[0] == each]
            assert own == sorted(own)


@given(st.lists(st.sampled_from("ab"), min_size=100, max_size=300), st.integers(1, 9))
def test_two_who_always_wait_have_equal_shares_of_any_hundred(arrivals: list[str], head_start: int) -> None:
    queue, number, served = Queue(30.0), 0, ""
    waits = {"a": 0, "b": 0}

    def add(client: str) -> None:
        nonlocal number
        number += 1
        waits[client] += 1
        queue.add(request(f"{client}{number}", client), float(number))

    for client in "a" * head_start + "ab":
        add(client)
    for client in arrivals:
        add(client)
        for other in "ab":
            while waits[other] < 2:
                add(other)
        first = queue.ordered(0.0)[0].request
        queue.remove(first.id, served=True)
        waits[first.client] -= 1
        served += first.client
    for start in range(len(served) - 99):
        assert 45 <= served[start : start + 100].count("a") <= 55
