"""What the bench measures with: when daemons agreed, by their own logs, and trials on a real mesh."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from tests.lab.told import Log, agreement
from tests.lab.trials import coordinator_frozen, coordinator_killed, five, node_killed


def log(folder: Path, name: str, *rulings: tuple[float, str, int]) -> Log:
    """Of a daemon that said at so many seconds after the epoch who coordinates in which term."""
    lines = [
        {"at": at(second), "level": "info", "event": "coordinator", "message": "", "term": term, "coordinator": who}
        for second, who, term in rulings
    ]
    path = folder / name
    path.write_text("not JSON\n" + "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    return Log(path)


def at(second: float) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_they_agree_since_the_last_of_them_came_to_what_all_hold(tmp_path: Path) -> None:
    logs = [log(tmp_path, "one", (1.0, "a", 1), (5.0, "b", 2)), log(tmp_path, "two", (5.25, "b", 2))]
    found = agreement(logs, ["b", "c"])
    assert found is not None
    assert (found.coordinator, found.term) == ("b", 2)
    assert abs(found.at - logs[0].rulings()[-1].at - 0.25) < 0.01


def test_they_do_not_agree_in_other_terms_nor_on_one_who_is_lost_nor_while_one_said_nothing(tmp_path: Path) -> None:
    one, two = log(tmp_path, "one", (1.0, "b", 2)), log(tmp_path, "two", (1.0, "b", 3))
    assert agreement([one, two], ["b"]) is None
    assert agreement([one], ["a"]) is None
    assert agreement([one, log(tmp_path, "three")], ["b"]) is None


def test_a_log_is_read_on_and_what_is_not_whole_yet_waits(tmp_path: Path) -> None:
    read = log(tmp_path, "one", (1.0, "b", 2))
    assert [told.term for told in read.rulings()] == [2]
    line = '{"at":"2026-01-01T00:00:00.000Z","level":"warning","event":"node","message":"gone","node":"c"}\n'
    with (tmp_path / "one").open("a") as file:
        file.write(line[:40])
        file.flush()
        assert len(read.told()) == 1
        file.write(line[40:])
    assert [told.node for told in read.gone(float("-inf"))] == ["c"]


async def test_trials_on_one_mesh_measure_what_was_lost_and_leave_it_whole(tmp_path: Path, model: Path) -> None:
    async with five(tmp_path, model, pause_s=0.05) as mesh:
        for trial in (coordinator_killed, node_killed, coordinator_frozen):
            outcome = await trial(mesh)
            await mesh.mend()
            await mesh.whole()
            assert outcome.seconds[""] > 0
            mesh.number += 1
        assert [said.error for said in mesh.asker.said() if said.error] == []
