"""`mesh simulate`: fleets from a mesh, a file and a chip's name; requests from a trace and from routes; the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from mesh import answers, simulate
from mesh.cli import root
from mesh.errors import MeshError
from mesh.home import Home
from router.replay.trace import Row, Trace

GIB = 1 << 30
FLEET = """
models:
  small: 4.6 GB
  large: {size}
machines:
  - M4 16GB
  - {{mac: M3 Ultra 96GB, name: studio, models: [large, small], slots: 4}}
"""
TRACE = '{"meta": {"block": 64}}\n' + "".join(
    json.dumps({"t": n * 0.7, "i": 300 + 40 * (n % 9), "o": 30, "h": [n % 5], "s": -1, "g": 0}) + "\n"
    for n in range(40)
)


def model(name: str, gigabytes: float = 4.6, **more: Any) -> dict[str, Any]:
    return {"name": name, "size_bytes": int(gigabytes * 1e9), "slots": 4, "state": "absent", **more}


def node(name: str, chip: str, gib: int, *models: dict[str, Any], **more: Any) -> dict[str, Any]:
    hardware = {"chip": chip, "memory_bytes": gib * GIB, "gpu_cores": 40}
    return {"name": name, "id": name, "state": "ok", "hardware": hardware, "models": list(models), **more}


MESH = {
    "mesh": {"name": "default", "enabled": True, "coordinator": "mini", "term": 1, "alone": False},
    "self": "mini",
    "nodes": [
        node("mini", "Apple M4", 16, model("small", prefill_tps=200.0, decode_tps=20.0)),
        node("studio", "Apple M3 Ultra", 96, model("large", 18.0), model("small", state="ready"), rtt_ms=4.0),
        node("gone", "Apple M4 Max", 64, model("small"), state="dead"),
        node("laptop", "Apple M2", 8),
    ],
}


def route(n: int, **more: Any) -> dict[str, Any]:
    facts = {"id": f"r{n}", "at": f"2026-11-20T06:00:{n:02d}.500Z", "node": "mini", "model": "small", "outcome": "ok"}
    return {**facts, "prompt_tokens": 640, "completion_tokens": 20, **more}


def routes(*found: dict[str, Any]) -> tuple[answers.Route, ...]:
    return answers_of({"routes": list(found)}).routes


def answers_of(data: dict[str, Any]) -> answers.Routes:
    return msgspec.convert(data, answers.Routes)


def run(*words: str) -> Result:
    return CliRunner().invoke(root, ("mesh", "simulate", *words), prog_name="mlx-stack")


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A fleet and a trace."""
    fleet, trace = tmp_path / "fleet.yaml", tmp_path / "day.jsonl"
    fleet.write_text(FLEET.format(size="18 GB"))
    trace.write_text(TRACE)
    return str(fleet), str(trace)


# The command


def test_a_trace_on_a_fleet_of_a_file_needs_no_daemon(home: Home, files: tuple[str, str]) -> None:
    fleet, trace = files
    found = run("--trace", trace, "--fleet", fleet)
    assert found.exit_code == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0].startswith("40 requests, 1.47 a second: ")
    assert lines[2].split() == ["POLICY", "FIRST", "TOKEN", "MEAN", "P50", "P99", "WHOLE", "MEAN", "P99"]
    assert [line.split("  ")[0] for line in lines[3:6]] == ["mlx-stack", "least in flight", "round robin"]
    assert any(line.startswith("M4 16GB") for line in lines)


def test_json_has_every_figure(home: Home, files: tuple[str, str]) -> None:
    fleet, trace = files
    found = json.loads(run("--trace", trace, "--fleet", fleet, "--rate", "5", "--last", "20", "--json").stdout)
    assert (found["requests"], found["rate"]) == (20, 5.0)
    assert sum(found["models"].values()) == 20
    for entry in found["runs"]:
        result = entry["result"]
        assert result["jobs"] == 20
        assert 0 < result["ttft_s_p50"] <= result["ttft_s_p99"] <= result["e2e_s_p99"]
        assert [share["name"] for share in result["machines"]] == ["M4 16GB", "studio"]
        assert sum(share["jobs"] for share in result["machines"]) == 20


def test_one_more_machine_is_shown_beside_the_fleet_as_it_is(home: Home, files: tuple[str, str]) -> None:
    fleet, trace = files
    found = json.loads(run("--trace", trace, "--fleet", fleet, "--rate", "9", "--add", "M4 Max 64GB", "--json").stdout)
    ours = {entry["fleet"]: entry["result"] for entry in found["runs"] if entry["policy"] == "mlx-stack"}
    assert list(ours) == ["as it is", "with M4 Max 64GB"]
    assert ours["with M4 Max 64GB"]["ttft_s_mean"] < ours["as it is"]["ttft_s_mean"]
    assert [share["name"] for share in ours["with M4 Max 64GB"]["machines"]] == ["M4 16GB", "studio", "+ M4 Max 64GB"]
    assert "with M4 Max 64GB" in run("--trace", trace, "--fleet", fleet, "--add", "M4 Max 64GB").stdout


def test_recorded_requests_on_this_mesh(admin: Any) -> None:
    admin.answer("GET /v1/mesh/status", MESH)
    admin.answer("GET /v1/mesh/routes?last=2000", {"routes": [route(n) for n in range(12)]})
    found = run("--recorded")
    assert found.exit_code == 0, found.stderr
    assert found.stdout.startswith("12 requests, 1.09 a second: small 12\n")
    assert "mini" in found.stdout
    assert "studio" in found.stdout
    assert "laptop" not in found.stdout


def test_without_a_daemon_it_is_said(home: Home) -> None:
    found = run()
    assert found.exit_code == 1
    assert "not running" in found.stderr


def test_without_a_recorded_request_it_says_what_to_do(admin: Any) -> None:
    admin.answer("GET /v1/mesh/status", MESH)
    admin.answer("GET /v1/mesh/routes?last=2000", {"routes": [route(1, outcome="failed")]})
    found = run("--json")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "--trace FILE" in found.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--recorded", "--trace"), "exclude each other"),
        (("--rate", "0", "--trace"), "--rate"),
    ],
)
def test_wrong_usage(home: Home, files: tuple[str, str], words: tuple[str, ...], said: str) -> None:
    found = run(*words, files[1])
    assert found.exit_code == 2
    assert said in found.stderr


@pytest.mark.parametrize("written", ["RTX 4090 24GB", "M4 8GB"])
def test_a_machine_that_cannot_be_added(home: Home, files: tuple[str, str], written: str, tmp_path: Path) -> None:
    fleet = tmp_path / "large.yaml"
    fleet.write_text("models: {large: 40 GB}\nmachines: [M3 Ultra 96GB]\n")
    found = run("--trace", files[1], "--fleet", str(fleet), "--add", written)
    assert found.exit_code == 1
    assert written in found.stderr
    assert len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {a: 4 GB}\nmachines: [M4]\n", "like"),
        ("models: {a: 4 GB}\nmachines: []\n", "there is none"),
        ("models: {a: 4 GB}\nmachines: [{mac: M4 16GB, models: [b]}]\n", "there is no b"),
        ("models: {a: 4 GB}\nmachine: [M4 16GB]\n", "machine"),
        ("models: {a: 4 parsecs}\nmachines: [M4 16GB]\n", "24 GB"),
        ("models: [\n", "no fleet"),
        ("nodes: []\n", "no node"),
    ],
)
def test_a_file_that_is_no_fleet_says_why(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(text)
    with pytest.raises(MeshError, match=said):
        simulate.fleet_of_file(file)


def test_a_file_that_is_no_trace_says_so(home: Home, files: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("TIMESTAMP,ContextTokens\n1,2\n")
    found = run("--trace", str(file), "--fleet", files[0])
    assert found.exit_code == 1
    assert "is no trace" in found.stderr


# Fleets


def test_a_fleet_of_a_file(files: tuple[str, str]) -> None:
    mini, studio = simulate.fleet_of_file(Path(files[0]))
    assert (mini.name, mini.bandwidth, [m.name for m in mini.models]) == ("M4 16GB", 120.0, ["small"])
    assert (studio.name, studio.slots, [m.name for m in studio.models]) == ("studio", 4, ["large", "small"])
    assert studio.resident, "both fit into its memory"


def test_models_that_do_not_fit_together_are_held_one_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text("models: {a: 40 GB, b: 40 GB}\nmachines: [M3 Ultra 96GB]\n")
    (machine,) = simulate.fleet_of_file(file)
    assert not machine.resident


def test_a_mesh_as_it_told_its_status(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    file.write_text(json.dumps(MESH))
    mini, studio = simulate.fleet_of_file(file)
    assert (mini.name, studio.name) == ("mini", "studio")
    assert mini.home.prefill_tps == 200.0, "as it has measured"
    assert mini.home.step_s == pytest.approx(1 / 20)
    assert studio.home.name == "small", "that one is loaded"
    assert studio.home.prefill_tps == pytest.approx(7.6 * 819 / 4.6), "nobody has measured it: by bandwidth"
    assert studio.rtt_s == pytest.approx(0.004)


def test_an_added_machine_serves_what_fits_and_is_asked_for_most_first() -> None:
    fleet = simulate.fleet_of_status(msgspec.convert(MESH, answers.MeshStatus))
    *_, added = simulate.with_added(fleet, ["M4 Pro 24GB"], {"small": 9, "large": 1})
    assert [m.name for m in added.models] == ["small"], "18 GB do not fit into 16 that may be used"
    *_, added = simulate.with_added(fleet, ["M4 Pro 64GB"], {"small": 1, "large": 9})
    assert [m.name for m in added.models] == ["large", "small"]


# Requests


def test_recorded_routes_keep_their_times_lengths_and_models() -> None:
    found = routes(
        route(5),
        route(2, served_model="qwen", prompt_tokens=100),
        route(9, outcome="failed"),
        route(3, completion_tokens=0),
    )
    trace = simulate.trace_of_routes(found)
    assert [(row.t, row.m, row.i, row.o) for row in trace.rows] == [(0.0, "qwen", 100, 20), (3.0, "small", 640, 20)]


def test_a_route_that_found_its_prompt_cached_goes_on_from_an_earlier_one() -> None:
    found = routes(
        route(1, prompt_tokens=640),
        route(2, prompt_tokens=640, node="studio"),
        route(3, prompt_tokens=1280, cached_tokens=640),
        route(4, prompt_tokens=700),
    )
    first, elsewhere, goes_on, alone = simulate.trace_of_routes(found).rows
    assert len(first.h) == 10
    assert goes_on.h[:10] == first.h
    assert len(goes_on.h) == 20
    assert not set(goes_on.h) & set(elsewhere.h)
    assert not set(alone.h) & {*first.h, *elsewhere.h, *goes_on.h}


def test_requests_for_models_that_nobody_has_are_left_out_and_named(files: tuple[str, str]) -> None:
    fleet = simulate.fleet_of_file(Path(files[0]))
    trace = Trace("some", (Row(0.0, 10, 10, m="small"), Row(1.0, 10, 10, m="huge"), Row(2.0, 10, 10)))
    kept, notes = simulate.replayable(trace, fleet, 100)
    assert len(kept.rows) == 2
    assert notes == ["left out: 1 requests for huge, which no machine has"]
    with pytest.raises(MeshError, match="huge"):
        simulate.replayable(Trace("some", trace.rows[1:2]), fleet, 100)


def test_requests_that_came_together_are_replayed_together(files: tuple[str, str]) -> None:
    fleet = simulate.fleet_of_file(Path(files[0]))
    found = simulate.simulate(Trace("burst", tuple(Row(0.0, 100, 10, m="small") for _ in range(5))), {"now": fleet})
    assert found.rate is None
    assert found.models == {"small": 5}
