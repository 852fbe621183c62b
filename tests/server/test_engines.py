"""The engines against the real mlx_lm.server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import aiohttp
import psutil
import pytest

from node.errors import NodeErrorCode
from node.io.command import CommandEngine
from node.io.engine import ModelSpec
from node.io.external import ExternalEngine
from node.io.mlx import MlxEngine, MlxWorker
from node.io.process import TOKEN_VARIABLE
from node.io.registry import Registry
from node.openai import is_comment, usage_of
from node.settings import EngineSettings
from node.types import Resume
from tests.mesh.waiting import until
from tests.node.scripted import streamed
from tests.server.talk import Start, blocks_of, broken, chat, chunks_of, fails, gone, shows, text_of

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]


async def test_the_chat_model_knows_paris(started: Start, chat_model: Path) -> None:
    worker = await started(chat_model, name="smol")
    blocks = await blocks_of(worker, chat("What is the capital of France?", temperature=0, max_tokens=30), "smol")
    assert "Paris" in text_of(blocks)
    assert blocks[-1] == b"data: [DONE]\n\n"
    assert {chunk["model"] for chunk in chunks_of(blocks)} == {"smol"}
    found = usage_of(blocks[-2])
    assert found is not None
    assert found.alone
    assert found.usage.prompt > 30
    assert found.usage.completion == pytest.approx(8, abs=1)


async def test_two_models_answer_at_the_same_time(started: Start, tiny_model: Path, other_tiny_model: Path) -> None:
    one, two = await asyncio.gather(started(tiny_model, name="one"), started(other_tiny_model, name="two"))
    body = chat(max_tokens=60, temperature=0)
    answers = await asyncio.gather(blocks_of(one, body, "one"), blocks_of(two, body, "two"))
    assert text_of(answers[0]) != text_of(answers[1])
    for worker in (one, two):
        stats = await shows(worker, lambda stats: not stats.active)  # [DONE] comes just before the end
        assert stats.generated_tokens >= 60
        assert stats.prompt_tokens > 10
        assert (stats.active, stats.alive) == (0, True)


async def test_a_shared_worker_answers_under_any_of_its_names(started: Start, tiny_model: Path) -> None:
    worker = await started(tiny_model, name="one")
    blocks = await blocks_of(worker, b'{"prompt": "a b", "max_tokens": 5, "stop": null}', "alias", "completions")
    assert {chunk["model"] for chunk in chunks_of(blocks)} == {"alias"}
    assert text_of(blocks)


async def test_a_client_that_sets_no_limit_gets_all_the_context_holds(started: Start, tiny_model: Path) -> None:
    worker = await started(tiny_model, context=1200)
    found = usage_of((await blocks_of(worker, chat(temperature=0), "tiny-a"))[-2])
    assert found is not None
    assert found.usage.prompt + found.usage.completion == 1200


async def test_odd_requests_are_refused_and_harm_nobody_else(started: Start, tiny_model: Path) -> None:
    worker = await started(tiny_model, context=4000)
    refused = NodeErrorCode.BAD_REQUEST
    long = asyncio.ensure_future(blocks_of(worker, chat(max_tokens=2000, temperature=0), "tiny-a"))
    assert "messages" in await fails(blocks_of(worker, b"{}", "tiny-a"), refused)
    assert "temperature" in await fails(blocks_of(worker, chat(temperature="hot"), "tiny-a"), refused)
    assert "logit_bias" in await fails(blocks_of(worker, chat(logit_bias={"999999": 1}), "tiny-a"), refused)
    assert "seed" in await fails(blocks_of(worker, chat(seed=-1), "tiny-a"), refused)
    assert "role" in await fails(blocks_of(worker, b'{"messages": [{"content": "x"}]}', "tiny-a"), refused)
    assert "context" in await fails(blocks_of(worker, chat("word " * 5000), "tiny-a"), refused)
    await fails(blocks_of(worker, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "tiny-a"), refused)
    everything = await blocks_of(worker, chat(max_tokens=3, temperature=1, top_k=10**6), "tiny-a")
    assert everything[-1] == b"data: [DONE]\n\n"
    assert (await long)[-1] == b"data: [DONE]\n\n"
    assert "embeddings" in await fails(
        worker.post("embeddings", b"{}", "application/json"), NodeErrorCode.PATH_NOT_SERVED
    )


async def test_no_request_can_change_the_weights(started: Start, tiny_model: Path) -> None:
    worker = await started(tiny_model, name="one")
    body = {"model": "/nowhere", "draft_model": "/nowhere", "prompt": "a", "max_tokens": 3}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{worker.upstream.base}/completions", json=body) as got,
    ):
        assert got.status == 200
        assert (await got.json())["model"] == "one"


async def test_a_prompt_that_is_cached_whole_is_answered(started: Start, tiny_model: Path) -> None:
    """mlx_lm keeps a prompt without its last token once it is read: who asks for just that has nothing to read."""
    worker = await started(tiny_model)
    for longer in (b"15", b"157", b"1571"):
        body = b'{"prompt": "%s", "max_tokens": 2000}' % longer
        async with aclosing(streamed(worker, "completions", body, model_name="x")) as blocks:
            async for block in blocks:
                if not is_comment(block):
                    break
            kept = b'{"prompt": "%s", "max_tokens": 2}' % longer[:-1]
            for _ in range(2):
                assert (await blocks_of(worker, kept, "x", "completions"))[-1] == b"data: [DONE]\n\n"
    assert (await worker.stats()).alive


async def test_a_worker_killed_in_the_middle_of_an_answer_is_named(started: Start, slow_model: Path) -> None:
    worker = await started(slow_model)
    async with aclosing(streamed(worker, "chat/completions", chat(max_tokens=5000), model_name="x")) as blocks:
        async for block in blocks:
            if not is_comment(block):
                break
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)

        async def rest() -> None:
            async for _ in blocks:
                pass

        assert "SIGKILL" in await fails(rest())
    stats = await worker.stats()
    assert not stats.alive
    assert "SIGKILL" in stats.why
    assert "SIGKILL" in await worker.exited()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"\x10\x00", "bad weights"),
        ("model.safetensors", None, "bad weights"),
        ("tokenizer.json", None, "tokenizer"),
        ("config.json", None, "config.json"),
        ("config.json", b"{", "config.json"),
        ("config.json", b'{"model_type": "nonsense"}', "not supported"),
    ],
)
async def test_a_broken_model_is_diagnosed(
    engine: MlxEngine, tiny_model: Path, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    directory = broken(tiny_model, tmp_path / "broken-model", name, content)
    worker = engine.worker(ModelSpec(name="broken-model", path=str(directory)), lambda _: None)
    message = await fails(worker.start())
    assert said in message
    assert "broken-model" in message
    assert worker.pid is None or gone(worker.pid)


async def test_truncated_weights_are_diagnosed(engine: MlxEngine, tiny_model: Path, tmp_path: Path) -> None:
    whole = (tiny_model / "model.safetensors").read_bytes()
    directory = broken(tiny_model, tmp_path / "cut", "model.safetensors", whole[: len(whole) // 2])
    message = await fails(engine.worker(ModelSpec(name="cut", path=str(directory)), lambda _: None).start())
    assert "bad weights" in message


async def test_models_that_are_not_there_are_named(engine: MlxEngine) -> None:
    missing = ModelSpec(name="lost", path="/nowhere/at/all")
    assert "/nowhere/at/all" in await fails(engine.worker(missing, lambda _: None).start())
    hub = ModelSpec(name="hub", path="nobody-at-all/nothing-4bit")
    assert "not downloaded" in await fails(engine.worker(hub, lambda _: None).start())


async def test_a_taken_port_is_exchanged(started: Start, tiny_model: Path, other_tiny_model: Path) -> None:
    one = await started(tiny_model)
    port = int(one.upstream.base.removesuffix("/v1").rpartition(":")[2])
    two = await started(other_tiny_model, port=port)
    assert two.upstream.base != one.upstream.base
    assert text_of(await blocks_of(two, chat(max_tokens=3), "x"))


async def test_a_start_that_is_given_up_leaves_no_process(engine: MlxEngine, chat_model: Path) -> None:
    worker = engine.worker(ModelSpec(name="smol", path=str(chat_model)), lambda _: None)
    starting = asyncio.ensure_future(worker.start())

    await until(lambda: worker.pid is not None)
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert worker.pid is not None
    assert gone(worker.pid)


async def test_stopping_needs_no_force_and_may_be_repeated(started: Start, slow_model: Path) -> None:
    worker = await started(slow_model)
    answering = asyncio.ensure_future(blocks_of(worker, chat(max_tokens=8000), "x"))
    await shows(worker, lambda stats: stats.active > 0)
    assert worker.pid is not None
    assert psutil.Process(worker.pid).environ()[TOKEN_VARIABLE] == worker._registry.token
    await worker.stop(60.0)
    await worker.stop(60.0)
    assert gone(worker.pid)
    assert "SIGTERM" in await fails(answering)


async def test_an_unknown_mlx_lm_runs_as_it_is(
    engine: MlxEngine, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend = "import mlx_lm, sys; mlx_lm.__version__ = '99.0'; from node.io import mlx_worker; mlx_worker.main()"
    real = MlxWorker.argv

    def argv(self: MlxWorker, port: int) -> list[str]:
        command = list(real(self, port))
        return [command[0], "-P", "-c", pretend, *command[command.index("--name") :]]

    monkeypatch.setattr(MlxWorker, "argv", argv)
    worker = engine.worker(ModelSpec(name="plain", path=str(tiny_model)), lambda _: None)
    try:
        await worker.start()
        assert worker.resume is Resume.REPLAY
        blocks = await blocks_of(worker, chat(max_tokens=5), "plain")
        assert not any("mesh_tokens" in chunk for chunk in chunks_of(blocks))
        assert {chunk["model"] for chunk in chunks_of(blocks)} == {"plain"}
        stats = await worker.stats()
        assert stats.alive
        assert stats.generated_tokens >= 5
        assert worker.child is not None
        assert "99.0" in worker.child.tail()
    finally:
        await worker.stop(1.0)


async def test_a_plain_server_as_a_command_and_from_outside(tiny_model: Path, tmp_path: Path) -> None:
    settings = EngineSettings(start_limit_s=120.0)
    argv = (sys.executable, "-m", "mlx_lm", "server", "--model", "{model}", "--port", "{port}")
    spec = ModelSpec(name="mine", engine="command", path=str(tiny_model), command=argv)
    command = CommandEngine(settings, logs=tmp_path, registry=Registry()).worker(spec, lambda _: None)
    try:
        await command.start()
        blocks = await blocks_of(command, chat(max_tokens=5), "mine")
        assert {chunk["model"] for chunk in chunks_of(blocks)} == {"mine"}
        assert (await command.stats()).generated_tokens >= 5
        await fails(command.post("embeddings", b"{}", "application/json"), NodeErrorCode.PATH_NOT_SERVED)

        url = command.upstream.base.removesuffix("/v1")
        outside = ModelSpec(name="theirs", engine="external", url=url, source=str(tiny_model))
        external = ExternalEngine(settings).worker(outside, lambda _: None)
        await external.start()
        blocks = await blocks_of(external, chat(max_tokens=5), "theirs")
        assert {chunk["model"] for chunk in chunks_of(blocks)} == {"theirs"}
        assert external.pid is None
        await external.stop(1.0)
        assert (await blocks_of(command, chat(max_tokens=1), "mine"))[-1] == b"data: [DONE]\n\n"  # it still runs
    finally:
        await command.stop(1.0)
    assert command.pid is not None
    assert gone(command.pid)


DAEMON = """
import asyncio, sys
from pathlib import Path
from node.io.mlx import MlxEngine
from node.io.engine import ModelSpec, WorkerStats
from node.io.registry import Registry
from node.settings import EngineSettings

async def main():
    engine = MlxEngine(EngineSettings(), logs=Path(sys.argv[2]), registry=Registry())
    worker = engine.worker(ModelSpec(name="tiny", path=sys.argv[1]), lambda _: None)
    await worker.start()
    print(worker.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_worker_does_not_outlive_a_killed_daemon(tiny_model: Path, tmp_path: Path) -> None:
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(tiny_model), str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert daemon.stdout is not None
        pid = int(await asyncio.to_thread(daemon.stdout.readline))
        assert not gone(pid)
        daemon.kill()
        await until(lambda: gone(pid))
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()
