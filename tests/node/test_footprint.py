"""Sizes of a model: guessed, measured, remembered; files that hold something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from node.errors import NodeError
from node.headroom import GIB, Taken
from node.io.engine import ModelSpec
from node.io.files import read_file, write_file
from node.io.footprint import Footprint
from node.io.measured import Measured
from node.settings import NodeSettings
from tests.node.models import model_directory

SETTINGS = NodeSettings()
MIB = 2**20


def looked(directory: Path, measured: Measured, **spec: Any) -> Footprint:
    footprint = Footprint(SETTINGS, measured)
    footprint.look(ModelSpec(name="m", path=str(directory), **spec), 16 * GIB)
    return footprint


def test_a_size_is_guessed_then_measured_then_remembered(tmp_path: Path) -> None:
    model, file = model_directory(tmp_path / "m"), tmp_path / "home" / "node" / "measured.json"
    first = looked(model, Measured(file))
    guess = first.size
    assert guess > 3000 + first.cache
    first.started()
    assert first.see(100 * MIB, grown=False)
    first.remember()
    assert first.measured == 100 * MIB
    assert first.size == 100 * MIB + first.cache + first.cache // 10 + GIB // 4
    assert not first.see(99 * MIB, grown=False), "less than ever: nothing new"
    assert first.see(2 * GIB, grown=False)
    first.remember()
    assert first.size == 2 * GIB
    assert not first.see(9 * GIB, grown=True), "what leaks is not what the next worker needs"
    assert (first.size, first.measured) == (2 * GIB, 9 * GIB)
    first.ended()
    assert first.measured == 0
    assert looked(model, Measured(file)).size == 2 * GIB
    moved = model.rename(tmp_path / "elsewhere")
    assert looked(moved, Measured(file)).size == 2 * GIB, "a model is known by its files, not by its folder"


def test_the_next_worker_corrects_what_is_right_after_a_load(tmp_path: Path) -> None:
    footprint = looked(model_directory(tmp_path / "m"), Measured())
    for base in (100 * MIB, 140 * MIB):
        footprint.started()
        footprint.see(base, grown=False)
        assert footprint.size == base + footprint.cache + footprint.cache // 10 + GIB // 4


def test_a_command_whose_weights_we_cannot_read_is_known_by_measurement(tmp_path: Path) -> None:
    measured = Measured(tmp_path / "measured.json")
    spec = ModelSpec(name="m", engine="command", command=("serve", "{port}"), path="no/where")
    footprint = Footprint(SETTINGS, measured)
    with pytest.raises(NodeError):
        footprint.look(spec, GIB)
    assert footprint.size == 0
    footprint.started()
    assert footprint.see(GIB, grown=False)
    footprint.remember()
    again = Footprint(SETTINGS, measured)
    with pytest.raises(NodeError):
        again.look(spec, GIB)
    assert again.size == GIB


def test_the_users_bound_of_the_cache_and_context_count(tmp_path: Path) -> None:
    model = model_directory(tmp_path / "m")
    assert looked(model, Measured(), extra_args=("--prompt-cache-bytes", "12345")).cache == 12345
    assert looked(model, Measured(), context=99).shape.context == 99


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": {"base_bytes": "x"}}', b"\xff\xfe", b"[" * 10_000])
def test_a_damaged_memory_is_set_aside(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "measured.json"
    file.write_bytes(content)
    measured = Measured(file)
    assert measured.get("a") is None
    assert file.with_name("measured.json.bad").read_bytes() == content
    measured.put("a", Taken(1))
    assert Measured(file).get("a") == Taken(1)


def test_a_disk_that_takes_nothing_costs_only_the_memory(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("a file where the folder should be")
    assert not write_file(tmp_path / "node" / "x.json", b"{}")
    assert read_file(tmp_path / "node" / "x.json", dict[str, int]) is None
    measured = Measured(tmp_path / "node" / "x.json")
    measured.put("a", Taken(1))
    assert measured.get("a") == Taken(1)


def test_the_oldest_measurement_is_forgotten_first(tmp_path: Path) -> None:
    measured = Measured()
    for number in range(1005):
        measured.put(str(number), Taken(number))
    assert measured.get("4") is None
    assert measured.get("5") == Taken(5)
    assert measured.get("1004") == Taken(1004)
