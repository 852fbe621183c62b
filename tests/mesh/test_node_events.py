"""Facts become events: which are kept, what they are called, and where they are read."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mesh.event_store import EventSettings, EventStore
from mesh.metrics import Metrics
from mesh.node_events import KINDS, NodeEvent, event_of
from mesh.observe import FOLLOWER_WAITING_MAX, Observer
from node.facts import CallFact, DownloadFact, DrainFact, ModelFact, NodeFact, PressureFact, WorkerFact
from node.types import ModelState, NodeId, Pressure, RequestId

AT = "2026-11-20T06:00:00.123Z"
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def model(state: ModelState, **fields: Any) -> ModelFact:
    return ModelFact(model="m", state=state, **fields)


@pytest.mark.parametrize(
    ("fact", "kind", "text"),
    [
        (model(ModelState.LOADING), "load", ""),
        (model(ModelState.READY, load_s=12.34), "ready", "after 12.3 s"),
        (model(ModelState.DRAINING, cause="evicted", why="big needs its room"), "evict", "big needs its room"),
        (model(ModelState.DRAINING, cause="recycled", why="grown by 4 GB"), "recycle", "grown by 4 GB"),
        (model(ModelState.ABSENT, cause="idle", why="unused for 5 min"), "unload", "unused for 5 min"),
        (model(ModelState.FAILED, cause="crash", why="exit code 1"), "crash", "exit code 1"),
        (model(ModelState.FAILED, cause="killed", why="SIGKILL", retry_s=2), "crash", "SIGKILL; started again in 2 s"),
        (model(ModelState.FAILED, cause="hang", why="no token"), "hang", "no token"),
        (model(ModelState.FAILED, cause="oom", why="out of memory"), "oom", "out of memory"),
        (model(ModelState.FAILED, cause="bad_weights", why="bad weights"), "failed", "bad weights"),
        (PressureFact(pressure=Pressure.WARN, budget_bytes=4 << 30), "pressure", "warn; models may take 4.0 GB"),
        (DrainFact(phase="begun", why="by hand"), "drain", "takes no more requests: by hand"),
        (
            DownloadFact(model="m", source="org/m", phase="failed", why="no such repository"),
            "download",
            "org/m; no such",
        ),
    ],
)
def test_what_is_kept_is_called_by_its_kind(fact: NodeFact, kind: str, text: str) -> None:
    event = event_of(fact, AT)
    assert event is not None
    assert (event.kind, event.at) == (kind, AT)
    assert text in event.text
    assert kind in KINDS
    assert event.model == getattr(fact, "model", "")


@pytest.mark.parametrize(
    "fact",
    [
        CallFact(id=RequestId("r"), attempt=1, edge=NodeId("e"), model="m", outcome="ok"),
        WorkerFact(model="m", text="loading"),
        model(ModelState.READY, why="wanted again"),  # it had only begun to leave
        model(ModelState.DRAINING, cause="idle"),  # what follows is the unload
        model(ModelState.ABSENT, cause="no_room"),  # it was never there
    ],
)
def test_what_is_told_elsewhere_is_no_event(fact: NodeFact) -> None:
    assert event_of(fact, AT) is None


def test_of_a_downloads_progress_only_each_tenth_is_kept() -> None:
    step, total = 7, 1000
    facts = [
        DownloadFact(model="m", source="o/m", phase="progress", done_bytes=done, total_bytes=total, new_bytes=step)
        for done in range(step, total, step)
    ]
    assert len([f for f in facts if event_of(f, AT)]) == 9
    unknown = DownloadFact(model="m", source="o/m", phase="progress", done_bytes=5, new_bytes=5)
    assert event_of(unknown, AT) is None


def test_the_last_events_are_read_oldest_first_and_by_model(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "events.db", pytest.fail)
    for number in range(10):
        store.add(NodeEvent(at=AT, kind="load", model=f"m{number % 2}", text=str(number), data={"n": number}))
    assert [e["text"] for e in store.last(3)] == ["7", "8", "9"]
    assert [e["text"] for e in store.last(2, "m0")] == ["6", "8"]
    assert store.last(0) == []
    store.close()
    again = EventStore(tmp_path / "events.db", pytest.fail)
    assert again.last(1) == [{"at": AT, "kind": "load", "model": "m1", "text": "9", "data": {"n": 9}}]
    again.close()


def test_events_are_bounded(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "events.db", pytest.fail, EventSettings(rows_max=5, prune_every_rows=1))
    for number in range(50):
        store.add(NodeEvent(at="2999-01-01T00:00:00.000Z", kind="load", text=str(number)))
    assert [e["text"] for e in store.last(100)] == ["45", "46", "47", "48", "49"]
    store.close()
    with sqlite3.connect(tmp_path / "events.db") as other:
        assert other.execute("SELECT count(*) FROM events").fetchone() == (5,)


def test_a_fact_is_kept_counted_and_told_to_followers(tmp_path: Path) -> None:
    async def scenario() -> None:
        metrics, store = Metrics(), EventStore(tmp_path / "events.db", pytest.fail)
        observer = Observer(metrics=metrics, events=store)
        with observer.events.follow() as follower:
            observer.report(model(ModelState.DRAINING, cause="evicted", why="for big"))
            observer.report(WorkerFact(model="m", text="talk"))
            observer.life("stop", "told to")
            assert [follower.get_nowait().kind for _ in range(follower.qsize())] == ["evict", "stop"]
            for _ in range(FOLLOWER_WAITING_MAX + 3):
                observer.life("start", "")
            assert follower.qsize() == FOLLOWER_WAITING_MAX
        assert [e["kind"] for e in store.last(1000)][:2] == ["evict", "stop"]
        assert 'mlx_mesh_model_events_total{kind="evict",model="m"} 1.0' in metrics.text().decode()
        assert 'kind="stop"' not in metrics.text().decode()
        store.close()

    asyncio.run(scenario())


def test_the_documentation_lists_every_kind_and_no_other() -> None:
    found = re.findall(r"^\| `(\w+)` \| ", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found == list(KINDS)
