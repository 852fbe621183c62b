"""What people read."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from msgspec import structs

from mesh import answers, render, render_routes
from mesh.answers import (
    Attempt,
    Candidate,
    Decision,
    Event,
    Mesh,
    MeshStatus,
    Model,
    ModelDetails,
    Node,
    Route,
    Routes,
    Running,
    Term,
)
from router.facts import Lost

MODEL = Model(
    name="smol", aliases=("fast",), engine="mlx-lm", state="ready", size_bytes=80 << 20, slots=4, decode_tps=12.34
)
STATUS = MeshStatus(
    mesh=Mesh(name="home", enabled=True, coordinator="mac-a", term=3, url="http://mlx-mesh.local:4000/v1", alone=False),
    self_name="mac-b",
    nodes=(
        Node(name="mac-a", id="1", coordinator=True, uptime_s=7300, version="0.1.0"),
        Node(name="mac-b", id="2", models=(MODEL,), rtt_ms=1.25, in_flight=2, queue_depth=1),
        Node(name="mac-c", id="3", state="incompatible", reason="protocol 2, ours is 1"),
    ),
    notes=("'fast' is not the same weights on every node",),
)
ROUTE = Route(
    id="req-1",
    client_request_id="mine",
    at="2026-11-20T06:00:00.123Z",
    edge="mac-a",
    node="mac-b",
    coordinator="mac-a",
    model="fast",
    served_model="smol",
    stream=True,
    status=200,
    outcome="ok",
    queue_ms=3.0,
    ttft_ms=412.4,
    total_ms=12_345.0,
    prompt_tokens=100,
    cached_tokens=60,
    completion_tokens=20,
    attempts=(
        Attempt(node="mac-c", outcome="failed", error="unreachable: connection refused", ms=2.0),
        Attempt(node="mac-b", outcome="ok", ms=900.0),
    ),
    decision=Decision(
        request={"models": ["fast"], "prompt_tokens": 100, "deadline": None},
        chosen="2",
        waited_ms=250.0,
        candidates=(
            Candidate(node="3", model="smol", excluded="it has failed this request"),
            Candidate(node="1", model="smol", total_s=1.5, terms=(Term(name="wait", seconds=1.5, why="3 before it"),)),
            Candidate(
                node="2",
                model="smol",
                total_s=0.5,
                terms=(
                    Term(name="wait", seconds=0.1, why="free slot"),
                    Term(name="prefill", seconds=0.4, why="40 tokens"),
                ),
            ),
        ),
    ),
)


def test_mesh_status_says_all_a_person_asks_for() -> None:
    text = render.plain(render.mesh_status(STATUS))
    lines = text.splitlines()
    assert lines[0] == "Mesh:  home, coordinator mac-a, term 3, 3 nodes, 0 in flight, 0 waiting"
    assert lines[1] == "URL:   http://mlx-mesh.local:4000/v1"
    assert "*mac-a" in text
    assert "2 h 1 min" in text
    row = next(line for line in lines if "mac-b (this)" in line)
    assert "smol ready" in row
    assert "mac-c is incompatible: protocol 2, ours is 1" in text
    assert lines[-1] == "Note: 'fast' is not the same weights on every node"


def test_plain_columns_are_aligned() -> None:
    table = render.Table(("NAME", "SIZE>"), (("a", "100"), ("long name", "1")), "Title")
    assert render.plain(["x", table]) == "x\nTitle\nNAME       SIZE\na           100\nlong name     1\n"


def test_a_node_alone_and_a_mesh_that_is_off_are_said() -> None:
    alone = MeshStatus(
        mesh=Mesh(enabled=True, alone=True, coordinator="a"), self_name="a", nodes=(Node(name="a", id="1"),)
    )
    text = render.plain(render.mesh_status(alone))
    assert "coordinator this node" in text
    assert "works alone" in text
    assert "mlx-stack mesh enable" in render.plain(render.mesh_status(MeshStatus()))


def test_why_shows_every_term_and_terms_add_up() -> None:
    text = render.plain(render_routes.why(ROUTE, {"1": "mac-a", "2": "mac-b", "3": "mac-c"}))
    lines = text.splitlines()
    assert "its client calls it mine" in lines[0]
    table = [line for line in lines if "smol" in line and "mac-" in line and ", as smol" not in line]
    assert table[0].split() == [">", "mac-b", "smol", "0.100", "0.400", "0.500"]
    assert table[1].split() == ["mac-a", "smol", "1.500", "-", "1.500"]
    assert "mac-c could not: it has failed this request" in text
    assert "unreachable: connection refused" in text
    assert "0.400  prefill   reading the prompt: 40 tokens" in text
    assert "It waited 250 ms" in text
    assert "a prompt of about 100 tokens" in text
    assert "What decided is wait" in text


def test_why_of_a_route_without_decision() -> None:
    text = render.plain(render_routes.why(answers.Route(id="r", outcome="cancelled", status=499), {}))
    assert "cancelled (HTTP status 499)" in text
    assert "Nothing was decided" in text


def test_routes_and_their_gaps() -> None:
    text = render.plain(render_routes.routes(Routes(routes=(ROUTE,), unreachable=("mac-d",))))
    assert "fast (smol)" in text
    assert "412 ms" in text
    assert "mac-d" in text
    assert render.plain(render_routes.routes(Routes())) == "No requests yet.\n"
    assert "2 attempts" in render_routes.route_line(ROUTE)


def handed_over(outcome: str, *attempts: Attempt, lost: str | None = None) -> str:
    return render.plain(
        render_routes.why(structs.replace(ROUTE, outcome=outcome, attempts=attempts, lost=lost), {"mac-b": "studio"})
    )


def test_an_answer_that_went_on_elsewhere_says_from_whom_to_whom_and_how() -> None:
    cut = Attempt(node="mac-c", outcome="failed", error="unreachable: reset", ms=2.0, cut=True)
    text = handed_over("resumed", cut, Attempt(node="mac-b", outcome="ok", mode="continue"))
    assert "cut        mac-c broke off in the middle of the answer; studio went on where it stopped" in text
    assert re.search(r"1 +mac-c +began +cut +2 ms +unreachable: reset", text)
    assert re.search(r"2 +studio +went on +ok", text)
    text = handed_over("resumed", cut, Attempt(node="mac-b", outcome="ok", mode="replay"))
    assert "studio ran it again, behind what had been sent" in text
    text = handed_over("ok", cut, Attempt(node="mac-b", outcome="ok"))
    assert "studio gave it anew: nothing had been sent" in text
    assert "broke off on mac-c" in render_routes.route_line(structs.replace(ROUTE, attempts=(cut,)))


@pytest.mark.parametrize("reason", get_args(Lost))
def test_an_answer_that_could_not_go_on_says_why(reason: str) -> None:
    cut = Attempt(node="mac-c", outcome="failed", error="unreachable: reset", ms=2.0, cut=True)
    text = handed_over("failed", cut, lost=reason)
    assert "it could not go on: " in text
    assert "ended before it could" not in text


def test_one_model_in_full() -> None:
    found = ModelDetails(
        name="smol",
        state="ready",
        slots=4,
        size_bytes=80 << 20,
        reserved_bytes=90 << 20,
        measured_bytes=85 << 20,
        unloads_in_s=75.0,
        load_s=3.2,
        decode_tps=12.34,
        last_error="out of memory",
    )
    text = render.plain(render.model(found))
    for said in (
        *("ready, unloads in 75 s", "0 of 4 slots", "12 tokens/s", "80.0 MB", "90.0 MB", "85.0 MB, measured"),
        *("3.2 s, expected", "last error    out of memory"),
    ):
        assert said in text


def test_models_say_what_they_wait_for_and_how_far_they_are() -> None:
    found = (
        ModelDetails(name="big", state="loading", waits_for="small is busy"),
        ModelDetails(name="new", state="downloading", progress=0.421),
    )
    text = render.plain(render.models(found))
    assert "big waits: small is busy" in text
    assert "downloading 42 %" in text


def test_an_event_is_one_line() -> None:
    event = Event(at="2026-11-20T06:00:00.123Z", kind="evict", model="m", text="big needs its room")
    assert render.event_line(event) == "2026-11-20 06:00:00  evict     m: big needs its room"
    assert render.event_line(Event(at=event.at, kind="start")) == "2026-11-20 06:00:00  start     this node"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (59, "59 s"),
        (119.9, "119 s"),
        (3599, "59 min"),
        (7200, "2 h 0 min"),
        (200000, "2 d 7 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert render.duration(seconds) == said


@pytest.mark.parametrize(("count", "said"), [(0, "0"), (2048, "2 KB"), (5 << 20, "5.0 MB"), (24 << 30, "24.0 GB")])
def test_sizes(count: int, said: str) -> None:
    assert render.size(count) == said


def test_a_table_too_wide_for_the_window_becomes_records(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    render.show(render_routes.routes(Routes(routes=(ROUTE,))))
    drawn = capsys.readouterr().out
    assert drawn.startswith("ID req-1\n  at 11-20 06:00:00, model fast (smol), node mac-b, outcome ok 200, tries 2, ")
    assert "tokens 100+20" in drawn


def test_on_a_terminal_rich_draws_the_same_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    render.show(render.mesh_status(STATUS))
    drawn = capsys.readouterr().out
    for words in (
        "coordinator mac-a",
        "mac-b (this)",
        "smol ready",
        "HEADROOM",
        "mac-c is incompatible: protocol 2, ours is 1",
    ):
        assert words in drawn


def test_far_nodes_say_so_and_how_far() -> None:
    node = Node(name="mac-d", id="4", far=True, rtt_ms=81.7, version="0.1.0")
    other = Node(name="mac-e", id="5", far=True)
    text = render.plain(render.nodes(MeshStatus(self_name="mac-a", nodes=(node, other))))
    assert " mac-d (far, 82 ms)  ok" in text
    assert " mac-e (far)" in text
    added = {"name": "mac-d", "id": "4", "state": "ok", "reason": "", "far": True, "via": "tailscale"}
    assert render.added("mini", added) == ["mac-d: ok, far, found by tailscale"]
    assert render.added("mini", {"name": "mac-d", "state": "waiting", "reason": "dialling"}) == [
        "mac-d: waiting: dialling"
    ]


def test_who_else_is_on_the_tailnet() -> None:
    ours = Running(name="mini", version="0.1", mesh="home")
    known, other = Running(name="b", mesh="home", added=True), Running(name="c", version="0.2", mesh="work")
    assert render.tailnet(STATUS, (ours, known, other)) == [
        "on your tailnet, not added: mini (mlx-stack 0.1) -> mlx-stack mesh add mini",
        "on your tailnet, in mesh 'work': c (mlx-stack 0.2)",
    ]
    assert render.tailnet(STATUS, (known,)) == ["on your tailnet no further machine runs mlx-stack"]


def test_no_name_or_reason_of_another_machine_tells_the_terminal_anything(capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "mini\x1b]0;owned\x07\r\x9b2J\u202e"
    render.show([f"one\ntwo {nasty}", render.Table(("node",), ((nasty + "\n",),), nasty)])
    said = capsys.readouterr().out
    clean = "mini?]0;owned???2J?"
    assert said.splitlines() == ["one", f"two {clean}", clean, "node", f"{clean}?"]
    assert not set(said) & set("\x1b\x07\r\x9b\u202e")
