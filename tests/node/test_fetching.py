"""A host whose models are not here yet. The download process is a script of ours that says what it is told to."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from node.download import Advanced, Fetched, Planned, Refused, Said
from node.errors import NodeError, NodeErrorCode
from node.facts import DownloadFact
from node.io import download
from node.types import ModelState
from tests.mesh.waiting import until
from tests.node.fakes import Rig, call, running, spec

GIB = 2**30
# Prints the lines of the file that is named like the hub id, as they come; notes its pid, and what it is told.
SCRIPT = """
import os, pathlib, sys, threading, time
here = pathlib.Path(os.environ["HERE"]) / sys.argv[1].replace("/", "-")
here.with_suffix(".pid").write_text(str(os.getpid()))
def listen():
    for line in sys.stdin.buffer:
        here.with_suffix(".told").write_bytes(line)
    os._exit(1)
threading.Thread(target=listen, daemon=True).start()
said = 0
while True:
    lines = here.read_bytes().splitlines() if here.exists() else []
    for line in lines[said:]:
        if line == b"end":
            os._exit(0)
        if line == b"crash":
            print("MemoryError: no more", file=sys.stderr)
            os._exit(3)
        print(line.decode(), flush=True)
    said = len(lines)
    time.sleep(0.01)
"""


class Script:
    """What the process of one hub id says, from now on and in the next process too."""

    def __init__(self, folder: Path, hub: str = "org/m") -> None:
        self._file = folder / hub.replace("/", "-")
        self._lines: list[bytes] = []

    def says(self, *said: Said | bytes) -> None:
        self._lines += [line if isinstance(line, bytes) else msgspec.json.encode(line) for line in said]
        whole = self._file.with_suffix(".new")
        whole.write_bytes(b"\n".join(self._lines))
        whole.replace(self._file)

    def forget(self) -> None:
        self._lines.clear()
        self._file.unlink()

    @property
    def told(self) -> bool:
        return self._file.with_suffix(".told").exists()

    @property
    def process(self) -> psutil.Process | None:
        with suppress(OSError, psutil.NoSuchProcess, ValueError):
            return psutil.Process(int(self._file.with_suffix(".pid").read_text()))
        return None


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.setattr(download, "WORKER", (sys.executable, "-c", SCRIPT))
    return Script(tmp_path)


def phases(rig: Rig) -> list[str]:
    return [f.phase for f in rig.facts if isinstance(f, DownloadFact)]


async def refused(rig: Rig) -> NodeError:
    with pytest.raises(NodeError) as caught:
        await rig.answer(call())
    return caught.value


async def test_a_model_is_downloading_until_its_weights_are_here_then_it_is_loaded(script: Script) -> None:
    async with running(Rig(), spec("a", hub="org/m")) as rig:
        assert rig.model().state is ModelState.DOWNLOADING
        assert "asking the hub" in (rig.model().error or "")
        script.says(b"a line of a library", Planned(GIB, 4 * GIB, 100 * GIB, "/cache"))
        await until(lambda: script.told)
        script.says(Advanced(2 * GIB))
        await until(lambda: rig.model().progress == 0.5)
        error = await refused(rig)
        assert error.code is NodeErrorCode.NODE_BUSY
        assert error.message.startswith("a: downloading, 50 %, 2.0 of 4.0 GB")
        assert error.retry_after_s
        assert rig.engine.workers == []
        script.says(Fetched("/cache/m"), b"end")
        await until(lambda: rig.model().state is ModelState.READY)
        assert rig.engine.workers[0].spec.path == "/cache/m"
        assert (rig.model().error, rig.model().progress) == (None, None)
        assert await rig.answer(call())
        assert rig.states() == ["downloading", "loading", "ready"]
        assert phases(rig) == ["begun", "done"]
        assert sum(f.new_bytes for f in rig.facts if isinstance(f, DownloadFact)) == 3 * GIB
        # What the stack file says from now on is the same model.
        worker = rig.engine.workers[0]
        await rig.host.apply([spec("a", path="/cache/m")])
        assert rig.engine.living() == [worker]


async def test_what_cannot_be_had_is_failed_with_the_reason_and_tried_when_asked(script: Script) -> None:
    async with running(Rig(), spec("a", hub="org/m"), spec("b")) as rig:
        script.says(Refused("org/m is gated"), b"end")
        await until(lambda: rig.model().state is ModelState.FAILED)
        assert rig.model().error == "cannot be downloaded: org/m is gated"
        error = await refused(rig)
        assert (error.code, error.message) == (NodeErrorCode.MODEL_FAILED, f"a: {rig.model().error}")
        assert error.retry_after_s is not None
        assert 0 < error.retry_after_s <= 5
        assert await rig.answer(call(model="b", request="other"))
        with pytest.raises(NodeError, match="is gated"):
            await rig.host.load("a")
        script.forget()
        script.says(Planned(0, 1, 10, "/cache"), Fetched("/cache/m"), b"end")
        await rig.host.load("a")
        assert rig.model().state is ModelState.READY


async def test_a_process_that_crashes_is_diagnosed(script: Script) -> None:
    async with running(Rig(), spec("a", hub="org/m")) as rig:
        script.says(Planned(0, GIB, 9 * GIB, "/cache"), b"crash")
        await until(lambda: rig.model().state is ModelState.FAILED)
        assert "out of memory" in (rig.model().error or "")
        assert "exit code 3" in (rig.model().error or "")


async def test_a_model_that_is_removed_is_fetched_no_more(script: Script) -> None:
    async with running(Rig(), spec("a", hub="org/m")) as rig:
        script.says(Planned(0, GIB, 9 * GIB, "/cache"))
        await until(lambda: script.told)
        process = script.process
        assert process is not None
        loading = asyncio.create_task(rig.host.load("a"))
        await asyncio.sleep(0)  # it is asked for
        await rig.host.apply([])
        with pytest.raises(NodeError):
            await loading
        await until(lambda: not process.is_running())
        assert phases(rig) == ["begun", "cancelled"]
        assert rig.host.models() == ()


async def test_a_host_that_ends_leaves_no_process(script: Script) -> None:
    async with running(Rig(), spec("a", hub="org/m")):
        await until(lambda: script.process is not None)
        process = script.process
    assert process is not None
    assert not process.is_running()


async def test_models_with_the_same_weights_share_a_download(script: Script) -> None:
    async with running(Rig(), spec("a", hub="org/m"), spec("b", hub="org/m")) as rig:
        script.says(Planned(0, 1, 10, "/cache"), Fetched("/cache/m"), b"end")
        await until(lambda: {m.state for m in rig.host.models()} == {ModelState.READY})
        assert phases(rig).count("begun") == 2  # one fact for each model, of one process


async def test_a_process_that_cannot_start_is_told(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WORKER", ("/nowhere/python",))
    async with running(Rig(), spec("a", hub="org/m")) as rig:
        await until(lambda: rig.model().state is ModelState.FAILED)
        assert "its process cannot be started: No such file" in (rig.model().error or "")


def test_only_what_an_mlx_model_needs_is_fetched() -> None:
    from node.io.download_worker import needed, short  # noqa: PLC0415 - huggingface_hub takes a second to import

    names: dict[str, Any] = {
        "config.json": True,
        "model-00001-of-00002.safetensors": True,
        "model.safetensors.index.json": True,
        "tokenizer.model": True,
        "chat_template.jinja": True,
        "merges.txt": True,
        "qwen.tiktoken": True,
        "README.md": False,
        "pytorch_model.bin": False,
        "model.gguf": False,
        "onnx/config.json": False,
        "original/model.safetensors": False,
        "consolidated.safetensors": False,
    }
    assert {name: needed(name) for name in names} == names
    said = short(OSError("GET https://cdn.example/a?X-Amz-Signature=abc failed"))
    assert said == "GET https://cdn.example/a failed"
