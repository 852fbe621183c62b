"""A model server whose speed is set, as an engine `command`: it sleeps for each token and computes nothing, so many fit
on one small machine. For benches and tests of where requests go.

    python -m bench.paced --port 8080 --read-ms 2 --write-ms 20 --slots 4 --kept 16
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from msgspec import Struct

TOKEN_BYTES = 4
WORDS = ("one ", "two ", "six ", "ten ")  # a token each


def command(model: str, **options: float) -> list[str]:
    """The words of a tier's `command`: command("m", read_ms=2) -> [..., "--model", "m", "--read-ms", "2"]. With
    "{model}" the node reads the weights that the tier names."""
    words = [sys.executable, "-m", "bench.paced", "--model", model, "--port", "{port}"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


class Pace(Struct, frozen=True, kw_only=True):
    """Seconds per token. `slots` answers are worked on at a time, `kept` texts stay in the prompt cache."""

    read_s: float
    write_s: float
    slots: int
    kept: int


class Read(Struct, frozen=True):
    """What was found of a prompt, in tokens."""

    tokens: int
    cached: int


class Server:
    """Prompts are read one at a time, first come first served; answers are written side by side, but stand still while
    a prompt is read, as in mlx_lm. What is late catches up, so the pace holds on a busy machine too."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._slots = asyncio.Semaphore(pace.slots)
        self._reader = asyncio.Lock()
        self._kept: OrderedDict[bytes, None] = OrderedDict()  # texts whose keys and values a real one would keep

    async def answer(self, prompt: bytes, tokens: int) -> AsyncIterator[tuple[str, Read]]:
        """The tokens of an answer, each with what was found of its prompt."""
        clock = asyncio.get_running_loop().time
        async with self._slots:
            async with self._reader:
                found = self._look(prompt)
                due = clock() + (found.tokens - found.cached) * self._pace.read_s
                await asyncio.sleep(due - clock())
                self._keep(prompt)
            said = b""
            for number in range(tokens):
                due += self._pace.write_s if number else 0.0
                await asyncio.sleep(due - clock())
                if self._reader.locked():
                    async with self._reader:
                        due = clock()
                word = WORDS[number % len(WORDS)]
                said += word.encode()
                yield word, found
            self._keep(_turn(prompt, "assistant", said))

    def _look(self, prompt: bytes) -> Read:
        whole = max(1, len(prompt) // TOKEN_BYTES)
        held = max((_shared(prompt, text) for text in self._kept), default=0)
        return Read(whole, min(held // TOKEN_BYTES, whole - 1))

    def _keep(self, text: bytes) -> None:
        """One that another continues is replaced by it."""
        for old in [old for old in self._kept if text.startswith(old)]:
            del self._kept[old]
        self._kept[text] = None
        while len(self._kept) > self._pace.kept:
            self._kept.popitem(last=False)


def _shared(a: bytes, b: bytes) -> int:
    """Bytes from the start that are the same."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def _turn(before: bytes, role: str, text: bytes) -> bytes:
    return before + b"<" + role.encode() + b">" + text


def prompt_of(body: dict[str, Any]) -> bytes:
    """The text that is read for a request; a conversation that goes on begins with what was kept of it."""
    prompt = str(body.get("prompt", "")).encode()
    for message in body.get("messages", ()):
        prompt = _turn(prompt, message["role"], str(message["content"]).encode())
    return prompt


async def serve(server: Server, request: web.Request) -> web.StreamResponse:
    """One completion, streamed, with its usage at the end."""
    body = await request.json()
    chat = request.path.endswith("/chat/completions")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    head = {"id": "paced", "object": "chat.completion.chunk" if chat else "text_completion", "model": body["model"]}
    tokens = int(body.get("max_tokens") or 16)
    found = Read(0, 0)

    async def say(**fields: Any) -> None:
        await response.write(b"data: " + json.dumps(head | fields).encode() + b"\n\n")

    def choice(text: str, reason: str | None) -> list[dict[str, Any]]:
        said = {"delta": {"role": "assistant", "content": text}} if chat else {"text": text}
        return [{"index": 0, "finish_reason": reason, **said}]

    async for word, read in server.answer(prompt_of(body), tokens):
        found = read
        await say(choices=choice(word, None))
    await say(choices=choice("", "length"))
    usage = {"prompt_tokens": found.tokens, "completion_tokens": tokens, "total_tokens": found.tokens + tokens}
    await say(choices=[], usage=usage | {"prompt_tokens_details": {"cached_tokens": found.cached}})
    await response.write(b"data: [DONE]\n\n")
    return response


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": []})


async def run(port: int, pace: Pace) -> None:
    """Serves until it is ended."""
    server = Server(pace)

    async def completion(request: web.Request) -> web.StreamResponse:
        return await serve(server, request)

    app = web.Application(client_max_size=32 * 2**20)
    app.add_routes(
        [
            web.get("/v1/models", models),
            web.post("/v1/chat/completions", completion),
            web.post("/v1/completions", completion),
        ]
    )
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)  # who is gone frees its slot
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.paced", description=__doc__)
    parser.add_argument("--model", default="", help="no matter: it tells two of one pace apart")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--read-ms", type=float, default=1.0, help="for each prompt token that is not kept")
    parser.add_argument("--write-ms", type=float, default=10.0, help="for each token of an answer")
    parser.add_argument("--slots", type=int, default=4, help="answers at a time")
    parser.add_argument("--kept", type=int, default=64, help="texts in the prompt cache")
    options = parser.parse_args()
    pace = Pace(read_s=options.read_ms / 1000, write_s=options.write_ms / 1000, slots=options.slots, kept=options.kept)
    asyncio.run(run(options.port, pace))


if __name__ == "__main__":
    main()
