"""Both ends of requests that carry a number: a model server that notes when it begins and ends each, and clients that
note how each was answered. Between them stands the mesh. Run as a program inside a namespace:

    python -m tests.lab.counted serve PORT FILE      an engine `command`; notes go to FILE
    python -m tests.lab.counted ask URL FILE CLIENTS until the end of its input; then what is open still ends
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec
from aiohttp import web
from msgspec import Struct

MODEL = "counted"
TOKENS, TOKEN_S = 25, 0.04  # of an answer: it takes a second
LIMIT_S = 120.0  # for one request
MARK = "request "


class Run(Struct, frozen=True):
    """A server's note. `at` on the monotonic clock of all namespaces; `open`: answers it works on then."""

    mark: str
    what: Literal["begin", "end", "cut"]
    at: float
    open: int


class Answered(Struct, frozen=True):
    """A client's note. `wrong` "": the answer came, and whole."""

    mark: str
    start: float
    end: float
    wrong: str = ""


def notes(file: Path, kind: type[Any]) -> list[Any]:
    """All whole lines of it."""
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [msgspec.json.decode(line, type=kind) for line in lines]


def noting(file: str) -> Callable[[Struct], None]:
    out = Path(file).open("ab", buffering=0)  # noqa: SIM115 - as long as the program; a killed one loses no note
    return lambda note: out.write(msgspec.json.encode(note) + b"\n") and None


# The server


async def serve(port: int, note: Callable[[Struct], None]) -> None:
    open_: set[str] = set()

    async def completion(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = str(body["messages"][-1]["content"]) if "messages" in body else ""
        mark = text.removeprefix(MARK) if text.startswith(MARK) else ""  # else the node's own probe
        if not mark:
            return await answer(request, body, 1)
        open_.add(mark)
        note(Run(mark, "begin", time.monotonic(), len(open_)))
        what: Literal["end", "cut"] = "cut"
        try:
            response = await answer(request, body, TOKENS)
            what = "end"
            return response
        finally:
            open_.discard(mark)
            note(Run(mark, what, time.monotonic(), len(open_)))

    app = web.Application()
    app.add_routes(
        [
            web.get("/v1/models", lambda _: _listed()),
            web.post("/v1/chat/completions", completion),
            web.post("/v1/completions", completion),
        ]
    )
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def _listed() -> web.Response:
    return web.json_response({"object": "list", "data": []})


async def answer(request: web.Request, body: dict[str, Any], tokens: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    chat = "messages" in body

    async def say(text: str, reason: str | None, **more: Any) -> None:
        said = {"delta": {"role": "assistant", "content": text}} if chat else {"text": text}
        head = {"id": "c", "object": "chat.completion.chunk", "model": MODEL}
        choices = [] if more else [{"index": 0, "finish_reason": reason, **said}]
        await response.write(b"data: " + json.dumps({**head, "choices": choices, **more}).encode() + b"\n\n")

    for _ in range(tokens):
        await asyncio.sleep(TOKEN_S)
        await say("x", None)
    await say("", "stop")
    await say("", None, usage={"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": tokens + 5})
    await response.write(b"data: [DONE]\n\n")
    return response


# The clients


async def ask(url: str, clients: int, note: Callable[[Struct], None]) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.run_in_executor(None, sys.stdin.read).add_done_callback(lambda _: over.set())

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        count = 0
        while not over.is_set():
            mark = f"{number}-{count}"
            start = time.monotonic()
            try:
                wrong = await one(session, url, mark, stream=count % 2 == 0, key=f"client-{number}")
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                wrong = f"{type(error).__name__}: {error}"
            note(Answered(mark, start, time.monotonic(), wrong))
            count += 1
            if wrong:
                await asyncio.sleep(0.1)

    limit = aiohttp.ClientTimeout(total=LIMIT_S)
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=limit, connector=connections) as session, asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number, session))


async def one(session: aiohttp.ClientSession, url: str, mark: str, *, stream: bool, key: str) -> str:
    """What was wrong with its answer; "" for nothing."""
    body = {"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": MARK + mark}]}
    headers = {"authorization": f"Bearer {key}", "x-request-id": mark}
    async with session.post(f"{url}/chat/completions", json=body, headers=headers) as response:
        said = await response.read()
        if response.status != 200:
            return f"status {response.status}: {said.decode()[:200]}"
    if stream:
        events = [line.removeprefix(b"data: ") for line in said.split(b"\n\n") if line.startswith(b"data: ")]
        if events[-1:] != [b"[DONE]"]:
            return f"the stream ended without [DONE]: {said.decode()[-200:]}"
        choices = [c for event in events[:-1] for c in json.loads(event).get("choices", ())]
        text = "".join(c["delta"].get("content") or "" for c in choices)
    else:
        text = json.loads(said)["choices"][0]["message"]["content"]
    return "" if text == "x" * TOKENS else f"the answer is {text!r}"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port, file]:
            asyncio.run(serve(int(port), noting(file)))
        case ["ask", url, file, clients]:
            asyncio.run(ask(url, int(clients), noting(file)))
        case _:
            sys.exit(__doc__)
