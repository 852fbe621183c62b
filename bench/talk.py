"""Clients of a bench that run elsewhere (in a network namespace): what they are asked to ask, and what they were told.

`Talker` starts bench/talker.py there and speaks JSON lines with it; one program is as many clients as one likes.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

import msgspec
from msgspec import Struct

from bench.report import ROOT
from tests.lab.netlab import Lab

LINE_BYTES = 1 << 24
START_S, END_S = 240.0, 10.0  # Python and the SDK, on a machine that does much else


class Ask(Struct, frozen=True, kw_only=True):
    """One request. `client`: who of the program asks (each has a connection of its own); `at`: its talker tells when
    so many blocks of the stream have come, 0: never; `retries` of the SDK; `limit_s`: then it hangs."""

    number: int
    url: str  # with /v1
    path: str = "chat"  # or "completions"
    body: dict[str, Any]
    client: int = 0
    at: int = 0
    retries: int = 0
    limit_s: float = 120.0
    connect_s: float = 30.0


class Answer(Struct, frozen=True, kw_only=True):
    """How it ended. Times monotonic, the same clock for all namespaces. `error` "": it came, and whole; `code` of the
    error envelope, "" when the error has no name. `silent`: the stream ended without [DONE] and without an error."""

    number: int
    start: float
    end: float
    stream: bool = False
    request: str = ""  # x-request-id of the answer
    node: str = ""
    edge: str = ""  # the address of the client's connection, the last one known
    text: str = ""
    reasoning: str = ""
    tools: tuple[tuple[str, str], ...] = ()
    finish: str = ""
    usage: tuple[int, int] = (0, 0)  # tokens of the prompt and of the answer
    blocks: int = 0
    at: float = 0.0  # when the block asked for came
    gap_s: float = 0.0  # the longest time without anything from the mesh
    tokens: tuple[int, ...] = ()  # as the mesh names them, where it does
    ids: int = 0  # how many different ids its chunks had
    silent: bool = False
    error: str = ""
    code: str = ""

    @property
    def said(self) -> tuple[Any, ...]:
        """All that has to be equal when two answers are."""
        return self.text, self.reasoning, self.tools, self.finish, self.usage


class Reached(Struct, frozen=True, kw_only=True, tag="at"):
    """The block has come that was waited for."""

    number: int
    node: str


class Ended(Struct, frozen=True, kw_only=True, tag="end"):
    answer: Answer


class Open(Struct):
    """A request under way. `reached` tells the node when block `at` has come, "" when the answer ended before."""

    reached: asyncio.Future[str]
    answer: asyncio.Future[Answer]


class Talker:
    """The program, on `mac` of `lab`, for as long as its `async with`."""

    def __init__(self, lab: Lab, mac: str) -> None:
        self._lab, self._mac, self._number = lab, mac, 0
        self._open: dict[int, Open] = {}

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._lab.argv(self._mac, [sys.executable, "-m", "bench.talker"]),
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, limit=LINE_BYTES,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(START_S):
            await self._line()
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def ask(self, url: str, body: dict[str, Any], **more: Any) -> Open:
        """Begins; what is given beside are fields of Ask."""
        self._number += 1
        loop = asyncio.get_running_loop()
        opened = self._open[self._number] = Open(loop.create_future(), loop.create_future())
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(Ask(number=self._number, url=url, body=body, **more)) + b"\n")
        return opened

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.readline()

    async def _read(self) -> None:
        while line := await self._line():
            match msgspec.json.decode(line, type=Reached | Ended):
                case Reached(number=number, node=node):
                    self._open[number].reached.set_result(node)
                case Ended(answer=answer):
                    opened = self._open.pop(answer.number)
                    if not opened.reached.done():
                        opened.reached.set_result("")
                    opened.answer.set_result(answer)
        for opened in self._open.values():  # a request that nobody works on any more must not be waited for
            opened.answer.cancel()
            opened.reached.cancel()


def differing(one: Answer, other: Answer) -> str:
    """The first thing in which they differ, for a person; "" for nothing."""
    for name in ("text", "reasoning", "tools", "finish", "usage"):
        ours, theirs = getattr(one, name), getattr(other, name)
        if ours != theirs:
            return f"{name}: {_around(ours, theirs)}"
    return ""


def _around(ours: Any, theirs: Any) -> str:
    if not isinstance(ours, str):
        return f"{ours!r} for {theirs!r}"
    same = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    part = slice(max(0, same - 15), same + 25)
    return f"{ours[part]!r} for {theirs[part]!r} at character {same} of {len(theirs)}"


def longest_s(answers: Sequence[Answer]) -> float:
    """The longest that anybody waited for an end."""
    return max((a.end - a.start for a in answers), default=0.0)
