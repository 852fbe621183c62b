"""The metrics page, and one fact reaching all its readers."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families

from mesh.log import Later, utc
from mesh.metrics import Gauges, Metrics
from mesh.observe import FOLLOWER_WAITING_MAX, Observer, sentence, why
from mesh.store import RouteStore
from node.facts import CallFact, DownloadFact, ModelFact, WorkerFact
from node.types import Memory, ModelReport, ModelState, NodeId, RequestId, Usage
from router.events import Candidate, Decision, Term, Why
from router.facts import AttemptFact, RouteFact

DOCS = Path(__file__).parents[2] / "docs"
GAUGES = Gauges(
    node="mac",
    version="1",
    coordinator=True,
    term=4,
    elections=2,
    nodes={"ok": 3, "dead": 1},
    queue_depth=5,
    in_flight=6,
    memory=Memory(budget_bytes=100, used_bytes=40, headroom_bytes=60),
    worker_tokens={"m": 77},
    models=(
        ModelReport(name="m", state=ModelState.READY, size_bytes=9, reserved_bytes=8, measured_bytes=7, decode_tps=5.5),
        ModelReport(name="cold"),
    ),
    frames_dropped={"unknown": 1},
    connections={"edge": 2},
)


def route(**changes: Any) -> RouteFact:
    n1, n2 = NodeId("n1"), NodeId("n2")
    terms = (Term("wait", 0.1, "1 before"), Term("prefill", 0.3, "900 tokens at 3000/s"))
    candidates = (Candidate(n1, "m", 0.4, terms), Candidate(n2, "m", None, (), "draining"))
    fields = {
        "id": RequestId("r1"),
        "client_request_id": None,
        "at": utc(time.time()),
        "edge": "a",
        "node": "b",
        "coordinator": "a",
        "model": "standard",
        "served_model": "m",
        "stream": True,
        "status": 200,
        "outcome": "ok",
        "queue_ms": 2.0,
        "ttft_ms": 250.0,
        "total_ms": 1500.0,
        "prompt_tokens": 900,
        "cached_tokens": 100,
        "completion_tokens": 30,
        "attempts": (AttemptFact(node="c", outcome="failed", error="gone"), AttemptFact(node="b", outcome="ok")),
        "why": Why(Decision(request={}, chosen=n1, waited_ms=0.0, candidates=candidates)),
    }
    return RouteFact(**{**fields, **changes})


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The page as a scraper reads it."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_an_ended_request_is_counted_once_everywhere() -> None:
    metrics = Metrics()
    metrics.route(route())
    found = samples(metrics)
    assert found["mlx_mesh_requests_total", (("model", "m"), ("node", "b"), ("outcome", "ok"))] == 1
    assert found["mlx_mesh_attempts_total", (("node", "c"), ("outcome", "failed"))] == 1
    assert found["mlx_mesh_ttft_seconds_sum", (("model", "m"),)] == 0.25
    assert found["mlx_mesh_request_seconds_count", (("model", "m"),)] == 1
    assert found["mlx_mesh_tokens_total", (("kind", "completion"), ("model", "m"))] == 30


def test_answers_that_broke_off_are_counted_by_how_they_went_on() -> None:
    metrics = Metrics()
    cut = AttemptFact(node="c", outcome="failed", error="gone", cut=True)
    again = AttemptFact(node="b", outcome="failed", mode="continue", cut=True)
    vain = AttemptFact(node="b", outcome="failed", mode="continue")
    metrics.route(
        route(outcome="resumed", attempts=(cut, again, vain, AttemptFact(node="b", outcome="ok", mode="replay")))
    )
    metrics.route(route(outcome="failed", attempts=(cut,), lost="nobody", resumable=False))
    found = samples(metrics)
    assert found["mlx_mesh_handovers_total", (("mode", "continue"), ("model", "m"))] == 1
    assert found["mlx_mesh_handovers_total", (("mode", "replay"), ("model", "m"))] == 1
    assert found["mlx_mesh_streams_lost_total", (("reason", "nobody"),)] == 1
    assert found["mlx_mesh_streams_unkept_total", ()] == 1


def test_names_that_clients_invent_are_no_labels() -> None:
    metrics = Metrics()
    for number in range(50):
        fact = route(model=f"invented-{number}", served_model=None, node=None, outcome="refused", ttft_ms=None)
        metrics.route(fact)
    assert "invented" not in metrics.text().decode()
    assert samples(metrics)["mlx_mesh_requests_total", (("model", ""), ("node", ""), ("outcome", "refused"))] == 50


def test_gauges_are_what_is_true_when_asked() -> None:
    now = GAUGES
    metrics = Metrics(lambda: now)
    metrics.count_bytes("client_out", 1000)
    found = samples(metrics)
    assert found["mlx_mesh_nodes", (("state", "ok"),)] == 3
    assert found["mlx_mesh_model_reserved_bytes", (("model", "m"),)] == 8
    assert found["mlx_mesh_model_measured_bytes", (("model", "m"),)] == 7
    assert ("mlx_mesh_model_measured_bytes", (("model", "cold"),)) not in found
    assert found["mlx_mesh_model_state", (("model", "cold"), ("state", "absent"))] == 1
    assert found["mlx_mesh_worker_tokens_total", (("model", "m"),)] == 77
    assert found["mlx_mesh_coordinator", ()] == 1
    assert found["mlx_mesh_bytes_total", (("direction", "client_out"),)] == 1000
    now = Gauges(term=5)
    assert samples(metrics)["mlx_mesh_term", ()] == 5


def test_what_the_node_reports_is_counted() -> None:
    metrics = Metrics()
    metrics.node(ModelFact(model="m", state=ModelState.READY, load_s=3.0))
    call = CallFact(id=RequestId("r"), attempt=1, edge=NodeId("e"), model="m", outcome="ok")
    metrics.node(structs.replace(call, cold=True, wait_ms=2500.0, usage=Usage(prompt=100, cached=30)))
    for done in (40, 100):
        metrics.node(DownloadFact(model="m", source="o/m", phase="progress", done_bytes=done, new_bytes=done // 2))
    found = samples(metrics)
    assert found["mlx_mesh_load_seconds_sum", (("model", "m"),)] == 3.0
    assert found["mlx_mesh_wait_seconds_sum", (("model", "m"),)] == 2.5
    assert found["mlx_mesh_cold_calls_total", (("model", "m"),)] == 1
    assert found["mlx_mesh_prompt_tokens_total", (("kind", "cached"), ("model", "m"))] == 30
    assert found["mlx_mesh_prompt_tokens_total", (("kind", "read"), ("model", "m"))] == 70
    assert found["mlx_mesh_download_bytes_total", (("model", "m"),)] == 70
    assert found["mlx_mesh_calls_total", (("model", "m"), ("outcome", "ok"))] == 1


def test_the_documentation_lists_every_family_and_no_other() -> None:
    documented = set(
        re.findall(r"^\| `(mlx_mesh_\w+)`", (DOCS / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert documented == set(Metrics(lambda: GAUGES).names())


def test_one_fact_reaches_log_metrics_history_and_followers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        metrics, store = Metrics(), RouteStore(tmp_path / "routes.db", pytest.fail)
        observer = Observer(metrics=metrics, store=store)
        with caplog.at_level(logging.INFO), observer.routes.follow() as follower:
            observer.report(route())
            assert follower.get_nowait().id == "r1"
        observer.report(route(id=RequestId("r2")))
        assert follower.empty()
        assert [r["id"] for r in store.last(5)] == ["r2", "r1"]
        assert samples(metrics)["mlx_mesh_queue_seconds_count", ()] == 2
        store.close()

    asyncio.run(scenario())
    fields = next(r.msg.fields() for r in caplog.records if isinstance(r.msg, Later))
    assert fields["id"] == "r1"
    assert (fields["model"], fields["node"], fields["ttft_ms"], fields["outcome"]) == ("standard", "b", 250.0, "ok")
    assert fields["why"] == "soonest of 1, expected 0.40 s, most of it prefill: 900 tokens at 3000/s"


def test_a_slow_follower_loses_the_oldest_and_holds_up_nobody() -> None:
    async def scenario() -> None:
        observer = Observer(metrics=Metrics())
        with observer.routes.follow() as follower:
            for number in range(FOLLOWER_WAITING_MAX + 10):
                observer.report(route(id=RequestId(str(number))))
            assert follower.qsize() == FOLLOWER_WAITING_MAX
            assert follower.get_nowait().id == "10"

    asyncio.run(scenario())


def test_failures_are_warnings_and_say_what_the_client_was_told(caplog: pytest.LogCaptureFixture) -> None:
    observer = Observer(metrics=Metrics())
    with caplog.at_level(logging.DEBUG):
        observer.report(route(outcome="failed", status=503, error="every node failed", node=None, why=None))
        observer.report(ModelFact(model="m", state=ModelState.FAILED, why="exit code 1", retry_s=10.0))
        observer.report(CallFact(id=RequestId("r"), attempt=1, edge=NodeId("e"), model="m", outcome="ok"))
        observer.report(WorkerFact(model="m", text="loading"))
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "ERROR", "DEBUG", "INFO"]
    assert "every node failed" in caplog.records[0].getMessage()
    assert caplog.records[1].getMessage() == "m is failed: exit code 1, started again in 10 s"


def test_why_of_a_request_nobody_could_take() -> None:
    candidates = (Candidate(NodeId("n1"), "m", None, (), "no memory"),)
    refused = route(why=Why(Decision(request={}, chosen=None, waited_ms=0.0, candidates=candidates)))
    assert why(refused) == "n1: no memory"
    late = Decision(
        request={"waited_for": "when it came, n2 was full"}, chosen=None, waited_ms=9.0, candidates=candidates
    )
    assert why(route(why=Why(late))) == "when it came, n2 was full"
    assert why(route(why=None)) == ""
    assert "2 attempts" in sentence(refused)
