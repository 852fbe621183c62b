"""Two clients that always have requests waiting share the mesh, whatever its nodes and whatever each of them asks.

The whole Scheduler under a virtual clock: nodes of several speeds and slots, prompts and answers of several sizes.
Every node works as its hardware promises; a client sends its next request when one of its own has ended.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from node.types import ModelState, ModelStatus, NodeId, NodeStatus, RequestId, Usage
from router.schedule import Finished, FirstToken, Grant, NodeUp, Request, Scheduler, SchedulerEvent, Submit, Tick
from router.settings import RouterSettings

SETTINGS = RouterSettings()
GB = 10**9
SIZE = 4 * GB
CLIENTS = {"a": 60, "b": 20}  # open requests of each: first come, first served would give a three times as much
WINDOW = 100
SPREAD = 0.1

Sizes = tuple[int, int]  # tokens of prompt and answer, on average
Machine = tuple[float, int]  # GB/s, slots


def grants(machines: list[Machine], sizes: dict[str, Sizes], rng: random.Random) -> Iterator[str]:
    """Whose request is granted, one after the other, for as long as anybody asks."""
    scheduler = Scheduler(SETTINGS, random.Random(1))
    speeds = {}
    for number, (bandwidth, slots) in enumerate(machines):
        model = ModelStatus(name="m", state=ModelState.READY, slots=slots, size_bytes=SIZE)
        node = NodeId(f"n{number}")
        speeds[node] = bandwidth * GB / SIZE
        status = NodeStatus(node=node, bandwidth=bandwidth, headroom_bytes=10 * GB, models=(model,))
        assert scheduler.step(NodeUp(status), 0.0) == []
    open_: dict[str, Request] = {}
    happens: list[tuple[float, int, SchedulerEvent, str]] = []  # when, in which order, what, the client who asks anew
    numbers = count()

    def asked(client: str) -> Submit:
        prompt, answer = sizes[client]
        name = RequestId(f"{client}{next(numbers)}")
        tokens = rng.randint(1, 2 * prompt)
        open_[name] = Request(
            id=name, models=("m",), prompt_tokens=tokens, max_tokens=rng.randint(1, 2 * answer), client=client
        )
        return Submit(open_[name])

    for client, deep in CLIENTS.items():
        for _ in range(deep):
            heapq.heappush(happens, (0.0, next(numbers), asked(client), ""))
    now = 0.0
    event: SchedulerEvent
    while True:
        due = scheduler.deadline
        if due is not None and due < happens[0][0]:
            now, event, client = max(now, due), Tick(), ""
        else:
            now, _, event, client = heapq.heappop(happens)
        effects = scheduler.step(event, now)
        if client:
            effects += scheduler.step(asked(client), now)
        for effect in effects:
            assert isinstance(effect, Grant), effect
            request = open_.pop(effect.id)
            yield request.client
            rate = speeds[effect.node]
            first_at = now + SETTINGS.begin_s + request.prompt_tokens / (SETTINGS.prefill_prior * rate)
            end_at = first_at + request.max_tokens / (SETTINGS.decode_prior * rate)
            usage = Usage(prompt=request.prompt_tokens, completion=request.max_tokens)
            heapq.heappush(happens, (first_at, next(numbers), FirstToken(effect.id), ""))
            heapq.heappush(happens, (end_at, next(numbers), Finished(effect.id, "ok", usage), request.client))


machines = st.lists(st.tuples(st.sampled_from([100.0, 200.0, 400.0, 800.0]), st.integers(1, 4)), min_size=1, max_size=4)
tokens = st.tuples(st.sampled_from([50, 500, 3000]), st.sampled_from([20, 200, 600]))


@given(machines=machines, mine=tokens, yours=tokens, seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)  # the clock is virtual; a busy machine is slow
def test_two_saturating_clients_get_equal_shares_of_any_hundred_grants(
    machines: list[Machine], mine: Sizes, yours: Sizes, seed: int
) -> None:
    order = []
    for client in grants(machines, dict(zip(CLIENTS, (mine, yours), strict=True)), random.Random(seed)):
        order.append(client)
        if len(order) == 3 * WINDOW:
            break
    for start in range(len(order) - WINDOW + 1):
        count_a, fair = order[start : start + WINDOW].count("a"), WINDOW // 2
        assert abs(count_a - fair) <= round(SPREAD * fair), f"a got {count_a} of {WINDOW} grants from the {start}th on"
