"""A node that the coordinator hears and this edge does not: no time is lost on the way there."""

from __future__ import annotations

from router.view import NodeState
from tests.router.fakes import ASK, ME, OTHER, Rig


async def test_a_node_that_is_dead_from_here_is_left_without_a_try(rig: Rig) -> None:
    rig.other_state = NodeState.DEAD
    rig.dispatch.place = lambda request: ME if OTHER in request.excluded else OTHER
    answer = await rig.client().chat.completions.create(model="standard", messages=ASK)
    assert answer.choices[0].message.content == "Paris"
    [fact] = rig.facts
    assert [(a.node, a.outcome) for a in fact.attempts] == [("mini", "failed"), ("studio", "ok")]
    assert "from here mini cannot be reached" in (fact.attempts[0].error or "")
    assert rig.peer.calls == []
