"""Who sits between a newcomer and a member, with a key of its own, and speaks the join call to both."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from mesh import checks
from mesh.checks import Seen
from mesh.join_call import Begin, Line, Offer, Question, Result, Reveal, decode_question, encode
from mesh.join_settings import JoinSettings
from mesh.tls import JOIN
from mesh.trust import Trust
from node.io import identity as identities


class InBetween:
    """To the member at `port` it is a newcomer with the other one's name; to the newcomer it is a member of a mesh of
    its own. `lies`: it shows the newcomer the member's certificate in place of its own."""

    def __init__(self, folder: Path, port: int, stranger: ssl.SSLContext, *, mesh: str, lies: bool = False) -> None:
        home = folder / "between"
        (home / "node").mkdir(parents=True)
        self.identity = identities.load(home, pytest.fail)
        self.trust = Trust(home / "mesh", self.identity, pytest.fail)
        self.trust.found(mesh, "mac1")
        self.port, self._stranger, self._mesh, self._lies = port, stranger, mesh, lies
        self.questions: list[Question] = []
        self.result: Result | None = None  # what the member has said to it
        self._line: Line
        self._begin: Begin
        self._offer: Offer
        self._nonce = b"a" * checks.NONCE_BYTES

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Its port."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.identity.cert_file, self.identity.key_file)
        app = web.Application()
        app.add_routes([web.post(JOIN, self._asked)])
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
            await site.start()
            assert runner.addresses
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()

    async def _asked(self, request: web.Request) -> web.Response:
        question = decode_question(await request.read())
        self.questions.append(question)
        if isinstance(question, Begin):
            self._begin, answer = question, await self._begun(question)
        else:
            assert isinstance(question, Reveal)
            answer = await self._revealed(question)
        return web.Response(body=encode(answer))

    async def _begun(self, question: Begin) -> Offer | Result:
        self._line = Line("127.0.0.1", self.port, self._stranger, JoinSettings())
        mine = Begin(
            id=self.identity.id, name=question.name, mesh=self._mesh, cert=self.identity.cert,
            commit=checks.commitment(self._nonce, self.identity.cert),
        )  # fmt: skip
        offer = await self._line.ask(mine)
        assert isinstance(offer, Offer)
        self._offer = offer
        cert = self._line.cert if self._lies else self.identity.cert
        return Offer(session=b"s", nonce=offer.nonce, cert=cert)

    async def _revealed(self, question: Reveal) -> Result:
        seen = Seen(self.identity.cert, self._line.cert, self._nonce, self._offer.nonce)
        reveal = Reveal(session=self._offer.session, nonce=self._nonce, signature=self.identity.sign(seen.signed()))
        result = await self._line.ask(reveal)
        assert isinstance(result, Result)
        self.result = result
        self.trust.admit(self._begin.id, self._begin.name, self._begin.cert)
        return Result(
            outcome="joined", how="window", mesh=self.trust.mesh_id, mesh_name=self._mesh, node=self.identity.id,
            name="mac1", records=self.trust.records(),
        )  # fmt: skip
