"""The launcher's own parts. What they do to a real server is tested in tests/server/test_engines.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from types import SimpleNamespace

import pytest
from mlx_lm import __version__, server

from node.io.callers import Call, CallerGoneError, Counters
from node.io.mlx_worker import PromptCache, Tap, misfit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def caller() -> Iterator[tuple[Call, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Call(ours), theirs


def context(prompt: int, cached: int) -> server.GenerationContext:
    made = object.__new__(server.GenerationContext)
    made.prompt, made.prompt_cache_count, made._should_stop = [0] * prompt, cached, False
    return made


RESPONSE = SimpleNamespace(text="a")


def test_a_caller_that_closes_is_gone_and_one_that_speaks_is_not(caller: tuple[Call, socket.socket]) -> None:
    call, theirs = caller
    assert not call.gone()
    theirs.send(b"more")
    assert not call.gone()
    call._connection.recv(4)
    theirs.close()
    assert call.gone()
    call._connection.close()
    assert call.gone()


def test_tokens_are_counted_once_whatever_the_progress_said(caller: tuple[Call, socket.socket]) -> None:
    counters, queue = Counters(), Queue[object]()
    tap = Tap(queue, caller[0], counters)
    items = [context(prompt=100, cached=40), (0, 60), (32, 60), (59, 60), RESPONSE, (60, 60), RESPONSE, None]
    for number, item in enumerate(items):
        tap.put(item)
        if number == 2:
            assert json.loads(counters.as_json())["prefill"] == {"done": 32, "total": 60}
    assert (counters.prompt_tokens, counters.generated_tokens) == (60, 2)
    assert [queue.get() for _ in items] == items
    assert json.loads(counters.as_json())["prefill"] == {"done": 0, "total": 0}


def test_work_is_stopped_once_its_caller_has_left(caller: tuple[Call, socket.socket]) -> None:
    call, theirs = caller
    queue, made = Queue[object](), context(10, 0)
    tap = Tap(queue, call, Counters())
    tap.put(made)
    tap.put(RESPONSE)
    assert not made._should_stop
    theirs.close()
    tap.put(RESPONSE)
    tap.put(RESPONSE)
    assert made._should_stop
    kinds = [type(queue.get()) for _ in range(5)]
    assert kinds.count(CallerGoneError) == 1
    assert queue.empty()


def test_reading_outside_a_batch_is_broken_off(caller: tuple[Call, socket.socket]) -> None:
    call, theirs = caller
    tap = Tap(Queue[object](), call, Counters())
    tap.alone = True
    tap.put(context(10, 0))
    tap.put((1, 10))
    theirs.close()
    with pytest.raises(CallerGoneError):
        tap.put((2, 10))


def test_a_failed_read_is_not_counted_on(caller: tuple[Call, socket.socket]) -> None:
    counters = Counters()
    tap = Tap(Queue[object](), caller[0], counters)
    tap.put(context(10, 0))
    tap.put((5, 10))
    tap.put(ValueError("broken"))
    assert json.loads(counters.as_json())["prefill"]["total"] == 0


def test_requests_here_are_counted_also_when_they_fail() -> None:
    counters = Counters()

    def fail() -> None:
        with counters.working():
            assert json.loads(counters.as_json())["active"] == 1
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert json.loads(counters.as_json())["active"] == 0


def test_the_installed_mlx_lm_fits_and_others_say_why_not() -> None:
    assert misfit(__version__) == ""
    assert "99.0" in misfit("99.0")
    assert "ResponseGenerator._generate" in misfit(__version__, SimpleNamespace())


def test_a_dead_generation_thread_ends_the_process_with_its_reason() -> None:
    code = (
        "from mlx_lm import server\n"
        "def _generate(self): raise RuntimeError('the GPU is on fire')\n"
        "server.ResponseGenerator._generate = _generate\n"
        "from node.io.mlx_worker import Generator\n"
        "from types import SimpleNamespace as N\n"
        "Generator(N(cli_args=N()), None, 'name', 0)\n"
        "import time; time.sleep(600)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 70
    assert done.stderr.splitlines()[-1] == "mlx_worker: generation thread died: RuntimeError: the GPU is on fire"


class Layer:
    """One layer's cache as far as LRUPromptCache looks."""

    def __init__(self, held: int = 0, trimmable: bool = True, nbytes: int = 1) -> None:
        self.held, self.trimmable, self.nbytes = held, trimmable, nbytes

    def is_trimmable(self) -> bool:
        return self.trimmable

    def trim(self, count: int) -> int:
        self.held -= count
        return count


def test_a_prompt_that_is_cached_whole_leaves_one_token_to_read() -> None:
    cache = PromptCache(10, 1000)
    cache.insert_cache("m", [1, 2, 3], [Layer(3)])
    for _ in range(2):  # what is kept is a copy: the second time finds the same
        (layer,), rest = cache.fetch_nearest_cache("m", [1, 2, 3])
        assert (layer.held, rest) == (2, [3])
    (layer,), rest = cache.fetch_nearest_cache("m", [1, 2, 3, 4])
    assert (layer.held, rest) == (3, [4])
    assert cache.fetch_nearest_cache("m", [7]) == (None, [7])


def test_a_cache_that_cannot_be_cut_is_not_used_for_the_same_prompt() -> None:
    cache = PromptCache(10, 1000)
    cache.insert_cache("m", [1, 2], [Layer(2, trimmable=False)])
    assert cache.fetch_nearest_cache("m", [1, 2]) == (None, [1, 2])


def test_the_prompt_cache_stays_within_its_bytes_on_every_insertion() -> None:
    cache = PromptCache(1000, 100)
    for number in range(20):
        cache.insert_cache("m", [number, number + 1], [Layer(nbytes=20), Layer(nbytes=10)])
        assert cache.nbytes <= 100
    assert len(cache) == 3
    found, rest = cache.fetch_nearest_cache("m", [19, 20, 21])
    assert found is not None, "the newest is kept"
    assert rest == [21]


def test_what_is_in_use_counts_too() -> None:
    cache = PromptCache(1000, 100)
    cache.batch = SimpleNamespace(prompt_cache_nbytes=60)
    for number in range(5):
        cache.insert_cache("m", [number], [Layer(nbytes=30)])
    assert cache.nbytes == 30
    cache.batch = SimpleNamespace(prompt_cache_nbytes=500)
    cache.insert_cache("m", [9], [Layer(nbytes=30)])
    assert cache.nbytes == 0
