"""mesh/draining.py: a drain by hand outlives its process and ends on time, by the wall clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesh import draining
from mesh.draining import Draining
from mesh.files import write_atomic
from mesh.home import Home
from tests.mesh.daemons import running
from tests.mesh.waiting import until

NOON = 1_763_640_000.0  # 2025-11-20 12:00:00 UTC


class Node:
    """A home, a wall clock and a host; `draining()` is what a start of the daemon makes of them."""

    def __init__(self, folder: Path) -> None:
        self.file, self.now = folder / "drain.json", NOON
        self.reasons: list[str] = []  # of each drain; "" where one ended
        self.told: list[str] = []
        self.looks = 0  # at the clock

    def drain(self, reason: str) -> None:
        self.reasons.append(reason)

    def undrain(self) -> None:
        self.reasons.append("")

    def clock(self) -> float:
        self.looks += 1
        return self.now

    def draining(self) -> Draining:
        return Draining(self.file, self, tell=self.told.append, write=write_atomic, clock=self.clock)

    async def looked(self) -> None:
        """Returns after it has looked at the clock by itself, twice."""
        seen = self.looks
        await until(lambda: self.looks >= seen + 2)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(draining, "LOOK_EVERY_S", 0.01)
    return Node(tmp_path)


async def test_it_holds_over_restarts_until_it_is_ended(node: Node) -> None:
    first = node.draining()
    first.restore()
    assert node.reasons == [], "nobody has drained it yet"
    first.begin(None)
    first.pause()
    second = node.draining()
    second.restore()
    assert node.reasons == ["drained by hand"] * 2
    second.end()
    node.draining().restore()
    assert node.reasons == ["drained by hand"] * 2 + [""]
    assert node.told == []


async def test_its_end_is_a_time_of_day_and_kept_over_restarts(node: Node) -> None:
    first = node.draining()
    first.begin(7200.0)
    first.pause()
    node.now += 3600
    second = node.draining()
    second.restore()
    assert node.reasons == ["drained by hand until 2025-11-20 14:00:00 UTC"] * 2
    await node.looked()
    assert node.told == [], "not yet"
    node.now += 3600  # the machine slept, or its clock was set
    await until(lambda: node.reasons[-1] == "")
    assert "time of its drain is over" in node.told[0]
    node.draining().restore()
    assert len(node.reasons) == 3


async def test_one_whose_time_was_over_while_the_node_was_down_is_no_more(node: Node) -> None:
    first = node.draining()
    first.begin(60.0)
    first.pause()
    node.now += 61
    node.draining().restore()
    node.draining().restore()
    assert node.reasons == ["drained by hand until 2025-11-20 12:01:00 UTC"]
    assert len(node.told) == 1, "said once"
    assert "while it was down" in node.told[0]


async def test_the_later_word_counts(node: Node) -> None:
    made = node.draining()
    made.begin(10.0)
    made.begin(20.0)
    node.now += 15
    await node.looked()
    assert node.reasons[-1] == "drained by hand until 2025-11-20 12:00:20 UTC"
    made.begin(None)
    assert json.loads(node.file.read_text()) == {"version": 1, "draining": True, "until": None}
    made.end()
    made.end()


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"draining": "yes"}', b"\xff", b'{"until":1e300}', b'{"until":-1e300}']
)
async def test_a_damaged_file_is_moved_aside_and_nothing_is_drained(node: Node, content: bytes) -> None:
    node.file.write_bytes(content)
    node.draining().restore()
    assert node.reasons == []
    assert len(node.told) == 1
    assert "drain.json" in node.told[0]


async def test_a_file_of_a_later_version_is_read(node: Node) -> None:
    node.file.write_text('{"version": 2, "draining": true, "until": null, "by": "ann"}')
    node.draining().restore()
    assert node.reasons == ["drained by hand"]


async def test_a_daemon_starts_drained_and_its_end_ends_nothing(daemon_home: Home) -> None:
    (daemon_home.node / "drain.json").write_text('{"draining": true}')
    async with running(daemon_home) as made:
        node = (await made.control.mesh_status())["nodes"][0]
        assert (node["state"], node["reason"]) == ("draining", "drained by hand")
        made.stop(0.0)
        made.control.drain_here(False, None)
    assert made.host.draining, "who ends takes nothing more, whoever undrains it"
    assert json.loads((daemon_home.node / "drain.json").read_text())["draining"] is True
