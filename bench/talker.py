"""Clients as a program of their own (bench/talk.py starts it): the stock `openai` package, as many at a time as are
asked for. A line of input is an `Ask`; the end of the input ends it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai
from openai import AsyncOpenAI

from bench.talk import Answer, Ask, Ended, Reached

TAIL_BYTES = 64


class Talk:
    """One request on its way."""

    def __init__(self, ask: Ask, client: AsyncOpenAI, edge: str) -> None:
        self._ask, self._client = ask, client
        self._start = self._last = time.monotonic()
        self._found: dict[str, Any] = {"edge": edge}
        self._text = self._reasoning = self._finish = ""
        self._calls: dict[int, list[str]] = {}
        self._tokens: list[int] = []
        self._ids: set[str] = set()
        self._tail, self._gap_s, self._blocks = b"", 0.0, 0

    async def answer(self) -> Answer:
        """Asks, and waits for the end whatever it is."""
        error = code = ""
        try:
            async with asyncio.timeout(self._ask.limit_s):
                await (self._stream() if self._ask.body.get("stream") else self._whole())
        except TimeoutError:
            error, code = f"no end within {self._ask.limit_s:g} s", "hung"
        except openai.APIError as failure:
            cause = failure.__cause__ or failure
            error = f"{type(failure).__name__}: {failure.message} ({type(cause).__name__}: {cause})"
            code = str(failure.code or "")
            if isinstance(failure, openai.APIStatusError):
                self._heads(failure.response)
        except Exception as failure:  # noqa: BLE001 - a library that trips over what it is sent is a finding too
            error = f"{type(failure).__name__}: {failure}"
        streams = bool(self._ask.body.get("stream"))
        return Answer(
            number=self._ask.number, start=self._start, end=time.monotonic(), stream=streams,
            text=self._text, reasoning=self._reasoning, finish=self._finish, blocks=self._blocks, gap_s=self._gap_s,
            tools=tuple((name, arguments) for name, arguments in self._calls.values()), tokens=tuple(self._tokens),
            ids=len(self._ids), error=error, code=code, **self._found,
            silent=streams and not error and b"data: [DONE]" not in self._tail,
        )  # fmt: skip

    @property
    def edge(self) -> str:
        return str(self._found["edge"])

    def _create(self) -> Any:
        return self._client.chat.completions if self._ask.path == "chat" else self._client.completions

    async def _whole(self) -> None:
        raw = await self._create().with_raw_response.create(**self._ask.body)
        self._heads(raw.http_response)
        answer = raw.parse()
        [choice] = answer.choices
        self._finish = choice.finish_reason or ""
        self._used(answer.usage)
        if self._ask.path == "completions":
            self._text = choice.text
            return
        self._text = choice.message.content or ""
        self._reasoning = (choice.message.model_extra or {}).get("reasoning") or ""
        for call in choice.message.tool_calls or ():
            self._calls[len(self._calls)] = [call.function.name, call.function.arguments]

    async def _stream(self) -> None:
        stream = await self._create().create(**self._ask.body)
        self._heads(stream.response)
        stream.response.aiter_bytes = self._tapped(stream.response.aiter_bytes)
        async with stream:
            async for chunk in stream:
                self._chunk(chunk)

    def _tapped(self, read: Any) -> Any:
        """What the SDK reads, looked at for what it does not tell: how it ended, and how long it was quiet."""

        async def reading(*args: Any) -> AsyncIterator[bytes]:
            async for data in read(*args):
                now = time.monotonic()
                self._gap_s, self._last = max(self._gap_s, now - self._last), now
                self._tail = (self._tail + data)[-TAIL_BYTES:]
                yield data

        return reading

    def _chunk(self, chunk: Any) -> None:
        self._blocks += 1
        self._ids.add(chunk.id)
        self._tokens += (chunk.model_extra or {}).get("mesh_tokens") or ()
        for choice in chunk.choices:
            self._finish = choice.finish_reason or self._finish
            if self._ask.path == "completions":
                self._text += choice.text or ""
                continue
            self._text += choice.delta.content or ""
            self._reasoning += (choice.delta.model_extra or {}).get("reasoning") or ""
            for call in choice.delta.tool_calls or ():
                known = self._calls.setdefault(call.index, ["", ""])
                known[0] += call.function.name or ""
                known[1] += call.function.arguments or ""
        self._used(chunk.usage)
        if self._blocks == self._ask.at:
            self._found["at"] = time.monotonic()
            say(Reached(number=self._ask.number, node=self._found["node"]))

    def _used(self, usage: Any) -> None:
        if usage is not None:
            self._found["usage"] = (usage.prompt_tokens, usage.completion_tokens)

    def _heads(self, response: Any) -> None:
        self._last = time.monotonic()
        self._found["node"] = response.headers.get("x-mesh-node", "")
        self._found["request"] = response.headers.get("x-request-id", "")
        stream = response.extensions.get("network_stream")
        address = stream.get_extra_info("server_addr") if stream is not None else None
        if address:
            self._found["edge"] = address[0]


def say(what: Reached | Ended) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


async def main() -> None:
    """Until the input ends; what is open then is given up."""
    clients: dict[tuple[int, str, int], AsyncOpenAI] = {}
    edges: dict[int, str] = {}

    async def work(ask: Ask) -> None:
        key = (ask.client, ask.url, ask.retries)
        if key not in clients:
            limit = openai.Timeout(ask.limit_s, connect=ask.connect_s)
            clients[key] = AsyncOpenAI(base_url=ask.url, api_key=f"client-{ask.client}", max_retries=ask.retries,
                                       timeout=limit)  # fmt: skip
        talk = Talk(ask, clients[key], edges.get(ask.client, ""))
        answer = await talk.answer()
        edges[ask.client] = talk.edge
        say(Ended(answer=answer))

    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    tasks: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        task = asyncio.create_task(work(msgspec.json.decode(line, type=Ask)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    asyncio.run(main())
