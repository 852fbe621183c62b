"""Model servers that live and do not work: real ones, whose generation thread dies or hangs, that never become ready,
that are not ours and go away, that wait long for their next start. tests/server/sick makes them so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import APIStatusError

from bench.ports import free_port
from tests.server.daemons import ROOT, START_S, Node, tier, wait_for, words
from tests.server.talk import broken, gone

pytestmark = pytest.mark.server

HEARD_S = 120.0  # to notice, end and start a worker again on a busy machine
PATIENT = {"hang_floor_s": 15.0, "idle_probe_first_s": 600.0, "idle_probe_cap_s": 600.0, "hang_prefill_tps": 300.0}
PROBING = {"idle_probe_first_s": 3.0, "idle_probe_cap_s": 10.0, "idle_probe_limit_s": 20.0}


class SickNode(Node):
    """A daemon whose bounds are the test's, and whose workers take faults."""

    def __init__(self, folder: Path, tiers: list[dict[str, Any]], bounds: dict[str, dict[str, Any]]) -> None:
        super().__init__(folder, "solo", tiers)
        self.bounds = bounds

    @property
    def faults(self) -> Path:
        return self.home.parent / "faults"

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).with_name("sick")), str(ROOT)]),
            "MLX_TEST_SETTINGS": json.dumps(self.bounds),
            "MLX_TEST_FAULTS": str(self.faults),
        }

    def fall_sick(self, fault: str) -> None:
        """Returns when the worker has it. `fault`: MODEL.FAULT."""
        file = self.faults / fault
        file.touch()
        wait_for(f"{fault} is taken", lambda: not file.exists())

    def pid_of(self, model: str) -> int:
        """Of its worker, as registered."""
        file = self.home / "node" / "workers.json"
        pids = wait_for(
            "it is registered", lambda: [e["pid"] for e in json.loads(file.read_text()) if e["model"] == model]
        )
        return int(pids[-1])

    def replaced(self, model: str, pid: int, said: str) -> None:
        """That worker of the model was ended for this reason, and a new one is ready."""

        def well() -> bool:
            shown = self.model(model)
            return said in shown.last_error and shown.state in ("ready", "busy")

        wait_for(f"{model} was found: {said}", lambda: said in self.model(model).last_error, HEARD_S)
        wait_for(f"{model} is back", well, HEARD_S)
        wait_for("the old worker is gone", lambda: gone(pid))
        wait_for("the new one is registered", lambda: self.pid_of(model) != pid)


@pytest.fixture
def sick(folder: Path) -> Iterator[Callable[..., SickNode]]:
    """sick(tiers, EngineSettings={...}, NodeSettings={...}): started."""
    made: list[SickNode] = []
    (folder / "faults").mkdir()

    def make(tiers: list[dict[str, Any]], **bounds: dict[str, Any]) -> SickNode:
        made.append(SickNode(folder, tiers, bounds))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture(scope="module")
def patient(short_folder: Path, tiny_model: Path, slow_model: Path) -> Iterator[SickNode]:
    """Never probes, so that only silence and what its launcher says can tell. Each test leaves it well."""
    yield from _shared(short_folder, two(tiny_model, slow_model), PATIENT)


@pytest.fixture(scope="module")
def alone(short_folder: Path, tiny_model: Path) -> Iterator[SickNode]:
    """Its first model never becomes ready: its tokenizer is a pipe that nobody writes to. What failed waits long."""
    stuck = broken(tiny_model, Path(tempfile.mkdtemp(dir=short_folder)) / "stuck", "tokenizer.json", None)
    os.mkfifo(stuck / "tokenizer.json")
    tiers = [tier(stuck, pinned=True), tier(tiny_model, name="quick")]
    limits = {"slow_floor_s": 3.0, "slow_factor": 0.0, "backoff_first_s": 25.0}
    yield from _shared(short_folder, tiers, limits, EngineSettings={"start_limit_s": 40.0})


def _shared(folder: Path, tiers: list[dict[str, Any]], bounds: dict[str, Any], **more: Any) -> Iterator[SickNode]:
    one = SickNode(Path(tempfile.mkdtemp(dir=folder)), tiers, {"NodeSettings": bounds} | more)
    one.faults.mkdir()
    try:
        one.start()
        yield one
    finally:
        one.stop()


def ask(node: Node, model: str, tokens: int = 3, prompt: str = "a b", **headers: str) -> Any:
    with node.openai(timeout=3 * HEARD_S, max_retries=0) as client:
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.completions.create(
            model=model, prompt=prompt, max_tokens=tokens, temperature=0, extra_headers=more
        )


def two(tiny_model: Path, slow_model: Path) -> list[dict[str, Any]]:
    return [tier(tiny_model, name="quick"), tier(slow_model, name="slow")]


# Never ready, and long waits for the next start


def test_a_model_that_never_becomes_ready_keeps_nobody_waiting(alone: SickNode) -> None:
    wait_for("the other model is ready", lambda: alone.model("quick").state == "ready", START_S)
    assert ask(alone, "quick").choices[0].text


def test_a_node_alone_holds_requests_until_the_next_start_or_says_when_that_is(alone: SickNode) -> None:
    wait_for("it is ready", lambda: alone.model("quick").state == "ready", START_S)
    psutil.Process(alone.pid_of("tiny-a")).kill()
    wait_for("its end is known", lambda: alone.model("quick").state == "failed")
    with pytest.raises(APIStatusError) as refused:
        ask(alone, "quick", x_mesh_deadline_ms="2000")
    assert refused.value.status_code == 503
    assert "SIGKILL" in refused.value.message
    assert float(refused.value.response.headers["retry-after"]) >= 5
    with ThreadPoolExecutor() as threads:
        asked = [threads.submit(ask, alone, "quick") for _ in range(3)]
        assert all(a.result(timeout=HEARD_S).usage.completion_tokens == 3 for a in asked)


def test_a_model_that_never_becomes_ready_is_ended_and_named(alone: SickNode) -> None:
    """Again and again: so each of these is looked for until it is so."""

    def ended() -> bool:
        here = [process for process in alone.workers() if "stuck" in " ".join(words(process))]
        return alone.model("stuck").state == "failed" and not here

    def refused() -> str:
        try:
            ask(alone, "stuck", x_mesh_deadline_ms="2000")
        except APIStatusError as error:
            return error.message if error.status_code == 503 else ""
        raise AssertionError("nobody can have answered")

    wait_for("its process is gone", ended, HEARD_S)
    wait_for("models say why", lambda: "not ready after 40 s" in " ".join(alone.cli("models").stdout.split()), HEARD_S)
    wait_for("the client hears why", lambda: "not ready after 40 s" in refused(), HEARD_S)
    assert "start_timeout" in json.dumps(alone.json("logs", "stuck", "--events"))
    assert "not ready after 40 s" in alone.model("stuck").last_error


# The generation thread


def test_a_generation_thread_that_dies_is_told_by_its_launcher(patient: SickNode) -> None:
    one = patient.wait_models()
    pid, other = one.pid_of("tiny-a"), one.pid_of("tiny-30-layers")
    one.fall_sick("tiny-a.dies")
    one.replaced("tiny-a", pid, "generation thread died: RuntimeError: made sick by a test")
    assert ask(one, "quick").choices[0].text
    assert one.pid_of("tiny-30-layers") == other


def test_a_generation_thread_that_died_or_hangs_behind_a_healthy_port_is_found_by_a_probe_when_idle(
    sick: Callable[..., SickNode], folder: Path, tiny_model: Path, slow_model: Path
) -> None:
    """One of them is a server without our launcher's additions, which keeps listening and tells nobody."""
    plain = folder / "faults" / "tiny-a.plain"
    plain.touch()
    one = sick(two(tiny_model, slow_model), NodeSettings=PROBING)
    one.wait_models()
    plain.unlink()
    died, hangs = one.pid_of("tiny-a"), one.pid_of("tiny-30-layers")
    one.fall_sick("tiny-a.dies")
    one.fall_sick("tiny-30-layers.hangs")
    one.replaced("tiny-a", died, "a probe failed: the model server answered")
    one.replaced("tiny-30-layers", hangs, "no answer to a probe within 20 s")
    assert ask(one, "quick").choices[0].text
    assert ask(one, "slow").choices[0].text


def test_a_hang_is_found_by_silence_in_the_middle_of_an_answer_and_later_before_a_long_prompt_is_read(
    patient: SickNode,
) -> None:
    """15 s for a worker that has nothing to read; reading 2048 tokens at 300 a second, four times: 27 s."""
    one = patient.wait_models()
    slow, quick = one.pid_of("tiny-30-layers"), one.pid_of("tiny-a")
    with ThreadPoolExecutor() as threads:
        writing = threads.submit(ask, one, "slow", 600)
        wait_for("it answers", lambda: one.model("slow").in_flight == 1)
        one.fall_sick("tiny-30-layers.hangs")
        assert ask(one, "quick").choices[0].text, "the other model is as ever"
        one.fall_sick("tiny-a.hangs")
        reading = threads.submit(ask, one, "quick", prompt="one two three " * 600)
        one.replaced("tiny-30-layers", slow, "it hangs: no token for")
        one.replaced("tiny-a", quick, "it hangs: no token for")
        assert writing.result(timeout=3 * HEARD_S).usage.completion_tokens == 600, "run again by the next worker"
        assert reading.result(timeout=3 * HEARD_S).usage.completion_tokens == 3
    silent = re.search(r"no token for (\d+) s", one.model("quick").last_error)
    assert silent is not None
    assert int(silent[1]) >= 27


# Servers that are not ours


def test_a_server_that_is_not_ours_fails_with_the_reason_and_is_ready_when_it_is_back(
    sick: Callable[..., SickNode], tiny_model: Path, other_tiny_model: Path, folder: Path
) -> None:
    port = free_port()
    argv = [sys.executable, "-m", "mlx_lm", "server", "--model", str(tiny_model), "--port", str(port)]

    def theirs() -> subprocess.Popen[bytes]:
        with (folder / "theirs.log").open("ab") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log)

    server = theirs()
    try:
        wait_for("the server answers", lambda: _answers(port), START_S)
        outside = tier(str(tiny_model), name="theirs", engine="external", url=f"http://127.0.0.1:{port}")
        one = sick([outside, tier(other_tiny_model, name="quick")])
        one.wait_models()
        assert ask(one, "theirs").choices[0].text
        server.kill()
        server.wait()
        with pytest.raises(APIStatusError) as refused:
            ask(one, "theirs", x_mesh_deadline_ms="8000")
        assert refused.value.status_code in (503, 504)
        wait_for("it has failed", lambda: "nothing answers" in one.model("theirs").last_error)

        def shown() -> bool:
            """It is asked again and again: between two tries."""
            theirs = one.model("theirs")
            return theirs.state == "failed" and "nothing answers at" in (theirs.error or "")

        wait_for("it is shown", shown)
        assert ask(one, "quick").choices[0].text
        server = theirs()
        wait_for("it is ready again", lambda: one.model("theirs").state == "ready", HEARD_S)
        assert ask(one, "theirs").choices[0].text
    finally:
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
