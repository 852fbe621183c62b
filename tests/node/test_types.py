from __future__ import annotations

import pytest

from node.types import ModelReport, ModelState, NodeId, NodeReport, status_of


@pytest.mark.parametrize(
    ("retry_s", "seen"),
    [(1.0, ModelState.LOADING), (60.0, ModelState.FAILED), (None, ModelState.FAILED)],
    ids=["back soon", "back late", "not by itself"],
)
def test_a_model_that_restarts_at_once_is_on_its_way_for_the_scheduler(retry_s: float | None, seen: ModelState) -> None:
    model = ModelReport(name="m", state=ModelState.FAILED, error="killed", load_s=2.0, retry_s=retry_s)
    report = NodeReport(
        id=NodeId("a" * 16), boot="b", name="a", version="1", protocol=1, priority=1, uptime_s=0.0, models=(model,)
    )
    placed = status_of(report).models[0]
    assert placed.state is seen
    assert placed.load_s == 2.0 + (retry_s or 0.0)
    assert placed.retry_s == retry_s


def test_nobody_knows_when_a_server_that_is_not_ours_is_back() -> None:
    model = ModelReport(name="m", engine="external", state=ModelState.FAILED, error="gone", retry_s=60.0)
    report = NodeReport(
        id=NodeId("a" * 16), boot="b", name="a", version="1", protocol=1, priority=1, uptime_s=0.0, models=(model,)
    )
    assert status_of(report).models[0].retry_s is None
