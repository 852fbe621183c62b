"""mesh/pace.py: how often a report is said."""

from __future__ import annotations

from mesh.pace import Pace
from mesh.settings import PublishSettings
from node.types import NodeId

S = PublishSettings()
NOBODY: frozenset[NodeId] = frozenset()
A = frozenset({NodeId("aaaaaaaaaaaaaaaa")})
QUIET_FROM = int(S.met_s)


def said(pace: Pace, seconds: range, peers: frozenset[NodeId] = A, *, busy: bool = False) -> list[int]:
    """The seconds at which it is due, asked each second."""
    return [n for n in seconds if pace.due(peers, changed=False, busy=busy, now=float(n))]


def test_each_second_at_first_then_every_few() -> None:
    pace, every = Pace(S, 0.0), int(S.quiet_every_s)
    found = said(pace, range(100))
    assert found[:QUIET_FROM] == list(range(QUIET_FROM))
    assert [b - a for a, b in zip(found[QUIET_FROM:], found[QUIET_FROM + 1 :], strict=False)] == [every] * (
        len(found) - QUIET_FROM - 1
    )


def test_a_change_is_said_at_once_and_only_once() -> None:
    pace = Pace(S, 0.0)
    said(pace, range(100))
    assert pace.due(A, changed=True, busy=False, now=100.0)
    assert said(pace, range(101, 105)) == []


def test_a_busy_node_says_it_each_second() -> None:
    pace = Pace(S, 0.0)
    said(pace, range(100))
    assert said(pace, range(100, 110), busy=True) == list(range(100, 110))


def test_after_a_peer_has_come_or_gone_it_is_said_each_second_again() -> None:
    pace = Pace(S, 0.0)
    said(pace, range(100))
    assert said(pace, range(100, 100 + QUIET_FROM), NOBODY) == list(range(100, 100 + QUIET_FROM))
    said(pace, range(200, 300), NOBODY)
    assert said(pace, range(300, 300 + QUIET_FROM), A) == list(range(300, 300 + QUIET_FROM))


def test_a_report_that_costs_much_is_said_less_often_while_things_change() -> None:
    pace = Pace(S, 0.0)
    assert pace.pause_s(0.0) == pace.pause_s(0.0005) == S.gap_s
    assert pace.pause_s(0.003) == 0.003 / S.part
    assert pace.pause_s(10.0) == S.gap_max_s
