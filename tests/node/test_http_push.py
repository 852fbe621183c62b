"""Answers that are handed on in the callbacks that bring them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node.http_answer import AnswerHead
from node.io.dial import Origin
from node.io.http_wire import Answer, HttpError
from node.settings import HttpSettings
from tests.mesh.waiting import until
from tests.node.speaking import ASK, STREAM, closing, spoken


class Pushed(Answer):
    """Notes what it is told; `then` is called with each part."""

    def __init__(self, then: Callable[[Pushed], None] = lambda _: None) -> None:
        super().__init__(HttpSettings(), 30.0)
        self.told: list[object] = []
        self.body = b""
        self._then = then

    def on_head(self, head: AnswerHead) -> None:
        self.told.append(head.status)

    def on_part(self, body: bytes) -> None:
        self.body += body
        self._then(self)

    def on_end(self, error: HttpError | None) -> None:
        self.told.append(error and str(error))


async def test_parts_are_pushed_and_what_is_left_ends_by_itself() -> None:
    async with spoken() as (speaker, client):
        speaker.says = [STREAM + b"3\r\none\r\n"]

        async def rest(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for part in (b"3\r\ntwo\r\n", b"4\r\ndone\r\n", b"5\r\nextra\r\n", b"0\r\n\r\n"):
                writer.write(part)
                await writer.drain()

        def enough(answer: Pushed) -> None:
            if b"done" in answer.body:
                answer.leave()

        speaker.then, answer = rest, Pushed(enough)
        client.push([Origin("127.0.0.1", speaker.port)], ASK, b"", answer, connect_s=5.0)
        await until(lambda: client.idle == 1)
        assert answer.body.startswith(b"onetwodone")
        assert answer.told == [200], "nothing is told of what was left"


async def test_a_pushed_question_leaves_on_a_kept_connection_at_once() -> None:
    async with spoken() as (speaker, client):
        for n in range(3):
            answer = Pushed()
            client.push([Origin("127.0.0.1", speaker.port)], ASK, b"", answer, connect_s=5.0)
            assert (answer.opening is None) == (n > 0)
            await until(lambda answer=answer: answer.told == [200, None])
        assert speaker.connections == 1


async def test_a_pushed_question_is_asked_again_on_a_stale_connection_and_only_once() -> None:
    async with spoken() as (speaker, client):
        await speaker.all(client)
        speaker.says, speaker.then, answer = [b""], closing, Pushed()
        client.push([Origin("127.0.0.1", speaker.port)], ASK, b"", answer, connect_s=5.0)
        await until(lambda: answer.told)
        assert answer.told == ["it closed the connection before its answer"]
        assert len(speaker.asked) == 3


async def test_a_pushed_answer_that_is_closed_says_nothing_more() -> None:
    async with spoken() as (speaker, client):
        speaker.says, answer = [STREAM + b"3\r\none\r\n"], Pushed(Answer.close)
        client.push([Origin("127.0.0.1", speaker.port)], ASK, b"", answer, connect_s=5.0)
        await until(lambda: speaker.connections == 1)
        await until(lambda: client.connections == speaker.open == 0)
        assert (answer.told, answer.body) == ([200], b"one")
        early = Pushed()
        client.push([Origin("127.0.0.1", speaker.port)], ASK, b"", early, connect_s=5.0)
        early.close()
        await until(lambda: not client._opening)
        assert (early.told, client._open) == ([], {})


async def test_a_large_question_that_is_closed_before_it_leaves_leaves_no_connection() -> None:
    async with spoken(slice_bytes=100) as (speaker, client):
        await speaker.all(client)
        await until(lambda: client.idle == 1)
        answer = Pushed()
        client.push([Origin("127.0.0.1", speaker.port)], ASK, b"x" * 1000, answer, connect_s=5.0)
        answer.close()
        await until(lambda: client.connections == speaker.open == 0)
        assert (answer.told, client._open, client._opening) == ([], {}, set())
