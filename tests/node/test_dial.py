"""Where an address leads, and who wins a race."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from node.io.dial import NoneConnectedError, Origin, _resolved, race


@pytest.mark.parametrize(
    ("host", "family", "there"),
    [
        ("10.0.0.7", socket.AF_INET, ("10.0.0.7", 4001)),
        ("fd00::7", socket.AF_INET6, ("fd00::7", 4001, 0, 0)),
        ("fe80::7%lo", socket.AF_INET6, ("fe80::7%lo", 4001, 0, 1)),
    ],
)
async def test_addresses_of_every_kind(host: str, family: int, there: tuple[object, ...]) -> None:
    (info,) = await _resolved(Origin(host, 4001))
    assert info[0] == family
    assert info[4][1:] == there[1:]
    assert info[4][0].partition("%")[0] == host.partition("%")[0]


class Tries:
    """The n-th is due after `after[n]` (None: never), and fails if it is in `fails`."""

    def __init__(self, after: list[float | None], fails: frozenset[int] | set[int] = frozenset()) -> None:
        self.after, self.fails = after, fails
        self.begun: list[int] = []
        self.made: dict[int, socket.socket] = {}

    def connect(self) -> Callable[[int], Awaitable[socket.socket]]:
        async def one(n: int) -> socket.socket:
            self.begun.append(n)
            after = self.after[n]
            if after is None:
                await asyncio.Event().wait()
            else:
                await asyncio.sleep(after)
            if n in self.fails:
                raise OSError(f"{n} fails")
            self.made[n] = socket.socket()
            return self.made[n]

        return one


async def test_the_first_that_connects_wins_and_the_others_are_given_up() -> None:
    tries = Tries([None, 0.0, 0.0])
    won, made = await race(range(3), tries.connect(), 0.02)
    assert (won, tries.begun) == (1, [0, 1])
    made.close()
    assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]


async def test_a_failure_brings_the_next_one_at_once() -> None:
    tries = Tries([0.0, 0.0, 0.0], {0, 1})
    won, made = await race(range(3), tries.connect(), 600.0)
    assert (won, tries.begun) == (2, [0, 1, 2])
    made.close()


async def test_two_that_connect_at_the_same_time_leave_one() -> None:
    tries = Tries([0.05, 0.0])
    won, made = await race(range(2), tries.connect(), 0.05)
    made.close()
    assert all(s.fileno() < 0 for s in tries.made.values()), won


async def test_all_failures_are_told() -> None:
    with pytest.raises(NoneConnectedError) as caught:
        await race(range(2), Tries([0.0, 0.0], {0, 1}).connect(), 0.0)
    assert [str(error) for _, error in caught.value.failures] == ["0 fails", "1 fails"]


async def test_a_defect_is_not_taken_for_a_refusal() -> None:
    async def broken(_: int) -> socket.socket:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await race(range(2), broken, 0.0)
