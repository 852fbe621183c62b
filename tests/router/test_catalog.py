"""Which names exist, who would serve them, and what is said of one that is unknown or away."""

from __future__ import annotations

import pytest
from msgspec import structs

from node.types import ModelReport, ModelState, NodeId, NodeReport
from router import catalog
from router.asked import CHAT, Asked
from router.errors import ErrorCode, RouterError
from router.view import NodeState, NodeView, View

A, B = NodeId("a" * 16), NodeId("b" * 16)


def node(node: NodeId, *models: ModelReport, name: str = "", state: NodeState = NodeState.OK) -> NodeView:
    report = NodeReport(
        id=node, boot="", name=name or node[0], version="", protocol=1, priority=1, uptime_s=0.0, models=models
    )
    return NodeView(report=report, state=state, reason="asleep" if state is NodeState.DEAD else "")


def view(*nodes: NodeView) -> View:
    return View(self_id=A, nodes=nodes)


def wanted(seen: View, model: str, path: str = CHAT, choices: int = 1) -> catalog.Wanted:
    return catalog.wanted(seen, path, Asked(model=model, choices=choices), listed=3)


def refusal(seen: View, model: str, path: str = CHAT, choices: int = 1) -> RouterError:
    with pytest.raises(RouterError) as caught:
        wanted(seen, model, path, choices)
    return caught.value


def test_a_name_an_alias_and_fallbacks() -> None:
    seen = view(node(A, ModelReport(name="big", aliases=("std",), fallback=("small", "tiny", "big"))), node(B))
    assert wanted(seen, "big").models == ("big", "small", "tiny")
    assert wanted(seen, "std").models == ("std", "small", "tiny", "big")


def test_what_a_name_means_is_worked_out_once_in_a_view() -> None:
    seen = view(node(A, ModelReport(name="big", multiple_choices=False)), node(B))
    assert wanted(seen, "big") is wanted(seen, "big")
    assert refusal(seen, "big", choices=2).refusal.code is ErrorCode.INVALID_REQUEST
    for name in ("none", "nobody"):
        refusal(seen, name)
    assert len(seen.wanted) == 1, "what is refused is not kept: clients invent any number of names"
    assert structs.replace(seen, nodes=()).wanted == {}


def test_a_fallback_serves_while_the_first_choice_is_away() -> None:
    seen = view(
        node(A, ModelReport(name="small")), node(B, ModelReport(name="big", fallback=("small",)), state=NodeState.DEAD)
    )
    assert wanted(seen, "big").models == ("big", "small")


def test_an_unknown_model_says_what_exists() -> None:
    seen = view(node(A, *(ModelReport(name=f"m{i}") for i in range(5))))
    error = refusal(seen, "M3\n" + "x" * 300)
    assert error.refusal.code is ErrorCode.MODEL_NOT_FOUND
    assert "hese exist: m0, m1, m2 and 2 more" in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 250
    assert "did you mean 'm3'" in str(refusal(seen, "M3"))
    assert "no node of this mesh has any model" in str(refusal(view(node(A)), "m"))


def test_a_model_that_is_away_is_not_unknown() -> None:
    error = refusal(view(node(A), node(B, ModelReport(name="m"), state=NodeState.DEAD)), "m")
    assert error.refusal.code is ErrorCode.NO_NODE_AVAILABLE
    assert "b (dead: asleep)" in str(error)
    stranger = view(node(A), node(B, ModelReport(name="m"), state=NodeState.WAITING))
    assert refusal(stranger, "m").refusal.code is ErrorCode.MODEL_NOT_FOUND


def test_nodes_that_lack_the_path_or_the_choices_are_barred() -> None:
    able = ModelReport(name="m", paths=("/v1/embeddings", "audio/*"), multiple_choices=True)
    seen = view(node(A, ModelReport(name="m")), node(B, able))
    assert wanted(seen, "m").barred == ()
    assert wanted(seen, "m", "embeddings").barred == (A,)
    assert wanted(seen, "m", "audio/speech").barred == (A,)
    assert wanted(seen, "m", choices=2).barred == (A,)
    assert refusal(seen, "m", "rerank").refusal.code is ErrorCode.PATH_NOT_FOUND
    assert refusal(view(node(A, ModelReport(name="m"))), "m", choices=2).refusal.param == "n"


def test_known_paths() -> None:
    seen = view(node(A, ModelReport(name="m", paths=("special",))))
    for path in (CHAT, "completions", "embeddings", "audio/speech", "images/edits", "special"):
        assert catalog.known_path(seen, path)
    for path in (
        "models",
        "audio",
        "files",
        "specialist",
        "",
        "audio/../x",
        "audio/./x",
        "audio/",
        "audio/x?y",
        "audio/a b",
    ):
        assert not catalog.known_path(seen, path)


def test_the_listing_names_each_once_in_its_best_state() -> None:
    seen = view(
        node(A, ModelReport(name="m", aliases=("std",), state=ModelState.LOADING), name="mini"),
        node(B, ModelReport(name="m", state=ModelState.BUSY), name="mini"),
        node(NodeId("c" * 16), ModelReport(name="gone"), state=NodeState.DRAINING),
    )
    listed = {m["id"]: m["mesh"] for m in catalog.listing(seen, created=1)}
    assert listed == {
        "m": {"nodes": ["mini~aaaa", "mini~bbbb"], "state": "busy"},
        "std": {"nodes": ["mini~aaaa"], "state": "loading"},
    }


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (ModelState.READY, None),
        (ModelState.ABSENT, None),
        (ModelState.LOADING, "models are being loaded"),
        (ModelState.FAILED, "every model has failed or is draining: see `mlx-stack models`"),
    ],
)
def test_readiness(state: ModelState, reason: str | None) -> None:
    assert catalog.why_not_ready(view(node(A, ModelReport(name="m", state=state)))) == reason
