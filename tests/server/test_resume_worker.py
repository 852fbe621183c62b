"""An answer that is cut goes on at another request as if it had not been, wherever it was cut: against the real
mlx_lm.server, block for block, and token for token where a block has many."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from node.continuation import RESUME_FIELD, TOKENS_FIELD, TOKENS_HEADER, Continuation, continued
from node.errors import NodeErrorCode
from node.io.mlx import MlxWorker
from node.openai import DONE, is_comment, usage_of
from node.types import Resume
from tests.node.scripted import streamed
from tests.server.echo import PROMPT, TRUSTED, Kind, build_echo
from tests.server.talk import Start, blocks_of, chat, chunks_of, fails, stands_still, text_of

pytestmark = pytest.mark.server

AT_ONCE = 8
CHAT, TEXT = "chat/completions", "completions"
TOOLS = (
    "I will look both up. <tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Köln", "days": 3, "units": ["C"]}}\n</tool_call>\n<tool_call>\n'
    '{"name": "search", "arguments": {"query": "a \\\\n b", "limit": 1}}\n</tool_call>'
)
UNICODE = "Grüße, naïve! 你好。 🎉 An 👩‍👧‍👦 and a 🏳️‍🌈; e\u0301 is not é. مرحبا ½ ✓"
CODE = "```python\ndef f(n: int) -> None:\n    for i in range(n):\n\t\tprint(i)  # two  spaces\n\n```\n"
SPACES = "   three first\n  - one\n      deep   inside\n\n\n\ttab\t\ttabs        \n."
THINK = "<think>6 times 7 is\n42.\n\n</think>\n\nThe answer is **42**."
Cut = tuple[int, tuple[int, ...]]  # blocks and tokens before it


def cuts_of(blocks: list[bytes]) -> Iterator[Cut]:
    """Every place where this stream can be cut: after each block, and after each token that a later block names."""
    said: list[int] = []
    for number, chunk in enumerate(chunks_of(blocks)):
        yield number, tuple(said)
        for token in chunk.get(TOKENS_FIELD, [])[:-1]:
            said.append(token)
            yield number, tuple(said)
        said += chunk.get(TOKENS_FIELD, [])[-1:]
    yield len(blocks) - 1, tuple(said)


def plain(block: bytes) -> Any:
    """What must be equal: all but the random ids of tool calls, and what a cache happened to hold."""
    if not block.startswith(b"data: {"):
        return block
    chunk = json.loads(block[6:])
    if usage := chunk.get("usage"):
        assert 0 <= usage.pop("prompt_tokens_details")["cached_tokens"] <= usage["prompt_tokens"]
    for choice in chunk["choices"]:
        for call in choice.get("delta", {}).get("tool_calls", []):
            del call["id"]
    return chunk


async def asked(worker: MlxWorker, path: str, body: bytes) -> list[bytes]:
    return [block for block in await blocks_of(worker, body, "m", path) if block.startswith(b"data:")]


async def goes_on_everywhere(worker: MlxWorker, body: bytes, path: str = CHAT) -> list[bytes]:
    """The blocks of the answer, which was asked for again after each cut."""
    whole = await asked(worker, path, body)
    first = chunks_of(whole)[0]
    places = asyncio.Semaphore(AT_ONCE)

    async def again(cut: Cut) -> None:
        blocks, tokens = cut
        said = Continuation(id=first["id"], created=first["created"], tokens=tokens, blocks=blocks)
        async with places:
            rest = await asked(worker, path, continued(body, said))
        assert [plain(b) for b in rest] == [plain(b) for b in whole[blocks:]], cut

    async with asyncio.TaskGroup() as tasks:
        for cut in cuts_of(whole):
            tasks.create_task(again(cut))
    return whole


def choices(blocks: list[bytes]) -> list[Any]:
    return [choice for chunk in chunks_of(blocks) for choice in chunk["choices"]]


def delta_text(blocks: list[bytes], field: str) -> str:
    return "".join(choice["delta"].get(field, "") for choice in choices(blocks))


@pytest.fixture
async def echo(started: Start, tiny_model: Path, tmp_path: Path) -> Callable[..., Awaitable[MlxWorker]]:
    """echo(): a worker that says what the last message says."""

    async def start(kind: Kind = "bytes", **fields: Any) -> MlxWorker:
        model = build_echo(tiny_model, tmp_path / "echo", kind)
        return await started(model, name="m", extra_args=(*TRUSTED, *fields.pop("extra_args", ())), **fields)

    return start


async def test_text_comes_out_as_if_never_cut(echo: Callable[..., Awaitable[MlxWorker]]) -> None:
    worker = await echo()
    assert worker.resume is Resume.CONTINUE
    for text in (UNICODE, CODE, SPACES, "1", "a b"):
        for more in ({}, {"seed": 1}):  # in the running batch, and alone
            whole = await goes_on_everywhere(worker, chat(text, temperature=0, **more))
            assert text_of(whole) == text.removeprefix(" ")  # mlx_lm leaves out an answer's first one
            assert choices(whole)[-1]["finish_reason"] == "stop"
            body = json.dumps({"prompt": PROMPT % text, "temperature": 0, **more}).encode()
            assert text_of(await goes_on_everywhere(worker, body, TEXT)) == text.removeprefix(" ")


@pytest.mark.parametrize("kind", ["lines", "sentences"])
async def test_other_kinds_of_tokenizers_say_the_same(echo: Callable[..., Awaitable[MlxWorker]], kind: Kind) -> None:
    worker = await echo(kind)
    for text, more in ((UNICODE, {}), (CODE, {"seed": 1}), (SPACES, {}), (THINK, {})):
        whole = await goes_on_everywhere(worker, chat(text, temperature=0, **more))
        if text != THINK:
            assert text_of(whole) in (text, text.removeprefix(" "))


async def test_reasoning_and_tool_calls_come_out_as_if_never_cut(echo: Callable[..., Awaitable[MlxWorker]]) -> None:
    worker = await echo()
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("weather", "search")]
    for more in ({}, {"seed": 1}):
        whole = await goes_on_everywhere(worker, chat(TOOLS, temperature=0, tools=tools, **more))
        calls = [call for choice in choices(whole) for call in choice["delta"].get("tool_calls", [])]
        assert [(call["index"], call["function"]["name"]) for call in calls] == [(0, "weather"), (1, "search")]
        assert choices(whole)[-1]["finish_reason"] == "tool_calls"

        whole = await goes_on_everywhere(worker, chat(THINK, temperature=0, **more))
        assert delta_text(whole, "reasoning") == "6 times 7 is\n42.\n\n"
        assert delta_text(whole, "content") == "\n\nThe answer is **42**."

        begun = {"chat_template_kwargs": {"begins_thinking": True}, **more}
        whole = await goes_on_everywhere(worker, chat("hm, so</think>42", temperature=0, **begun))
        assert (delta_text(whole, "reasoning"), delta_text(whole, "content")) == ("hm, so", "42")


async def test_an_answer_ends_after_the_cut_as_it_would_have_without(echo: Callable[..., Awaitable[MlxWorker]]) -> None:
    worker = await echo()
    text = "one two, then STOP HERE 🎉 three"
    for more in ({}, {"seed": 1}):
        whole = await goes_on_everywhere(worker, chat(text, temperature=0, stop=[" STOP HERE"], **more))
        assert text_of(whole) == "one two, then"
        assert choices(whole)[-1]["finish_reason"] == "stop"
        whole = await goes_on_everywhere(worker, chat(text, temperature=0, stop=["two", "zero"], **more))
        assert "two" not in text_of(whole)  # mlx_lm cuts it out, even when it is no token of its own and does not stop
        for most in (1, 2, 9, 14, 15, 16, 17, 18):
            whole = await goes_on_everywhere(worker, chat(text, temperature=0, max_tokens=most, **more))
            found = usage_of(whole[-2])
            assert found is not None
            assert choices(whole)[-1]["finish_reason"] == ("length" if most < 18 else "stop")
            assert found.usage.completion == most


async def test_an_answer_ends_after_the_cut_when_the_context_is_full(echo: Callable[..., Awaitable[MlxWorker]]) -> None:
    worker = await echo(context=40)
    whole = await goes_on_everywhere(worker, chat(CODE[:50], temperature=0))
    assert choices(whole)[-1]["finish_reason"] == "length"
    found = usage_of(whole[-2])
    assert found is not None
    assert found.usage.prompt + found.usage.completion == 40


async def test_a_model_that_reads_its_own_answer_says_the_same(started: Start, chat_model: Path) -> None:
    worker = await started(chat_model, name="m")
    whole = await goes_on_everywhere(worker, chat("What is the capital of France?", temperature=0, max_tokens=8))
    assert "Paris" in text_of(whole)


async def test_penalties_and_seeds_hold_over_the_cut(started: Start, tiny_model: Path) -> None:
    worker = await started(tiny_model, name="m")
    for more in ({}, {"repetition_penalty": 1.5}, {"presence_penalty": 1.0}, {"frequency_penalty": 0.5}):
        await goes_on_everywhere(worker, chat("Hello", temperature=0, max_tokens=16, **more))
    hot = {"temperature": 0.9, "seed": 7, "max_tokens": 16}
    for more in ({}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.05}, {"xtc_probability": 0.5, "xtc_threshold": 0.01}):
        await goes_on_everywhere(worker, chat("Hello", **hot, **more))


async def test_what_goes_on_shares_its_batch_with_others(echo: Callable[..., Awaitable[MlxWorker]]) -> None:
    worker = await echo(extra_args=("--prompt-concurrency", "4"))
    others = [f"{n} " + ", and so on" * (3 * n + 1) for n in range(6)]

    async def whole(text: str) -> None:
        assert text_of(await asked(worker, CHAT, chat(text, temperature=0))) == text

    async with asyncio.TaskGroup() as tasks:
        for text in others:
            tasks.create_task(whole(text))
        for text in (UNICODE, " other" * 30):
            tasks.create_task(goes_on_everywhere(worker, chat(text, temperature=0)))


async def test_a_continuation_that_makes_no_sense_is_refused_and_harms_nobody_else(
    echo: Callable[..., Awaitable[MlxWorker]],
) -> None:
    worker = await echo()
    body, long = chat(UNICODE, temperature=0, max_tokens=30), "one after the other, " * 100 + "."
    whole = await asked(worker, CHAT, body)
    end = list(cuts_of(whole))[-1][1]
    good = {"id": "c", "created": 1, "tokens": list(end[:5]), "blocks": 1}
    nonsense: list[object] = [
        [],
        {**good, "tokens": "all"},
        {**good, "tokens": [1, 2.5]},
        {**good, "tokens": [4095, 4096]},
        {**good, "tokens": [-1]},
        {**good, "tokens": [2**70]},
        {**good, "blocks": -1},
        {**good, "blocks": 6},
        {**good, "tokens": [], "blocks": 1},
        {**good, "tokens": [*end, 5]},  # after its last
        {**good, "tokens": list(end), "blocks": len(whole)},  # as if it had `[DONE]`
        {**good, "tokens": [2, 5]},  # after the end of a text
    ]
    async with asyncio.TaskGroup() as tasks:
        other = tasks.create_task(asked(worker, CHAT, chat(long, temperature=0)))
        for seed in ({}, {"seed": 1}):
            for said in nonsense:
                request = json.dumps({**json.loads(body), **seed, RESUME_FIELD: said}).encode()
                assert await fails(asked(worker, CHAT, request), NodeErrorCode.BAD_REQUEST), said
    assert text_of(await other) == long
    assert [plain(b)["choices"] for b in await asked(worker, CHAT, body) if b != DONE] == [
        plain(b)["choices"] for b in whole if b != DONE
    ]


async def test_what_was_said_elsewhere_is_neither_generated_nor_kept_apart(
    echo: Callable[..., Awaitable[MlxWorker]],
) -> None:
    worker = await echo()
    text = "some words that are said once, and not again"
    whole = await asked(worker, CHAT, chat(text, temperature=0))
    cuts = list(cuts_of(whole))
    before = await stands_still(worker)
    for blocks, tokens in (cuts[5], cuts[-1]):
        said = Continuation(id="c", created=1, tokens=tokens, blocks=blocks)
        rest = await asked(worker, CHAT, continued(chat(text, temperature=0), said))
        assert {(chunk["id"], chunk["created"]) for chunk in chunks_of(rest)} <= {("c", 1)}
    after = await stands_still(worker)
    assert after.generated_tokens - before.generated_tokens == len(cuts[-1][1]) - len(cuts[5][1])
    assert after.prompt_tokens - before.prompt_tokens <= 1  # all the rest was in the cache, under prompt and answer


async def test_tokens_are_named_to_those_who_ask_and_in_streams_only(echo: Callable[..., Awaitable[MlxWorker]]) -> None:
    worker = await echo()
    url, body = f"{worker.upstream.base}/{CHAT}", json.loads(chat("Hello", temperature=0))
    async with aiohttp.ClientSession() as session:
        for headers, stream in (({}, True), ({}, False), ({TOKENS_HEADER: "1"}, False)):
            async with session.post(url, json={**body, "stream": stream}, headers=headers) as answer:
                assert (answer.status, TOKENS_FIELD in await answer.text()) == (200, False)
        said = {"id": "c", "created": 1, "tokens": [], "blocks": 0}
        async with session.post(url, json={**body, "stream": False, RESUME_FIELD: said}) as answer:
            assert answer.status == 400


async def test_what_goes_on_is_stopped_when_its_caller_leaves(started: Start, tiny_model: Path) -> None:
    worker = await started(tiny_model, name="m")
    body = chat("Hello", temperature=0, max_tokens=6000)
    said = Continuation(id="c", created=1, tokens=(625, 444, 1967), blocks=3)
    async with aclosing(streamed(worker, CHAT, continued(body, said), model_name="m")) as blocks:
        async for block in blocks:
            if not is_comment(block):
                break
    stats = await stands_still(worker)
    assert 0 < stats.generated_tokens < 6000
