"""Who can serve a request at all, and the sentence that says why not."""

from __future__ import annotations

from msgspec import structs

from node.types import ModelState, ModelStatus, NodeId, NodeStatus, Pressure, RequestId
from router.events import Request
from router.filters import Unfit, match, names, unfit

GB = 10**9
REQUEST = Request(id=RequestId("1"), models=("qwen",))


def model(name: str = "qwen", state: ModelState = ModelState.READY, *aliases: str, error: str = "") -> ModelStatus:
    return ModelStatus(name=name, aliases=aliases, state=state, size_bytes=40 * GB, error=error)


def node(*models: ModelStatus, headroom: int = 100, pressure: Pressure = Pressure.NORMAL) -> NodeStatus:
    return NodeStatus(node=NodeId("n"), headroom_bytes=headroom * GB, pressure=pressure, models=models)


def test_a_name_matches_on_the_node_that_defines_it() -> None:
    held = node(model("big", ModelState.READY, "standard"), model("small", ModelState.READY, "fast", "standard"))
    assert [getattr(match(held, n), "name", None) for n in ("big", "fast", "standard", "other")] == [
        "big",
        "small",
        "big",
        None,
    ]


def test_a_models_own_name_goes_before_an_alias_of_another() -> None:
    held = match(node(model("a", ModelState.READY, "b"), model("b")), "b")
    assert held is not None
    assert held.name == "b"


def test_every_name_is_listed_once() -> None:
    fleet = [node(model("qwen", ModelState.READY, "standard")), node(model("qwen", ModelState.READY, "fast"))]
    assert names(fleet) == ["fast", "qwen", "standard"]


def test_a_model_that_is_being_downloaded_exists_but_serves_nobody_yet() -> None:
    for error, why in (("", "downloading"), ("downloading, 43 %", "downloading, 43 %")):
        held = model(state=ModelState.DOWNLOADING, error=error)
        no = unfit(node(held, headroom=100 * GB), held, REQUEST)
        assert no == Unfit(f"not there yet: {why}")


def test_what_is_in_memory_or_on_its_way_there_fits_whatever_the_headroom() -> None:
    def tight(held: ModelStatus) -> NodeStatus:
        return node(held, headroom=0, pressure=Pressure.CRITICAL)

    for state in (ModelState.READY, ModelState.BUSY, ModelState.LOADING, ModelState.DRAINING):
        held = model(state=state)
        assert unfit(tight(held), held, REQUEST) is None
    absent = model(state=ModelState.ABSENT)
    assert unfit(tight(absent), absent, REQUEST, pending=True) is None


def test_a_load_needs_memory_that_nobody_else_was_promised() -> None:
    absent = model(state=ModelState.ABSENT)
    assert unfit(node(absent, headroom=40), absent, REQUEST) is None
    no = unfit(node(absent, headroom=100), absent, REQUEST, promised_bytes=70 * GB)
    assert no == Unfit("absent and does not fit: needs 40.0 GB, headroom 30.0 GB")
    no = unfit(node(absent, pressure=Pressure.CRITICAL), absent, REQUEST)
    assert no == Unfit("memory pressure is critical there, and it would have to load the model")
    assert unfit(node(absent, pressure=Pressure.WARN), absent, REQUEST) is None


def test_broken_is_told_from_full() -> None:
    failed = model(state=ModelState.FAILED, error="no such directory")
    assert unfit(node(failed), failed, REQUEST) == Unfit("failed there: no such directory", failed=True)
    tried = Request(id=RequestId("1"), models=("qwen",), excluded=(NodeId("n"),))
    assert unfit(node(model()), model(), tried) == Unfit(
        "excluded: already failed this request", failed=True, excluded=True
    )
    draining = NodeStatus(node=NodeId("n"), draining=True, models=(model(),))
    no = unfit(draining, model(), REQUEST)
    assert no is not None
    assert not no.failed


def test_what_fits_once_others_have_gone_is_held_there_and_not_refused() -> None:
    absent = model(state=ModelState.ABSENT)
    tight = structs.replace(node(absent, headroom=10), evictable_bytes=20 * GB)
    assert unfit(tight, absent, REQUEST) == Unfit("absent and does not fit: needs 40.0 GB, headroom 30.0 GB")
    roomy = structs.replace(tight, evictable_bytes=30 * GB)
    assert unfit(roomy, absent, REQUEST) is None
    # Loads that are promised already take their turn there, and go again.
    assert unfit(roomy, absent, REQUEST, promised_bytes=10 * GB) is None
    empty = structs.replace(node(absent, headroom=40), evictable_bytes=0)
    assert unfit(empty, absent, REQUEST, promised_bytes=GB) is None
