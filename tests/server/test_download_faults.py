"""A download that breaks off goes on where it was; what cannot be had says why and what to do about it."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bench.ports import free_port
from tests.server.daemons import alive, tier, wait_for, words
from tests.server.downloads import MIB, Make, answer, cache, downloads, failed, fetched, on_its_way, refusal, shown
from tests.server.hub import Hub

pytestmark = pytest.mark.server


# Cut and gone on


def test_a_cut_connection_is_resumed_where_it_broke(node: Make, hub: Hub, hub_model: Path) -> None:
    repo = hub.add("org/tiny", hub_model)
    repo.cuts["more.safetensors"] = [3 * MIB + 1, MIB // 2, 2 * MIB]
    node("solo", [tier("org/tiny")]).start().wait_models("ready")
    ranges = [asked for _, path, asked in hub.asked if path.startswith("/storage/") and asked]
    assert ranges == [f"bytes={mib * MIB}-" for mib in (3, 3, 5)]
    assert hub.sent["more.safetensors"] < 9 * MIB


def test_a_hub_without_ranges_sends_it_again(node: Make, hub: Hub, hub_model: Path) -> None:
    repo = hub.add("org/tiny", hub_model)
    repo.ranges, repo.cuts["more.safetensors"] = False, [3 * MIB, MIB]
    node("solo", [tier("org/tiny")]).start().wait_models("ready")


def test_a_killed_daemon_goes_on_where_it_was(node: Make, hub: Hub, hub_model: Path, tmp_path: Path) -> None:
    repo = hub.add("org/tiny", hub_model)
    repo.bytes_per_s = MIB
    one = node("solo", [tier("org/tiny")]).start()
    fetched(one, 0.5)
    repo.hold.clear()  # it must not be over before the daemon is killed
    children = downloads(one)
    one.signal(signal.SIGKILL)
    one.ended()
    wait_for("its children have followed it", lambda: not any(map(alive, children)))
    partial = cache(tmp_path) / "blobs" / (repo.etag("more.safetensors") + ".incomplete")
    here = partial.stat().st_size
    assert here >= MIB
    repo.bytes_per_s = 0.0
    repo.hold.set()
    before = len(hub.asked)
    one.start().wait_models("ready")
    ranges = {path: asked for _, path, asked in hub.asked[before:] if path.startswith("/storage/")}
    assert ranges["/storage/org/tiny/more.safetensors"] == f"bytes={here}-"


def test_a_killed_download_is_told_and_comes_again(node: Make, hub: Hub, hub_model: Path) -> None:
    repo = hub.add("org/tiny", hub_model)
    repo.hold.clear()
    one = node("solo", [tier("org/tiny")]).start()
    wait_for("it is under way", lambda: on_its_way(one))

    def told() -> bool:
        """It comes again by itself: killed each time, until it is seen between two tries."""
        for process in downloads(one):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        found = shown(one, "org/tiny")
        return found.state == "failed" and all("SIGKILL" in text for text in (found.error or "", refusal(one).message))

    wait_for("its end is told", told)
    repo.hold.set()
    one.wait_models("ready")


def test_a_hub_that_is_away_is_told_and_asked_again(
    node: Make, hub: Hub, hub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", hub_model).down = True
    one = node("solo", [tier("org/tiny")]).start()
    failed(one, hub.url, "503")
    hub.repos["org/tiny"].down = False
    one.wait_models("ready")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    two = node("other", [tier("org/else")]).start()
    failed(two, "cannot fetch it from http://127.0.0.1", "refused", name="org/else")


# Not to be had


@pytest.mark.parametrize("private", [False, True])
def test_a_gated_or_private_model_says_what_to_do_and_comes_with_a_token(
    node: Make, hub: Hub, hub_model: Path, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.add("org/tiny", hub_model)
    repo.token, repo.private = "hf_Secret0Of0The0Test", private
    one = node("solo", ()).start()
    done = one.cli("models", "add", "org/tiny", code=1)
    needed = ("private", "HF_TOKEN") if private else ("gated", f"accept its licence at {hub.url}/org/tiny", "HF_TOKEN")
    assert all(word in done.stderr for word in needed), done.stderr
    assert "`mlx-stack models load tiny` tries again" in done.stderr
    failed(one, *needed)
    monkeypatch.setenv("HF_TOKEN", "hf_Of0Somebody0Else")
    one.stop()
    one.start()
    failed(one, "may not have it" if not private else "private")
    monkeypatch.setenv("HF_TOKEN", repo.token)
    one.stop()
    repo.hold.clear()
    one.start()
    wait_for("it is under way", lambda: on_its_way(one))
    lines = [word for process in downloads(one) for word in words(process)]
    assert lines
    assert not any("hf_" in word for word in lines)
    repo.hold.set()
    one.wait_models("ready")
    assert set(hub.tokens) == {""}
    assert "hf_" not in one.log()


def test_what_is_not_there_or_no_mlx_model_is_told(node: Make, hub: Hub, hub_model: Path, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").write_bytes(b"GGUF")
    hub.add("org/gguf", tmp_path / "gguf")
    hub.add("org/tiny", hub_model)
    one = node("solo", [tier("org/none"), tier("org/gguf"), tier("org/tiny")]).start()
    failed(one, f"there is no model org/none at {hub.url}", name="org/none")
    failed(one, "org/gguf holds no MLX model", name="org/gguf")
    wait_for("the good one is ready", lambda: shown(one, "org/tiny").state == "ready")
    assert answer(one, "org/tiny")
    assert not cache(tmp_path, "org/none").exists()


@pytest.mark.parametrize("fault", ["wrong_length", "damaged"])
def test_what_is_not_as_announced_is_not_served(node: Make, hub: Hub, hub_model: Path, fault: str) -> None:
    repo = hub.add("org/tiny", hub_model)
    getattr(repo, fault).add("more.safetensors")
    one = node("solo", [tier("org/tiny")]).start()
    failed(one, "more.safetensors", "announced")
    getattr(repo, fault).clear()
    one.client.load("org/tiny")
    assert answer(one, "org/tiny")


def test_without_permission_to_go_online_nothing_is_fetched(
    node: Make, hub: Hub, hub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", hub_model)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    failed(node("solo", [tier("org/tiny")]).start(), "HF_HUB_OFFLINE is set")
    assert not hub.asked
