"""The history of routes: bounds, order, finding, and files that are broken."""

from __future__ import annotations

import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from mesh import answers
from mesh.store import MIGRATIONS, RouteStore, StoreSettings, route_json
from node.types import NodeId, RequestId
from router.events import Candidate, Decision, Grant, Term, Why
from router.facts import AttemptFact, RouteFact
from tests.router import fleets

NOW = datetime.now(UTC)


def repr_short(text: str) -> str:
    return ascii(text)[:20]


def fact(number: int, *, age: timedelta = timedelta(), client_id: str | None = None) -> RouteFact:
    at = (NOW - age + timedelta(milliseconds=number)).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    node = NodeId("n1")
    candidate = Candidate(node, "m", 0.25, (Term("wait", 0.0, "free"), Term("prefill", 0.25, "100 tokens")))
    return RouteFact(
        id=RequestId(f"req-{number:06d}"),
        client_request_id=client_id,
        at=at,
        edge="mac-a",
        node="mac-b",
        coordinator="mac-a",
        model="standard",
        served_model="m",
        stream=True,
        status=200,
        outcome="ok",
        queue_ms=1.5,
        ttft_ms=250.0,
        total_ms=900.0,
        prompt_tokens=100,
        cached_tokens=10,
        completion_tokens=20,
        attempts=(AttemptFact(node="mac-b", outcome="ok", ms=899.0),),
        why=Why(
            Decision(
                request={"models": ["standard"]},
                chosen=node,
                waited_ms=1.0,
                candidates=(candidate, Candidate(NodeId("n2"), "m")),
            )
        ),
        error="not for the contract",
    )


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Iterator[RouteStore]:
    store = RouteStore(tmp_path / "routes.db", said.append)
    yield store
    store.close()


def test_a_route_is_exactly_the_contracts(store: RouteStore) -> None:
    store.add(fact(1))
    (found,) = store.last(5)
    assert found == msgspec.json.decode(msgspec.json.encode(route_json(fact(1))))
    assert list(found) == [field.name for field in msgspec.structs.fields(answers.Route)]
    assert list(found["decision"]) == ["request", "chosen", "waited_ms", "candidates"]
    assert list(found["decision"]["candidates"][0]) == ["node", "model", "total_s", "terms", "excluded"]
    assert list(found["decision"]["candidates"][0]["terms"][0]) == ["name", "seconds", "why"]
    assert list(found["attempts"][0]) == ["node", "outcome", "error", "ms", "mode", "cut"]
    assert msgspec.convert(found, answers.Route).decision is not None


@pytest.mark.parametrize("nodes", [1, 30])
def test_a_decision_is_kept_as_numbers_and_read_in_words(store: RouteStore, tmp_path: Path, nodes: int) -> None:
    s = fleets.scheduler(*(fleets.node(f"n{n}", fleets.model()) for n in range(nodes)))
    (grant,) = s.step(fleets.ask("1"), 0.0)
    assert isinstance(grant, Grant)
    route = msgspec.structs.replace(fact(1), why=grant.why)
    store.add(route)
    (found,) = msgspec.json.decode(msgspec.json.encode(store.last(5)))
    assert found == msgspec.json.decode(msgspec.json.encode(route_json(route)))
    assert len(found["decision"]["candidates"]) == nodes
    with sqlite3.connect(tmp_path / "routes.db") as other:
        ((body,),) = other.execute("SELECT body FROM routes").fetchall()
    assert len(body) < len(msgspec.json.encode(found))
    assert b"nobody else is delayed" not in body


def test_routes_of_an_older_version_are_read_as_ever(tmp_path: Path, said: list[str]) -> None:
    path, old = tmp_path / "routes.db", fact(7)
    body = zlib.compress(msgspec.json.encode(route_json(old)), 1)
    with sqlite3.connect(path) as other:
        other.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1;")
        columns = "id, client_request_id, at, edge, node, model, outcome, status, total_ms, body"
        row = (old.id, None, old.at, old.edge, old.node, old.model, old.outcome, old.status, old.total_ms, body)
        other.execute(f"INSERT INTO routes ({columns}) VALUES ({', '.join('?' * 10)})", row)
    other.close()
    store = RouteStore(path, said.append)
    store.add(fact(8))
    assert [r["id"][-1] for r in store.last(5)] == ["8", "7"]
    assert store.find(old.id) == msgspec.json.decode(msgspec.json.encode(route_json(old)))
    store.close()
    assert said == []


def test_newest_first_and_no_more_than_asked(store: RouteStore) -> None:
    for number in (3, 1, 2):  # ended in another order than they began
        store.add(fact(number))
    assert [route["id"][-1] for route in store.last(2)] == ["3", "2"]
    assert store.last(0) == []


def test_finding_by_id_client_id_and_beginning(store: RouteStore) -> None:
    store.add(fact(1, client_id="mine"))
    store.add(fact(2, client_id="mine"))
    store.add(fact(13))

    def found(text: str) -> str | None:
        route = store.find(text)
        return route and route["id"]

    assert found("req-000001") == "req-000001"
    assert found("mine") == "req-000002"  # the newest of them
    assert found("req-00001") == "req-000013"
    assert found("req-0000") is None  # not the only one
    assert found("req") is None
    assert found("none such") is None
    assert found("") is None


@pytest.mark.parametrize(
    "nasty",
    ["' OR 1=1 --", "req-0'; DROP TABLE routes; --", "%" * 10, "abc\0", "abc\U0010ffff", "abc\ud800", "", "x" * 2**20],
    ids=repr_short,
)
def test_no_id_is_more_than_a_word_to_look_for(store: RouteStore, nasty: str) -> None:
    """Ids come from command lines and from peers."""
    store.add(fact(1))
    assert store.find(nasty) is None
    assert len(store.last(10)) == 1


def test_rows_and_days_are_bounded(tmp_path: Path, said: list[str]) -> None:
    settings = StoreSettings(rows_max=10, prune_every_rows=1)
    store = RouteStore(tmp_path / "routes.db", said.append, settings)
    store.add(fact(0, age=timedelta(days=31)))
    store.add(fact(1, age=timedelta(days=29)))
    assert [route["id"] for route in store.last(50)] == ["req-000001"]
    for number in range(2, 30):
        store.add(fact(number))
    assert [route["id"] for route in store.last(50)] == [f"req-{n:06d}" for n in range(29, 19, -1)]
    store.close()
    assert said == []


def test_it_is_all_there_after_a_restart(tmp_path: Path, said: list[str]) -> None:
    for start in (0, 5):
        store = RouteStore(tmp_path / "routes.db", said.append)
        for number in range(start, start + 5):
            store.add(fact(number))
        store.close()
        store.close()
    store = RouteStore(tmp_path / "routes.db", said.append)
    assert len(store.last(50)) == 10
    store.close()
    assert (tmp_path / "routes.db").stat().st_mode & 0o777 == 0o600


def test_it_is_written_without_being_read(store: RouteStore, tmp_path: Path) -> None:
    store.add(fact(1))
    limit = time.monotonic() + 10
    count = 0
    with sqlite3.connect(tmp_path / "routes.db") as other:
        while not count and time.monotonic() < limit:
            (count,) = other.execute("SELECT count(*) FROM routes").fetchone()
            time.sleep(0.01)
    assert count == 1


def test_its_files_are_private_from_their_first_moment(store: RouteStore, tmp_path: Path) -> None:
    store.add(fact(1))
    assert store.last(1)
    files = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert files == {"routes.db": 0o600, "routes.db-wal": 0o600, "routes.db-shm": 0o600}


def test_many_threads_read_while_one_writes(store: RouteStore) -> None:
    seen: list[int] = []

    def read() -> None:
        seen.extend(len(store.last(1000)) for _ in range(20))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(500):
        store.add(fact(number))
    for reader in readers:
        reader.join()
    assert len(store.last(1000)) == 500
    assert len(seen) == 60
    assert store.dropped == 0


def test_what_does_not_fit_the_queue_is_dropped_oldest_first(tmp_path: Path, said: list[str]) -> None:
    store = RouteStore(tmp_path / "routes.db", said.append, StoreSettings(pending_max=3, batch_s=60))
    for number in range(5):
        store.add(fact(number))
    assert store.dropped == 2
    assert [route["id"][-1] for route in store.last(9)] == ["4", "3", "2"]


@pytest.mark.parametrize("content", [b"this is no database, " * 50, b"SQLite format 3\x00" + b"\xff" * 4096])
def test_a_foreign_file_is_moved_aside(tmp_path: Path, said: list[str], content: bytes) -> None:
    path = tmp_path / "routes.db"
    path.write_bytes(content)
    store = RouteStore(path, said.append)
    store.add(fact(1))
    assert len(store.last(5)) == 1
    store.close()
    assert len(said) == 1
    (kept,) = tmp_path.glob("routes.db.broken-*")
    assert kept.name in said[0]
    assert kept.read_bytes() == content


def test_a_truncated_file_is_moved_aside(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "routes.db"
    store = RouteStore(path, said.append)
    for number in range(500):
        store.add(fact(number))
    store.close()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    store = RouteStore(path, said.append)
    store.last(500)  # SQLite notices where it reads
    store.add(fact(1))
    assert store.last(1)[0]["id"] == "req-000001"
    store.close()
    assert len(said) == 1


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (f"PRAGMA user_version = {len(MIGRATIONS) + 1}", "it has version"),
        ("CREATE TABLE routes (x)", "already exists"),
        (f"CREATE TABLE other (x); PRAGMA user_version = {len(MIGRATIONS)}", "no such table"),
    ],
)
def test_a_database_of_another_program_or_version_is_moved_aside(
    tmp_path: Path, said: list[str], script: str, why: str
) -> None:
    path = tmp_path / "routes.db"
    with sqlite3.connect(path) as other:
        other.executescript(script)
    other.close()
    store = RouteStore(path, said.append)
    store.add(fact(1))
    assert len(store.last(5)) == 1
    store.close()
    assert len(said) == 1
    assert why in said[0]


def test_a_place_that_cannot_be_written_costs_the_history_only(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "routes.db").mkdir()
    store = RouteStore(tmp_path / "routes.db", said.append)
    store.add(fact(1))
    assert store.last(5) == []
    assert store.find("req-000001") is None
    store.close()
    assert len(said) == 1
