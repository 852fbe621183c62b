"""Models of a hub: added, fetched by the node, seen on their way, removed. The hub is a small one on loopback."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.daemons import tier, wait_for
from tests.server.downloads import MIB, Make, answer, cache, downloads, fetched, refusal, shown
from tests.server.hub import COMMIT, Hub

pytestmark = pytest.mark.server


def test_a_model_of_the_hub_is_added_fetched_loaded_and_answers(
    node: Make, hub: Hub, hub_model: Path, tmp_path: Path
) -> None:
    hub.add("org/tiny", hub_model)
    one = node("solo", ()).start()
    done = one.cli("models", "add", "org/tiny", "--alias", "small")
    assert "the running node downloads org/tiny" in done.stdout
    one.wait_models("ready")
    assert answer(one, "small")
    assert one.model("small").source == "org/tiny"
    asked = {path.rpartition("/")[2] for _, path, _ in hub.asked if "/resolve/" in path}
    assert asked == {"config.json", "model.safetensors", "more.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(hub.tokens) == {""}
    assert not list(cache(tmp_path).glob("**/*incomplete*"))
    assert (cache(tmp_path) / "snapshots" / COMMIT / "model.safetensors").exists()
    assert [e["kind"] for e in one.json("logs", "--events")["events"] if "download" in e["kind"]] != []
    # A second look at the stack file finds it where it is, and leaves the worker alone.
    pids = {p.pid for p in one.workers()}
    one.client.reload()
    assert {p.pid for p in one.workers()} == pids
    asked_before = len(hub.asked)
    one.stop()
    one.start().wait_models("ready")
    assert len(hub.asked) == asked_before


def test_while_it_is_fetched_it_is_seen_refused_and_others_are_served(
    node: Make, hub: Hub, hub_model: Path, tiny_model: Path
) -> None:
    repo = hub.add("org/tiny", hub_model)
    repo.bytes_per_s = MIB / 4  # a minute: it must not be over before it was looked at
    one = node("solo", [tier(tiny_model, name="quick"), tier("org/tiny", name="big")]).start()
    wait_for("quick is ready", lambda: shown(one, "quick").state == "ready")
    wait_for("its rate is shown", lambda: "MB/s" in (one.model("big").error or ""), every_s=0.02)
    repo.hold.clear()  # from here on it stands still, however slow this machine is
    assert one.model("big").state == "downloading"
    assert "downloading, " in one.cli("models").stdout
    assert "downloading, " in one.cli("mesh", "status").stdout
    error = refusal(one, "big")
    assert "not there yet: downloading" in error.message
    assert " %" in error.message
    assert answer(one, "quick")
    repo.hold.set()
    repo.bytes_per_s = 0.0
    one.wait_models("ready", "ready")
    assert answer(one, "big")


def test_so_many_at_once_the_others_wait_for_their_turn(node: Make, hub: Hub, hub_model: Path) -> None:
    names = ["org/a", "org/b", "org/c"]
    for name in names:
        hub.add(name, hub_model).hold.clear()
    one = node("solo", [tier(name, name=name[-1]) for name in names]).start()
    wait_for("two are under way", lambda: sum("MB/s" in (m.error or "") for m in one.client.models()) == 2)
    assert len(downloads(one)) == 2
    assert one.model("org/c").error == "downloading, waiting for its turn"
    for repo in hub.repos.values():
        repo.hold.set()
    one.wait_models("ready", "ready", "ready", limit_s=240.0)


def test_two_daemons_with_one_cache_fetch_it_once(node: Make, hub: Hub, hub_model: Path) -> None:
    repo = hub.add("org/tiny", hub_model)
    repo.hold.clear()
    nodes = [node(name, [tier("org/tiny")]).start() for name in ("ada", "bob")]
    wait_for(
        "one waits for the other", lambda: any("another process" in (shown(n, "org/tiny").error or "") for n in nodes)
    )
    repo.hold.set()
    for one in nodes:
        one.wait_models("ready")
    assert hub.sent["more.safetensors"] == 8 * MIB


# The command


def test_the_command_shows_the_way_and_an_interrupt_leaves_it_going(
    node: Make, hub: Hub, hub_model: Path, tmp_path: Path
) -> None:
    repo = hub.add("org/tiny", hub_model)
    repo.bytes_per_s = MIB / 4
    one = node("solo", ()).start()
    said = tmp_path / "said"
    argv = [sys.executable, "-m", "mesh.cli", "models", "add", "org/tiny"]
    with said.open("wb") as stderr:
        # Tests that a shell has started in the background ignore interrupts, and so would what they start.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        command = subprocess.Popen(argv, env=one.environment, stdout=subprocess.DEVNULL, stderr=stderr)
        signal.signal(signal.SIGINT, before)
    wait_for("it shows the rate", lambda: "MB/s" in said.read_text())
    repo.hold.clear()  # from here on it stands still: the interrupt must not come after the end
    command.send_signal(signal.SIGINT)
    assert command.wait(timeout=60) == 1
    assert "goes on downloading in the running node" in said.read_text()
    assert "Traceback" not in said.read_text()
    repo.bytes_per_s = 0.0
    repo.hold.set()
    one.wait_models("ready")


def test_removed_while_it_is_fetched_it_ends_and_goes_on_when_added_again(
    node: Make, hub: Hub, hub_model: Path, tmp_path: Path
) -> None:
    repo = hub.add("org/tiny", hub_model)
    repo.bytes_per_s = MIB
    one = node("solo", [tier("org/tiny", name="big")]).start()
    fetched(one, 0.4)
    repo.hold.clear()  # it must not be over before it is removed
    one.cli("models", "remove", "big")
    wait_for("it is gone", lambda: one.client.models() == ())
    wait_for("its process has ended", lambda: not downloads(one))
    kept = sum(f.stat().st_size for f in cache(tmp_path).glob("blobs/*"))
    assert kept >= 3 * MIB
    repo.bytes_per_s = 0.0
    repo.hold.set()
    before = len(hub.asked)
    one.cli("models", "add", "org/tiny", "--as", "again")
    one.wait_models("ready")
    ranges = {path: asked for _, path, asked in hub.asked[before:] if path.startswith("/storage/")}
    assert ranges["/storage/org/tiny/more.safetensors"].startswith("bytes=")


def test_of_a_node_that_is_down_the_next_start_fetches_it(node: Make, hub: Hub, hub_model: Path) -> None:
    hub.add("org/tiny", hub_model)
    one = node("solo", ())
    assert "next `mlx-stack up` downloads org/tiny" in one.cli("models", "add", "org/tiny").stdout
    assert "is downloaded first, from org/tiny" in one.cli("up", "--dry-run").stdout
    one.start().wait_models("ready")
