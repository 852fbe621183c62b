"""The benches that cut streams: what they count, and a short run of each, so that they are there when needed."""

from __future__ import annotations

from typing import Any

import pytest

from bench import audit, exact
from bench.audit_count import Fault, blamed, edge_rows, ended, rows
from bench.exact_count import Cut, Tally, against, certain_rows, judged, seam, table
from bench.report import Figure
from bench.talk import Answer
from mesh.answers import Attempt, Route

LIMIT_S = 900  # half a minute on an idle machine; the model is trained the first time
WORDS = {1: "one", 2: " two", 3: " \ufffd", 9: ""}


def answer(**fields: Any) -> Answer:
    whole = {"number": 1, "start": 10.0, "end": 20.0, "stream": True, "text": "one two", "finish": "stop", "ids": 1}
    return Answer(**(whole | {"usage": (5, 2)} | fields))


def route(*attempts: Attempt, **fields: Any) -> Route:
    return Route(id="r", attempts=attempts, **fields)


CUT = Attempt(node="a", outcome="failed", error="closed", cut=True)
BUSY = Attempt(node="a", outcome="busy")
FAILED = Attempt(node="a", outcome="failed", error="refused")
OK = Attempt(node="b", outcome="ok")
CONTINUED, REPLAYED = (Attempt(node="b", outcome="ok", mode=mode) for mode in ("continue", "replay"))


def decode(tokens: Any) -> str:
    return "".join(WORDS[token] for token in tokens)


@pytest.mark.parametrize(
    ("got", "told", "wrong", "expected"),
    [
        (answer(), route(CUT, CONTINUED), "", ("exact", "continued", "")),
        (answer(), route(CUT, REPLAYED), "", ("exact", "replayed", "")),
        (answer(), route(CUT, CONTINUED, REPLAYED), "", ("exact", "continued and replayed", "")),
        (answer(), route(FAILED, OK), "", ("exact", "begun again", "")),
        (answer(), route(OK), "", ("late", "", "")),
        (answer(), route(BUSY, OK), "", ("late", "", "")),
        (answer(), None, "", ("late", "", "")),
        (answer(), route(OK), "text: that", ("differs", "", "text: that")),
        (answer(ids=2), route(CUT, CONTINUED), "", ("differs", "continued", "its chunks have 2 ids")),
        (answer(error="E: gone", code="stream_lost"), route(CUT, lost="engine"), "", ("lost", "", "engine")),
        (answer(error="E: gone", code="stream_lost"), None, "", ("lost", "", "E: gone")),
        (answer(error="E: gone"), route(CUT), "", ("failed", "", ": E: gone")),
        (answer(silent=True), route(CUT), "", ("failed", "", "the stream ended without [DONE] and without an error")),
    ],
)
def test_what_a_cut_stream_came_to(got: Answer, told: Route | None, wrong: str, expected: Any) -> None:
    assert judged(got, told, wrong) == expected


def test_an_answer_is_compared_in_all_that_a_client_can_see() -> None:
    assert against(answer(), answer()) == ""
    assert against(answer(text="one twotwo"), answer()) == "text: 'one twotwo' for 'one two' at character 7 of 7"
    for name, value in (("finish", "length"), ("usage", (5, 3)), ("reasoning", "x"), ("tools", (("f", "{}"),))):
        assert against(answer(**{name: value}), answer()).startswith(f"{name}: ")


def test_a_drawn_answer_has_to_be_what_its_tokens_make() -> None:
    assert seam(answer(tokens=(1, 2)), decode) == ""
    assert seam(answer(tokens=(2, 1), text="twoone"), decode) == "", "upstream drops the first space"
    assert seam(answer(tokens=(1, 2, 3), usage=(5, 3), text="one two \ufffd"), decode) == ""
    assert seam(answer(tokens=(1, 2), text="one  two"), decode) != ""
    assert seam(answer(tokens=(1, 2, 2), text="one two two"), decode) == "3 tokens, of which usage counts 2"
    assert seam(answer(), decode) == "its tokens are not named"


def test_the_rows_of_cut_streams() -> None:
    ends: Any = {"kind": "link cut", "question": "code", "node": "a", "entry": "b"}
    cuts = [Cut(outcome="exact", how="continued", **ends), Cut(outcome="lost", why="engine", **ends)]
    tally = Tally(cuts=[*cuts, Cut(outcome="late", **ends)], asked=3, unshown=["code"])
    found = {row.name.partition(": ")[2]: row for row in certain_rows(tally, 2)}
    assert (found["streams cut"].value, found["streams cut"].holds) == (2, True)
    assert (found["not exact"].value, found["not exact"].holds) == (1, False)
    assert not found["questions that show what they are for"].holds
    assert found["stream_lost, engine"].value == 1
    assert found["cuts that came too late, made again"].value == 1
    assert "1 x lost: engine" in table(tally.cuts)


def test_what_a_request_of_the_audit_came_to() -> None:
    assert ended(answer(), route(BUSY, OK), "", "").kind == "ok"
    assert ended(answer(), route(FAILED, OK), "", "").kind == "retried"
    assert ended(answer(), route(CUT, CONTINUED), "continued", "").kind == "resumed"
    assert ended(answer(), route(CUT, CONTINUED), "continued", "text: that").kind == "wrong"
    assert ended(answer(error="E: full", code="mesh_saturated"), None, "", "").kind == "refused"
    assert ended(answer(error="E: gone", code="stream_lost"), None, "", "").kind == "lost"
    assert ended(answer(error="E: gone"), None, "", "").kind == "unnamed"
    assert ended(answer(error="no end", code="hung"), None, "", "").kind == "hung"
    assert ended(answer(silent=True), None, "", "").kind == "silent"


def test_a_failure_is_blamed_on_the_fault_of_its_own_edge_only() -> None:
    fault = Fault(kind="daemon killed", node="mac1", address="10.0.0.1", start=15.0, end=18.0)
    lost = ended(answer(error="E: gone", edge="10.0.0.1"), None, "", "")
    assert blamed(lost, [fault]) is fault
    assert blamed(ended(answer(error="E: gone", edge="10.0.0.2"), None, "", ""), [fault]) is None
    for name, value in (("kind", "worker killed"), ("start", 21.0), ("end", 9.0)):
        other = Fault(
            **({"kind": "daemon killed", "node": "mac1", "address": "10.0.0.1", "start": 5.0} | {name: value})
        )
        assert blamed(lost, [other]) is None, name
    named = Fault(kind="link cut", node="mac2", address="10.0.0.3", start=15.0, coordinated=True)
    assert blamed(ended(answer(error="E: gone"), None, "", ""), [named]) is named
    found = {row.name: row for row in edge_rows("a", [lost], [], 0, 30.0)}
    assert not found["a: failed, of an edge that lives"].holds
    assert not {row.name: row for row in rows("a", [lost], [fault], 0, 30.0)}["a: failed"].holds


@pytest.mark.timeout(LIMIT_S)
async def test_streams_are_cut_and_come_out_exact() -> None:
    asked = ["--questions", "code", "tools", "--kinds", "link cut", "daemon frozen"]
    options = exact.parsed(["--streams", "2", "--batched", "0", "--meshes", "1", *asked])
    _hold(await exact.Bench(options).run(), "exact, float32")


@pytest.mark.timeout(LIMIT_S)
async def test_an_audit_loses_nothing() -> None:
    wanted = {"minutes": 0.25, "clients": 4, "every-s": 4, "run-in-s": 2, "pause-s": 0.2}
    options = audit.parsed([word for name, value in wanted.items() for word in (f"--{name}", str(value))])
    _hold(await audit.Audit(options).run(), "audit", but="resumed")  # of a few cuts all may come before a first byte


def _hold(figures: list[Figure], start: str, but: str = "nothing") -> None:
    missed = [row for row in figures if row.name.startswith(start) and not row.holds and but not in row.name]
    assert missed == []
