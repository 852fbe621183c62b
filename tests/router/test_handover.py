"""Which nodes may go on with an answer that broke off, and how."""

from __future__ import annotations

import json

import pytest

from node.types import ModelReport, ModelState, NodeId, NodeReport, RequestId, Resume, Usage
from router.events import Candidate, Decision, Why
from router.handover import Handover
from router.io.record import Record
from router.kept import Keep
from router.view import NodeState, NodeView, View

A, B, C = NodeId("a" * 16), NodeId("b" * 16), NodeId("c" * 16)


def model(
    resume: Resume = Resume.CONTINUE, fingerprint: str = "f1", name: str = "m", aliases: tuple[str, ...] = ()
) -> ModelReport:
    return ModelReport(name=name, aliases=aliases, state=ModelState.READY, resume=resume, fingerprint=fingerprint)


def view(models: dict[NodeId, ModelReport | tuple[ModelReport, ...]], dead: tuple[NodeId, ...] = ()) -> View:
    def node(id_: NodeId, held: ModelReport | tuple[ModelReport, ...]) -> NodeView:
        report = NodeReport(
            id=id_,
            boot="b",
            name=f"mac-{id_[0]}",
            version="1",
            protocol=1,
            priority=1,
            uptime_s=1.0,
            models=held if isinstance(held, tuple) else (held,),
        )
        return NodeView(report=report, state=NodeState.DEAD if id_ in dead else NodeState.OK)

    return View(self_id=A, nodes=tuple(node(id_, held) for id_, held in models.items()))


def block(tokens: list[int] | None = None) -> bytes:
    chunk: dict[str, object] = {"id": "c", "created": 3, "choices": [{"index": 0, "delta": {"content": "Hi"}}]}
    if tokens is not None:
        chunk["mesh_tokens"] = tokens
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def handover(seen: View, *blocks: bytes, streamed: bool = True, names: tuple[str, ...] = ("m",)) -> Handover:
    """A has begun it, and these blocks were sent."""
    found = Handover(Keep(10_000, 10_000).begin(lambda _: None), names, streamed=streamed)
    found.began(seen, A, "m")
    for each in blocks or (block([1, 2]),):
        found.kept.add(each)
    return found


def test_equal_weights_go_on_and_others_are_left_out() -> None:
    seen = view({A: model(), B: model(), C: model(fingerprint="f2")})
    it = handover(seen)
    plan = it.plan(seen, excluded=(A,), cannot=())
    assert (plan.models, plan.given, plan.lost) == (("m",), 2, None)
    assert plan.left_out == {C: "it holds other weights than those that began the answer"}
    modes = [it.mode(seen, node, "m") for node in (B, C, NodeId("?"))]
    assert modes == ["continue", "start", "start"]
    found = it.continuation
    assert found is not None
    assert (found.id, found.created, found.tokens, found.blocks) == ("c", 3, (1, 2), 1)


def test_unknown_weights_never_go_on_from_tokens() -> None:
    seen = view({A: model(fingerprint=""), B: model(fingerprint="")})
    it = handover(seen)
    assert it.plan(seen, (), ()).given == 0
    assert it.mode(seen, B, "m") == "replay"


def test_unknown_weights_of_another_name_are_not_tried() -> None:
    seen = view({A: model(fingerprint=""), B: model(fingerprint="", name="other", aliases=("standard",))})
    it = handover(seen, names=("standard",))
    assert it.plan(seen, (), ()).models == ("m",)
    assert it.mode(seen, B, "other") == "start"


def test_equal_weights_of_another_name_go_on_when_they_were_asked_for() -> None:
    seen = view({A: model(aliases=("standard",)), B: model(name="other", aliases=("standard",))})
    it = handover(seen, names=("standard", "fallback"))
    assert it.plan(seen, (A,), ()).models == ("m", "standard")
    assert it.mode(seen, B, "other") == "continue"


def test_a_name_that_means_other_weights_on_a_node_leaves_that_node_out() -> None:
    both = (model(), model(fingerprint="f2", name="other", aliases=("standard",)))
    seen = view({A: model(aliases=("standard",)), B: both})
    plan = handover(seen, names=("standard",)).plan(seen, (A,), ())
    assert plan.models == ("m", "standard")
    assert set(plan.left_out) == {B}


def test_who_can_only_run_it_again_waits_behind_who_can_go_on() -> None:
    seen = view({A: model(), B: model(), C: model(Resume.REPLAY)})
    it = handover(seen)
    assert list(it.plan(seen, (A,), ()).left_out) == [C]
    plan = it.plan(seen, (A, B), ())
    assert (plan.left_out, plan.given) == ({}, 0)
    assert (it.mode(seen, C, "m"), it.mode(seen, B, "m")) == ("replay", "continue")


@pytest.mark.parametrize("streamed", [True, False])
def test_who_can_only_run_it_again_is_asked_once_who_can_go_on_was_refused(streamed: bool) -> None:
    seen = view({A: model(), B: model(), C: model(Resume.REPLAY)})
    it = handover(seen, streamed=streamed)
    assert set(it.plan(seen, (A,), ()).left_out) == {C}
    plan = it.plan(seen, (A,), (), refused=True)
    assert (plan.models, plan.left_out, plan.given, plan.lost) == (("m",), {}, 2, None)
    assert it.mode(seen, B, "m") == "continue"
    assert it.mode(seen, C, "m") == ("replay" if streamed else "start")


def test_other_weights_stay_out_however_often_it_was_refused() -> None:
    seen = view({A: model(), B: model(), C: model(fingerprint="f2")})
    assert set(handover(seen).plan(seen, (A,), (), refused=True).left_out) == {C}


def test_an_answer_that_was_not_sent_waits_for_somebody_who_has_the_model() -> None:
    """Nobody has it now, which the coordinator says; a stream that only its own node could go on with is lost."""
    it = handover(view({A: model()}), streamed=False)
    plan = it.plan(view({}), (A,), ())
    assert (plan.models, plan.left_out, plan.given, plan.lost) == (("m",), {}, 0, None)


def test_a_dead_node_is_not_waited_for_when_another_can_run_it_again() -> None:
    seen = view({A: model(), B: model(Resume.REPLAY)}, dead=(A,))
    plan = handover(seen).plan(seen, (), ())
    assert (plan.left_out, plan.lost) == ({}, None)


def test_a_node_that_said_it_cannot_is_asked_to_run_it_again() -> None:
    seen = view({A: model(), B: model()})
    it = handover(seen)
    assert it.plan(seen, (A,), (B,)).given == 0
    assert it.mode(seen, B, "m") == "replay"


def test_where_no_engine_can_do_either_there_is_no_hope() -> None:
    seen = view({A: model(Resume.NO), B: model(fingerprint="f2")})
    plan = handover(seen).plan(seen, (A,), ())
    assert plan.lost == "engine"
    assert "nor run it again" in plan.why


def test_chunks_that_are_not_understood_are_named() -> None:
    seen = view({A: model()})
    assert handover(seen, b"data: what\n\n").plan(seen, (), ()).lost == "not_understood"
    whole = handover(seen, b"data: what\n\n", streamed=False)
    assert whole.plan(seen, (), ()).lost is None
    assert whole.mode(seen, A, "m") == "start"


def test_chunks_without_tokens_are_run_again() -> None:
    seen = view({A: model(), B: model()})
    it = handover(seen, block())
    assert it.plan(seen, (A,), ()).given == 0
    assert it.mode(seen, B, "m") == "replay"
    assert it.seam().feed(block()) is None


def test_an_answer_that_was_not_sent_goes_on_or_begins_anew() -> None:
    seen = view({A: model(), B: model(), C: model(fingerprint="f2")})
    it = handover(seen, streamed=False)
    plan = it.plan(seen, (A,), ())
    assert (list(plan.left_out), plan.given) == ([C], 2)
    plan = it.plan(seen, (A, B), ())
    assert (plan.models, plan.left_out, plan.given) == (("m",), {}, 0)
    assert (it.mode(seen, B, "m"), it.mode(seen, C, "m")) == ("continue", "start")
    it.spoil()
    assert it.plan(seen, (A,), ()).given == 0
    assert it.mode(seen, B, "m") == "start"
    assert it.restart()
    assert (it.begun, it.kept.size) == (False, 0)
    it.began(seen, A, "m")
    it.kept.add(block([8, 9]))
    found = it.continuation
    assert found is not None
    assert found.tokens == (8, 9), "of as many bytes as before, but not the same"
    assert not handover(seen).restart()


def test_what_is_not_kept_any_more_when_the_grant_comes_begins_anew() -> None:
    seen = view({A: model(), B: model()})
    it = handover(seen, streamed=False)
    assert it.plan(seen, (A,), ()).given == 2
    assert it.mode(seen, B, "m") == "continue"
    it.kept.drop("younger streams took the room")
    assert (it.mode(seen, B, "m"), it.continuation) == ("start", None)


def test_what_another_node_wrote_is_not_counted_for_who_ends_it() -> None:
    seen = view({A: model(), B: model()})
    it = handover(seen)
    it.plan(seen, (A,), ())
    assert it.own(Usage(10, 0, 7), "continue") == Usage(12, 0, 5)
    assert it.own(Usage(10, 0, 7), "replay") == Usage(10, 0, 7)
    assert it.own(Usage(10, 0, 7), "start") == Usage(10, 0, 7)


def test_people_read_why_the_edge_left_a_node_out() -> None:
    record = Record(RequestId("r"), 0.0)
    excluded = Candidate(C, "m", excluded="excluded: already failed this request")
    candidates = (Candidate(B, "m", 1.0), excluded)
    record.decided = Why(Decision(request={}, chosen=B, waited_ms=0.0, candidates=candidates))
    record.left_out = {C: "other weights"}
    why = record.why(view({A: model(), B: model(), C: model()}))
    assert why is not None
    found = why.decision
    assert [(c.node, c.excluded) for c in found.candidates] == [("mac-b", None), ("mac-c", "other weights")]
