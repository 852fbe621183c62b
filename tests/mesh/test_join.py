"""Joining, between real daemons on loopback: by the window, by a person's hand, by invite; and whoever should not."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh.checks import Token
from mesh.daemon import Daemon
from mesh.errors import MeshError
from mesh.home import Home
from mesh.join_call import Begin, Line, Offer, Result, Reveal
from mesh.join_settings import JoinSettings
from mesh.joiner import Came, Joiner, Me
from mesh.joining import Sight
from mesh.status import Json
from mesh.tls import JOIN
from node.io import identity as identities
from node.io.identity import Identity
from node.types import NodeId
from tests.mesh.daemons import edit, home_of, mesh_name, running
from tests.mesh.in_between import InBetween
from tests.mesh.waiting import until

pytestmark = pytest.mark.usefixtures("bare_environment")


def stranger() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Newcomer:
    """No daemon: an identity that makes join calls."""

    def __init__(self, folder: Path, name: str = "new") -> None:
        home = folder / f"newcomer-{name}"
        (home / "node").mkdir(parents=True)
        self.identity: Identity = identities.load(home, pytest.fail)
        self.name = name
        self._joiner = Joiner(lambda: self.identity, stranger, JoinSettings())

    async def ask(self, daemon: Daemon, *, port: int = 0, token: Token | None = None, name: str = "") -> Came:
        sight = Sight(
            node=daemon.id, name=daemon.config.node_name, mesh=daemon.trust.mesh_id, stance="open",
            peer_port=port or daemon.config.peer_port,
        )  # fmt: skip
        me = Me(self.name, name or daemon.config.mesh_name, 4000, 4001)
        return await self._joiner.ask(sight, me, ["127.0.0.1"], token)


@asynccontextmanager
async def founded(folder: Path, name: str = "mac1", **settings: Any) -> AsyncIterator[Daemon]:
    """A daemon whose mesh has settled."""
    async with running(home_of(folder, name, mesh_enabled=True, **settings)) as daemon:
        await until(lambda: daemon.overlay is not None and daemon.overlay.joins.settled)
        yield daemon


async def status(daemon: Daemon) -> Json:
    return await daemon.control.mesh_status()


def states(found: Json) -> dict[str, str]:
    return {node["name"]: node["state"] for node in found["nodes"]}


def numbers(found: Json) -> dict[str, str]:
    """By name, those that people compare."""
    return {n["name"]: found["trust"]["checks"][n["id"]] for n in found["nodes"] if n["id"] in found["trust"]["checks"]}


async def together(*daemons: Daemon) -> None:
    """They are one mesh, and each is `ok` for all."""
    names = {d.config.node_name for d in daemons}

    def one() -> bool:
        views = [d.membership.view() for d in daemons]
        alive = [{n.report.name for n in v.nodes if n.state.value == "ok"} for v in views]
        return len({d.trust.mesh_id for d in daemons}) == 1 and all(found == names for found in alive)

    await until(one)


async def test_two_that_start_at_once_become_one_and_show_the_same_number_until_one_is_confirmed(
    tmp_path: Path,
) -> None:
    name = mesh_name()
    homes = [home_of(tmp_path, n, mesh_enabled=True, mesh_name=name) for n in ("mac1", "mac2")]
    async with running(homes[0]) as one, running(homes[1]) as two:
        await together(one, two)
        await until(lambda: one.control._trust.checks() and two.control._trust.checks())
        checks = [numbers(await status(d)) for d in (one, two)]
        assert checks[0] == checks[1]
        (new,) = checks[0]
        for found in (await status(one), await status(two)):
            assert f"`mlx-stack mesh accept {new}`" in found["notes"][0]
            assert found["trust"]["window_s"] > 1700
        assert (await one.control.accept(new))["done"] == "confirmed"
        await until(lambda: not two.control._trust.checks())


async def test_who_comes_when_the_window_is_closed_waits_is_let_in_by_hand_and_found_again_after_its_members_are_lost(
    tmp_path: Path,
) -> None:
    name = mesh_name()
    home = home_of(tmp_path, "mac2", mesh_enabled=True, mesh_name=name)
    async with founded(tmp_path, mesh_name=name) as one:
        await one.control.close_window()
        async with running(home) as two:
            await until(lambda: one.control._trust.checks() and two.control._trust.checks())
            found = next(n for n in (await status(one))["nodes"] if n["name"] == "mac2")
            assert found["state"] == "waiting"
            assert "`mlx-stack mesh accept mac2`" in found["reason"]
            there = await status(two)
            assert states(there)["mac1"] == "waiting"
            number = numbers(await status(one))["mac2"]
            assert numbers(there)["mac2"] == number
            with pytest.raises(MeshError, match="not 000000"):
                await one.control.accept("mac2", "000000" if number != "000000" else "000001")
            assert (await one.control.accept("mac2", number))["done"] == "let in"
            await together(one, two)
        (home.mesh / "members.json").unlink()
        async with running(home) as two:
            await together(one, two)
        assert (await status(one))["trust"]["window_s"] == 0, "nobody had to open anything"


async def test_an_invite_leads_into_a_closed_mesh_of_another_name_and_works_once(tmp_path: Path) -> None:
    home = home_of(tmp_path, "mac2")
    async with founded(tmp_path) as one, running(home) as two:
        await one.control.close_window()
        token = (await one.control.invite())["token"]
        await two.control.enable(None, None)
        address = f"127.0.0.1:{one.config.port}"
        found = await two.control.add_peer(address, token)
        assert (found["name"], found["state"]) == ("mac1", "ok")
        await together(one, two)
        assert two.config.mesh_name == one.config.mesh_name
        again = await Newcomer(tmp_path).ask(one, token=Token.parse(token))
        assert (again.outcome, again.code) == ("refused", "bad_invite")
        assert one.doors.door.kept, "a person has decided: this mesh is not left for another"
        assert not (await status(one))["notes"], "nobody has to confirm what a person has begun"


async def test_enable_with_an_invite_finds_who_made_it(tmp_path: Path) -> None:
    name = mesh_name()
    async with founded(tmp_path, mesh_name=name) as one:
        await one.control.close_window()
        token = (await one.control.invite())["token"]
        async with running(home_of(tmp_path, "mac2", mesh_name=name)) as two:
            await two.control.enable(None, None, token)
            await together(one, two)


async def test_five_wrong_tries_end_an_invite_and_people_are_told(tmp_path: Path) -> None:
    async with founded(tmp_path) as one:
        await one.control.close_window()
        token = Token.parse((await one.control.invite())["token"])
        wrong = Token(token.hint, bytes(16))
        for _ in range(5):
            assert (await Newcomer(tmp_path / str(_)).ask(one, token=wrong)).code == "bad_invite"
        assert (await Newcomer(tmp_path, "late").ask(one, token=token)).code == "bad_invite"
        assert any("every open invite has ended: 5 wrong tries" in note for note in (await status(one))["notes"])


async def test_who_sits_in_between_inside_the_window_makes_two_different_numbers(tmp_path: Path) -> None:
    async with founded(tmp_path) as one:
        between = InBetween(tmp_path, one.config.peer_port, stranger(), mesh=one.config.mesh_name)
        async with between.listening() as port:
            came = await Newcomer(tmp_path).ask(one, port=port)
        assert came.outcome == "joined", "so near the truth that only people can tell"
        assert came.way is not None
        assert came.way.mesh != one.trust.mesh_id
        shown = one.doors.door.newcomers()
        assert [x.name for x in shown] == ["new"], "the attacker, with the newcomer's name"
        assert shown[0].check != came.check


async def test_who_sits_in_between_and_shows_the_members_certificate_is_found_out(tmp_path: Path) -> None:
    async with founded(tmp_path) as one:
        between = InBetween(tmp_path, one.config.peer_port, stranger(), mesh=one.config.mesh_name, lies=True)
        async with between.listening() as port:
            came = await Newcomer(tmp_path).ask(one, port=port)
        assert (came.outcome, came.code) == ("refused", "in_between")
        assert one.doors.door.newcomers() == []


async def test_who_sits_in_between_at_an_invited_join_hears_nothing_at_all(tmp_path: Path) -> None:
    async with founded(tmp_path) as one:
        token = Token.parse((await one.control.invite())["token"])
        between = InBetween(tmp_path, one.config.peer_port, stranger(), mesh=one.config.mesh_name)
        newcomer = Newcomer(tmp_path)
        async with between.listening() as port:
            came = await newcomer.ask(one, port=port, token=token)
        assert (came.outcome, came.code) == ("refused", "not_the_inviter")
        assert "somebody is in between" in came.why
        assert between.questions == []
        assert (await newcomer.ask(one, token=token)).outcome == "joined", "the invite is as good as before"


async def test_a_call_that_is_passed_on_is_not_signed_by_who_passes_it_on(tmp_path: Path) -> None:
    """The signature covers both certificates: of a newcomer that talks to A, B can make no use."""
    async with founded(tmp_path) as one:
        newcomer, settings = Newcomer(tmp_path), JoinSettings()
        line = Line("127.0.0.1", one.config.peer_port, stranger(), settings)
        nonce = bytes(32)
        from mesh.checks import Seen, commitment  # noqa: PLC0415 - only here

        cert = newcomer.identity.cert
        begin = Begin(
            id=newcomer.identity.id, name="x", mesh=one.config.mesh_name, cert=cert, commit=commitment(nonce, cert)
        )
        offer = await line.ask(begin)
        assert isinstance(offer, Offer)
        for seen, revealed, code in (
            (Seen(cert, cert, nonce, offer.nonce), nonce, "bad_signature"),
            (Seen(cert, offer.cert, nonce, offer.nonce), bytes(31) + b"x", "no_session"),
        ):
            signature = newcomer.identity.sign(seen.signed())
            said = await line.ask(Reveal(session=offer.session, nonce=revealed, signature=signature))
            assert isinstance(said, Result)
            assert said.code == code
        offer = await line.ask(begin)
        assert isinstance(offer, Offer)
        seen = Seen(cert, offer.cert, bytes(31) + b"x", offer.nonce)
        said = await line.ask(
            Reveal(session=offer.session, nonce=bytes(31) + b"x", signature=newcomer.identity.sign(seen.signed()))
        )
        assert isinstance(said, Result)
        assert said.code == "broken_commitment"
        assert NodeId(newcomer.identity.id) not in one.trust.members


async def test_whom_a_removed_member_has_signed_is_nobody(tmp_path: Path) -> None:
    name = mesh_name()
    async with founded(tmp_path, mesh_name=name) as one:
        async with running(home_of(tmp_path, "mac2", mesh_enabled=True, mesh_name=name)) as two:
            await together(one, two)
            newcomer = Newcomer(tmp_path)
            records = two.trust.records()
            await one.control.remove_node("mac2")
            await until(lambda: not two.trust.belongs)
            # It takes the removal out of its memory, and signs somebody as if nothing had been.
            two.trust.forget()
            two.trust.adopt(records)
            two.trust.admit(newcomer.identity.id, "new", newcomer.identity.cert)
            one.trust.merge(two.trust.records())
            assert set(one.trust.members) == {one.id}
            await one.control.close_window()
            came = await newcomer.ask(one)
            assert came.outcome == "waiting"
            assert states(await status(one)).get("mac2") in (None, "waiting")


async def test_a_second_mesh_of_the_same_name_is_shown_with_what_to_do(tmp_path: Path) -> None:
    name = mesh_name()
    async with founded(tmp_path, mesh_name=name) as one:
        one.doors.door.kept = True
        await one.control.close_window()
        home = home_of(tmp_path, "mac2", mesh_enabled=True, mesh_name=name)
        async with running(home) as two:
            await until(one.control._trust.checks)
            await two.control.open_window(60.0)  # a person wants it to be one of its own
            await two.control.close_window()

            def apart() -> bool:
                found = one.membership.view().node(two.id)
                return found is not None and "belongs to another mesh called" in found.reason

            await until(apart)
            found = await status(two)
            assert states(found)["mac1"] == "waiting"
            assert any("another mesh here is called" in note for note in found["notes"])
            two.doors.door.kept = True
            with pytest.raises(MeshError, match=r"neither lets the other in.*mesh invite"):
                await two.control.add_peer(f"127.0.0.1:{one.config.port}")
            two.doors.door.kept = False  # alone, and nobody was let in there: it asks where a person says
            added = await two.control.add_peer(f"127.0.0.1:{one.config.port}")
            assert added["state"] == "waiting"
            assert "`mlx-stack mesh accept mac2`" in added["reason"]


async def test_what_is_asked_of_strangers_is_bounded(tmp_path: Path) -> None:
    settings = JoinSettings()
    async with founded(tmp_path) as one:
        begins = [
            Begin(id=n.identity.id, name="x", mesh=one.config.mesh_name, cert=n.identity.cert, commit=bytes(32))
            for n in (Newcomer(tmp_path, str(i)) for i in range(settings.calls_per_address + 1))
        ]
        lines = [Line("127.0.0.1", one.config.peer_port, stranger(), settings) for _ in begins]
        answers = [await line.ask(begin) for line, begin in zip(lines, begins, strict=True)]
        assert [type(a) for a in answers] == [Offer] * settings.calls_per_address + [Result]
        assert answers[-1] == Result(outcome="busy", code="crowded", why="too many ask at the same time")
        for head, body in (
            (f"Content-Length: {settings.body_bytes + 1}", b""),
            ("Content-Length: 3", b"\xc1\xc1\xc1"),
            ("Transfer-Encoding: chunked", b"1\r\nx\r\n0\r\n\r\n"),
        ):
            assert await raw(one.config.peer_port, head, body) in (400, 413)


async def raw(port: int, head: str, body: bytes) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=stranger())
    writer.write(f"POST {JOIN} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode() + body)
    line = await asyncio.wait_for(reader.readline(), 20)
    writer.transport.abort()
    return int(line.split()[1])


async def test_another_mesh_name_is_told_and_another_key_with_a_members_id_is_refused(tmp_path: Path) -> None:
    async with founded(tmp_path) as one:
        other = await Newcomer(tmp_path).ask(one, name="another")
        assert (other.outcome, other.code) == ("refused", "other_mesh")
        thief = Newcomer(tmp_path, "thief")
        home = tmp_path / "newcomer-thief"
        (home / "node" / "id").write_text(one.id + "\n")
        thief.identity = identities.load(home, pytest.fail)
        taken = await thief.ask(one)
        assert (taken.outcome, taken.code) == ("refused", "id_taken")
        assert "mlx-stack mesh remove" in taken.why


async def test_the_window_and_what_is_confirmed_outlive_a_restart(tmp_path: Path) -> None:
    home: Home = home_of(tmp_path, "mac1", mesh_enabled=True)
    async with running(home) as one:
        await until(lambda: one.overlay is not None and one.overlay.joins.settled)
        assert (await Newcomer(tmp_path).ask(one)).outcome == "joined"
        number = one.doors.door.newcomers()[0].check
    async with running(home) as one:
        assert [x.check for x in one.doors.door.newcomers()] == [number]
        await one.control.accept("new")
        await one.control.close_window()
    assert (home.mesh / "door.json").stat().st_mode & 0o077 == 0
    async with running(home) as one:
        assert one.doors.door.newcomers() == []
        assert one.doors.door.kept
        assert (await Newcomer(tmp_path, "late").ask(one)).outcome == "waiting"
        edit(home, mesh_enabled=True)
