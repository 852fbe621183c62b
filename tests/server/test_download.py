"""Models of a hub: fetched by the node, and all that goes wrong on the way. The hub is a small one on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import psutil
import pytest

from bench.ports import free_port
from mesh.answers import ModelDetails
from node.download import Fetched, Planned, Refused, Said
from tests.server.daemons import ROOT, Node, alive, tier, wait_for
from tests.server.hub import COMMIT, Hub

pytestmark = pytest.mark.server

Make = Callable[..., Node]
MIB = 2**20
WORDS: Any = {"prompt": "a b", "max_tokens": 3}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that every daemon of this test asks, with a cache of its own."""
    with Hub().running() as hub:
        for name in [n for n in os.environ if n.startswith(("HF_", "HUGGING_FACE"))]:
            monkeypatch.delenv(name)
        for name, value in hub.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def model(slow_model: Path, tmp_path: Path) -> Path:
    """A repository: a model of 2 MB, 8 MB beside it that only need to be fetched, and what nobody needs."""
    folder = tmp_path / "repository"
    shutil.copytree(slow_model, folder)
    (folder / "more.safetensors").write_bytes(os.urandom(8 * MIB))
    (folder / "pytorch_model.bin").write_bytes(b"x" * MIB)
    (folder / "README.md").write_text("# A model")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    return folder


def cache(tmp_path: Path, name: str = "org/tiny") -> Path:
    return tmp_path / "hf" / "hub" / f"models--{name.replace('/', '--')}"


def downloads(node: Node) -> list[psutil.Process]:
    found = psutil.Process(node.pid).children(recursive=True)
    return [p for p in found if alive(p) and "node.io.download_worker" in p.cmdline()]


def refusal(node: Node, name: str) -> openai.APIStatusError:
    with node.openai() as client, pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model=name, **WORDS)
    assert caught.value.status_code == 503
    assert float(caught.value.response.headers["retry-after"]) > 0
    return caught.value


def answer(node: Node, name: str) -> str:
    with node.openai() as client:
        return client.completions.create(model=name, **WORDS).choices[0].text


def failed(node: Node, *parts: str, name: str = "org/tiny") -> str:
    """Its error, once it has failed with all of these words; the 503 says the same."""

    def told() -> str:
        found = shown(node, name)
        error = found.error or ""
        return error if found.state == "failed" and all(part in error for part in parts) else ""

    error = wait_for(f"{name} has failed with {parts}", told, 60.0)
    assert all(part in refusal(node, name).message for part in parts)
    return str(error)


def fetched(node: Node, share: float, name: str = "org/tiny") -> None:
    wait_for(f"{share} of {name} is here", lambda: (shown(node, name).progress or 0.0) >= share, 60.0)


def shown(node: Node, name: str) -> ModelDetails:
    """How the node shows a model; a node that has just started may not know it yet."""
    found = (m for m in node.client.models() if name in (m.name, *m.aliases))
    return next(found, ModelDetails(name=name))


def on_its_way(node: Node, name: str = "org/tiny") -> bool:
    return "MB/s" in (shown(node, name).error or "")


# All goes well


def test_a_model_of_the_hub_is_added_fetched_loaded_and_answers(
    node: Make, hub: Hub, model: Path, tmp_path: Path
) -> None:
    hub.add("org/tiny", model)
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
    node: Make, hub: Hub, model: Path, tiny_model: Path
) -> None:
    repo = hub.add("org/tiny", model)
    repo.bytes_per_s = MIB / 4  # a minute: it must not be over before it was looked at
    one = node("solo", [tier(tiny_model, name="quick"), tier("org/tiny", name="big")]).start()
    wait_for("quick is ready", lambda: shown(one, "quick").state == "ready", 60.0)
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


def test_so_many_at_once_the_others_wait_for_their_turn(node: Make, hub: Hub, model: Path) -> None:
    names = ["org/a", "org/b", "org/c"]
    for name in names:
        hub.add(name, model).hold.clear()
    one = node("solo", [tier(name, name=name[-1]) for name in names]).start()
    wait_for("two are under way", lambda: sum("MB/s" in (m.error or "") for m in one.client.models()) == 2)
    assert len(downloads(one)) == 2
    assert one.model("org/c").error == "downloading, waiting for its turn"
    for repo in hub.repos.values():
        repo.hold.set()
    one.wait_models("ready", "ready", "ready", limit_s=240.0)


def test_two_daemons_with_one_cache_fetch_it_once(node: Make, hub: Hub, model: Path) -> None:
    repo = hub.add("org/tiny", model)
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


def test_the_command_shows_the_way_and_an_interrupt_leaves_it_going(node: Make, hub: Hub, model: Path) -> None:
    repo = hub.add("org/tiny", model)
    repo.bytes_per_s = 2 * MIB
    one = node("solo", ()).start()
    command = subprocess.Popen(
        [sys.executable, "-m", "mesh.cli", "models", "add", "org/tiny"],
        env=one.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    fetched(one, 0.3)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 1
    assert "MB/s" in said
    assert "goes on downloading in the running node" in said
    assert "Traceback" not in said
    repo.bytes_per_s = 0.0
    one.wait_models("ready")


def test_removed_while_it_is_fetched_it_ends_and_goes_on_when_added_again(
    node: Make, hub: Hub, model: Path, tmp_path: Path
) -> None:
    repo = hub.add("org/tiny", model)
    repo.bytes_per_s = 4 * MIB
    one = node("solo", [tier("org/tiny", name="big")]).start()
    fetched(one, 0.4)
    one.cli("models", "remove", "big")
    assert one.client.models() == ()
    wait_for("its process has ended", lambda: not downloads(one))
    kept = sum(f.stat().st_size for f in cache(tmp_path).glob("blobs/*"))
    assert kept >= 3 * MIB
    repo.bytes_per_s = 0.0
    before = len(hub.asked)
    one.cli("models", "add", "org/tiny", "--as", "again")
    one.wait_models("ready")
    ranges = {path: asked for _, path, asked in hub.asked[before:] if path.startswith("/storage/")}
    assert ranges["/storage/org/tiny/more.safetensors"].startswith("bytes=")


def test_of_a_node_that_is_down_the_next_start_fetches_it(node: Make, hub: Hub, model: Path) -> None:
    hub.add("org/tiny", model)
    one = node("solo", ())
    assert "next `mlx-stack up` downloads org/tiny" in one.cli("models", "add", "org/tiny").stdout
    assert "is downloaded first, from org/tiny" in one.cli("up", "--dry-run").stdout
    one.start().wait_models("ready")


# Cut and gone on


def test_a_cut_connection_is_resumed_where_it_broke(node: Make, hub: Hub, model: Path) -> None:
    repo = hub.add("org/tiny", model)
    repo.cuts["more.safetensors"] = [3 * MIB + 1, MIB // 2, 2 * MIB]
    node("solo", [tier("org/tiny")]).start().wait_models("ready")
    ranges = [asked for _, path, asked in hub.asked if path.startswith("/storage/") and asked]
    assert ranges == [f"bytes={mib * MIB}-" for mib in (3, 3, 5)]
    assert hub.sent["more.safetensors"] < 9 * MIB


def test_a_hub_without_ranges_sends_it_again(node: Make, hub: Hub, model: Path) -> None:
    repo = hub.add("org/tiny", model)
    repo.ranges, repo.cuts["more.safetensors"] = False, [3 * MIB, MIB]
    node("solo", [tier("org/tiny")]).start().wait_models("ready")


def test_a_killed_daemon_goes_on_where_it_was(node: Make, hub: Hub, model: Path, tmp_path: Path) -> None:
    repo = hub.add("org/tiny", model)
    repo.bytes_per_s = 4 * MIB
    one = node("solo", [tier("org/tiny")]).start()
    fetched(one, 0.5)
    children = downloads(one)
    one.signal(signal.SIGKILL)
    one.ended()
    wait_for("its children have followed it", lambda: not any(map(alive, children)))
    partial = cache(tmp_path) / "blobs" / (repo.etag("more.safetensors") + ".incomplete")
    here = partial.stat().st_size
    assert here >= MIB
    repo.bytes_per_s = 0.0
    before = len(hub.asked)
    one.start().wait_models("ready")
    ranges = {path: asked for _, path, asked in hub.asked[before:] if path.startswith("/storage/")}
    assert ranges["/storage/org/tiny/more.safetensors"] == f"bytes={here}-"


def test_a_killed_download_is_told_and_comes_again(node: Make, hub: Hub, model: Path) -> None:
    repo = hub.add("org/tiny", model)
    repo.hold.clear()
    one = node("solo", [tier("org/tiny")]).start()
    wait_for("it is under way", lambda: on_its_way(one))
    downloads(one)[0].kill()
    failed(one, "SIGKILL", name="org/tiny")
    repo.hold.set()
    one.wait_models("ready")


def test_a_hub_that_is_away_is_told_and_asked_again(
    node: Make, hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", model).down = True
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
    node: Make, hub: Hub, model: Path, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.add("org/tiny", model)
    repo.token, repo.private = "hf_Secret0Of0The0Test", private
    one = node("solo", ()).start()
    done = one.cli("models", "add", "org/tiny", code=1)
    words = ("private", "HF_TOKEN") if private else ("gated", f"accept its licence at {hub.url}/org/tiny", "HF_TOKEN")
    assert all(word in done.stderr for word in words), done.stderr
    assert "`mlx-stack models load tiny` tries again" in done.stderr
    failed(one, *words)
    monkeypatch.setenv("HF_TOKEN", "hf_Of0Somebody0Else")
    one.stop()
    one.start()
    failed(one, "may not have it" if not private else "private")
    monkeypatch.setenv("HF_TOKEN", repo.token)
    one.stop()
    repo.hold.clear()
    one.start()
    wait_for("it is under way", lambda: on_its_way(one))
    lines = [word for process in downloads(one) for word in process.cmdline()]
    assert lines
    assert not any("hf_" in word for word in lines)
    repo.hold.set()
    one.wait_models("ready")
    assert set(hub.tokens) == {""}
    assert "hf_" not in one.log()


def test_what_is_not_there_or_no_mlx_model_is_told(node: Make, hub: Hub, model: Path, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").write_bytes(b"GGUF")
    hub.add("org/gguf", tmp_path / "gguf")
    hub.add("org/tiny", model)
    one = node("solo", [tier("org/none"), tier("org/gguf"), tier("org/tiny")]).start()
    failed(one, f"there is no model org/none at {hub.url}", name="org/none")
    failed(one, "org/gguf holds no MLX model", name="org/gguf")
    wait_for("the good one is ready", lambda: shown(one, "org/tiny").state == "ready", 60.0)
    assert answer(one, "org/tiny")
    assert not cache(tmp_path, "org/none").exists()


@pytest.mark.parametrize("fault", ["wrong_length", "damaged"])
def test_what_is_not_as_announced_is_not_served(node: Make, hub: Hub, model: Path, fault: str) -> None:
    repo = hub.add("org/tiny", model)
    getattr(repo, fault).add("more.safetensors")
    one = node("solo", [tier("org/tiny")]).start()
    failed(one, "more.safetensors", "announced")
    getattr(repo, fault).clear()
    one.client.load("org/tiny")
    assert answer(one, "org/tiny")


def test_without_permission_to_go_online_nothing_is_fetched(
    node: Make, hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", model)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    failed(node("solo", [tier("org/tiny")]).start(), "HF_HUB_OFFLINE is set")
    assert not hub.asked


# The disk


class Worker:
    """One download process as the daemon runs it, in our hands."""

    def __init__(self, hub: Hub, tmp_path: Path, *, file_kib: int = 0) -> None:
        limit = f"ulimit -f {file_kib} && " if file_kib else ""
        self.process = subprocess.Popen(
            ["bash", "-c", limit + 'exec "$0" -m node.io.download_worker org/tiny', sys.executable],
            env={**os.environ, **hub.environment(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def says(self, kind: type[Any]) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = msgspec.json.decode(line, type=Said)
            if isinstance(said, kind):
                return said
        raise AssertionError(f"it ended without saying {kind.__name__}")

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go on\n")
        self.process.stdin.flush()

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=60)


def test_a_write_that_does_not_fit_is_a_full_disk_and_the_rest_comes_later(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a disk that fills up meanwhile."""
    hub.add("org/tiny", model)
    worker = Worker(hub, tmp_path, file_kib=4 * 1024)
    plan = worker.says(Planned)
    needed = [p for p in model.iterdir() if p.suffix in (".safetensors", ".json")]
    assert plan.total_bytes == sum(p.stat().st_size for p in needed)
    assert plan.free_bytes > 0
    worker.go()
    why = worker.says(Refused).why
    assert why.startswith("the disk is full: ")
    assert str(tmp_path / "hf" / "hub") in why
    worker.end()
    worker = Worker(hub, tmp_path)
    assert worker.says(Planned).done_bytes >= 4 * MIB
    worker.go()
    assert Path(worker.says(Fetched).path).joinpath("more.safetensors").stat().st_size == 8 * MIB
    worker.end()


def test_it_does_nothing_before_it_may_and_ends_with_its_parent(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.add("org/tiny", model)
    worker = Worker(hub, tmp_path)
    worker.says(Planned)
    assert worker.end() == 1
    assert not hub.sent


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("only root can mount a small disk")
    place = tmp_path / "hf"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], check=False)
    if mounted.returncode != 0:
        pytest.skip("tmpfs cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_told_by_name_and_the_others_are_served(
    node: Make, hub: Hub, model: Path, tiny_model: Path, small_disk: Path
) -> None:
    small = hub.add("org/tiny", model)
    hub.add("org/huge", _huge(model))
    one = node("solo", [tier(tiny_model, name="quick"), tier("org/huge"), tier("org/tiny")]).start()
    # Before a byte is fetched: what it needs, what there is, and where.
    failed(one, "the disk is full", "(1.2 times that)", "free at " + str(small_disk), name="org/huge")
    assert "huge.safetensors" not in hub.sent
    # While it is fetched: somebody else fills the disk.
    small.bytes_per_s = 2 * MIB
    one.stop()
    shutil.rmtree(small_disk / "hub")
    one.stack([tier(tiny_model, name="quick"), tier("org/tiny")])
    one.start()
    fetched(one, 0.2)
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"x" * (free - 2 * MIB))
    small.bytes_per_s = 0.0
    failed(one, "the disk is full", "still to fetch", str(small_disk))
    wait_for("quick is ready", lambda: shown(one, "quick").state == "ready", 60.0)
    assert answer(one, "quick")
    filler.unlink()
    one.wait_models("ready", "ready")
    assert answer(one, "org/tiny")


def _huge(model: Path) -> Path:
    """The same with a file that does not fit."""
    folder = model.parent / "huge"
    shutil.copytree(model, folder)
    (folder / "huge.safetensors").write_bytes(os.urandom(16 * MIB))
    return folder
