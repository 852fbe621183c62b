"""Workers of a real daemon: frozen ones, orphans of a killed daemon beside a decoy, what they take, seeded requests."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.server.daemons import START_S, Node, alive, freeze, tier, wait_for

pytestmark = pytest.mark.server

Make = Callable[..., Node]


@pytest.fixture
def solo(node: Make, tiny_model: Path, slow_model: Path) -> Node:
    return node("solo", [tier(tiny_model, name="quick"), tier(slow_model, name="slow")]).start().wait_models()


def complete(node: Node, model: str = "quick", tokens: int = 5, **more: Any) -> Any:
    with node.openai(timeout=2 * START_S) as client:
        return client.completions.create(model=model, prompt="a b", max_tokens=tokens, **more)


def registered(node: Node) -> dict[str, int]:
    """Model -> pid, as node/workers.json says."""
    return {e["model"]: e["pid"] for e in json.loads((node.home / "node" / "workers.json").read_text())}


def test_what_a_killed_daemon_left_is_ended_and_a_decoy_is_not(solo: Node, decoy: subprocess.Popen[bytes]) -> None:
    """Killed under load: the frozen worker cannot notice, the other ends itself; and the frozen one's entry is joined
    by one whose pid is another program's by now."""
    frozen, other = solo.worker_of("tiny-30-layers"), solo.worker_of("tiny-a")
    assert set(registered(solo).values()) == {frozen.pid, other.pid}
    freeze(frozen)
    solo.signal(signal.SIGKILL)
    assert solo.ended() == -signal.SIGKILL
    wait_for("the other worker ends", lambda: not alive(other))
    assert alive(frozen)
    file = solo.home / "node" / "workers.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([*entries, {**entries[0], "pid": decoy.pid, "model": "reused"}]))
    solo.start()
    wait_for("the orphan ends", lambda: not alive(frozen))
    assert decoy.poll() is None
    wait_for("it is told", lambda: f"(pid {frozen.pid}) that an earlier daemon left behind" in solo.log())
    solo.wait_models()
    wait_for("two run", lambda: len(solo.workers()) == 2)
    assert set(registered(solo).values()) == {worker.pid for worker in solo.workers()}
    assert complete(solo).choices[0].text


@pytest.mark.parametrize("signals", [1, 2])
def test_frozen_workers_end_with_their_daemon(solo: Node, signals: int) -> None:
    workers = solo.workers()
    for worker in workers:
        freeze(worker)
    solo.signal(signal.SIGTERM)
    if signals == 2:
        wait_for("it drains", lambda: "stopping, at most" in solo.log())
        solo.signal(signal.SIGTERM)
    assert solo.ended(60.0) in ((0,) if signals == 1 else (0, 1))  # It may have been quick.
    wait_for("the workers end", lambda: not any(map(alive, workers)))
    if signals == 1:
        assert registered(solo) == {}
        assert not any(psutil.pid_exists(w.pid) for w in workers), "no zombie either: it waited for them"


def test_a_frozen_worker_is_replaced_and_its_request_answered(solo: Node) -> None:
    """A node alone: the request that the frozen worker had begun is run again by the next one."""
    with ThreadPoolExecutor() as threads:
        asking = threads.submit(complete, solo, "slow", 400, temperature=0)
        wait_for("it runs", lambda: solo.model("slow").in_flight == 1)
        frozen = solo.worker_of("tiny-30-layers")
        freeze(frozen)
        wait_for("it is ended", lambda: not alive(frozen), START_S)
        assert asking.result(timeout=2 * START_S).usage.completion_tokens == 400
    wait_for("it is told", lambda: "stopped by a signal" in solo.log())
    solo.wait_models()
    assert solo.worker_of("tiny-30-layers").pid != frozen.pid


def test_what_workers_take_is_measured_and_remembered(solo: Node) -> None:
    """The first guess is corrected at once, and a daemon that starts again begins with what was measured."""
    wait_for("both are measured", lambda: all(m.measured_bytes for m in solo.client.models()), START_S)
    size = solo.model("quick").size_bytes
    taken = solo.worker_of("tiny-a").memory_full_info().pss
    assert 0.5 * taken < solo.model("quick").measured_bytes < 2 * taken
    file = solo.home / "node" / "measured.json"
    wait_for("it is remembered", lambda: file.exists() and len(json.loads(file.read_text())) == 2)
    solo.signal(signal.SIGTERM)
    assert solo.ended() == 0
    solo.start().wait_models()
    assert abs(solo.model("quick").size_bytes - size) < 0.2 * size


def test_the_users_flags_replace_ours(node: Make, tiny_model: Path) -> None:
    extra = ["--prompt-cache-size", "3", "--log-level=WARNING", "--port", "1"]
    one = node("solo", [tier(tiny_model, name="quick", extra_args=extra)]).start().wait_models()
    words = one.worker_of("tiny-a").cmdline()
    assert words.count("--prompt-cache-size") == 1
    assert words[words.index("--prompt-cache-size") + 1] == "3"
    assert "--log-level=WARNING" in words
    assert words.count("--port") == 1, "the port is the node's to choose"
    assert complete(one).choices[0].text


def test_seeded_requests_run_alone_and_all_are_answered(solo: Node) -> None:
    """Upstream takes them out of its batch; here nobody is given a slot beside one, and none is lost."""

    def ask(number: int) -> Any:
        seed = {"seed": number} if number % 3 == 0 else {}
        return complete(solo, "slow", 30, temperature=1.0, **seed)

    with ThreadPoolExecutor(9) as threads:
        asked = [threads.submit(ask, n) for n in range(9)]
        seen: set[tuple[int, int]] = set()
        while not all(a.done() for a in asked):
            model = solo.model("slow")
            seen.add((model.slots, model.in_flight))
            time.sleep(0.01)
        answers = [a.result() for a in asked]
    assert [a.usage.completion_tokens for a in answers] == [30] * 9
    assert 1 in {slots for slots, _ in seen}, "told to those who send"
    wait_for("it takes more than one again", lambda: solo.model("slow").slots > 1)
    again = ask(0)
    assert again.choices[0].text == answers[0].choices[0].text, "a seed means something"


def test_a_probe_leaves_no_line_in_the_log(solo: Node) -> None:
    """Neither the one that a start waits for nor those of an idle worker."""
    log = solo.home / "logs" / "tiny-a.log"
    assert "POST" not in log.read_text()
    assert complete(solo).choices[0].text
    wait_for("a request leaves one", lambda: log.read_text().count("POST") == 1)
    assert "Prompt processing progress" not in log.read_text()
