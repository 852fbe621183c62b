"""TLS on :4000: https for whoever asks, new certificates without a restart, and errors that name setting and file."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from mesh import config as configuration
from mesh.chores import Stamps
from mesh.config import ConfigError
from mesh.daemon import Daemon
from mesh.edge_tls import EdgeTls
from mesh.home import Home
from mesh.process import run
from tests.mesh.certificates import make
from tests.mesh.daemons import edit, home_of, running
from tests.mesh.waiting import until


def trusting(cert: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(cert))


async def get(daemon: Daemon, context: ssl.SSLContext, path: str = "/health", method: str = "GET") -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session:
        url = f"https://localhost:{daemon.config.port}{path}"
        async with session.request(method, url, ssl=context, data=b"{}") as answer:
            return answer.status, await answer.read()


@asynccontextmanager
async def secured(folder: Path, **settings: object) -> AsyncIterator[tuple[Daemon, Path, Path]]:
    home = home_of(folder, "solo", tls_cert="tls/edge.pem", tls_key="tls/edge.key", **settings)
    cert, key = make(home.root / "tls")
    async with running(home) as daemon:
        yield daemon, cert, key


async def test_both_halves_of_the_port_speak_https_and_status_says_so(tmp_path: Path, bare_environment: None) -> None:
    async with secured(tmp_path) as (daemon, cert, _):
        trusted = trusting(cert)
        assert await get(daemon, trusted) == (200, b'{"status":"ok"}')  # aiohttp's
        status, body = await get(daemon, trusted, "/v1/chat/completions", "POST")  # the front's
        assert (status, b"invalid_request" in body) == (400, True)
        assert (await daemon.control.status())["url"] == f"https://localhost:{daemon.config.port}/v1"
        assert daemon.report().tls
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await get(daemon, ssl.create_default_context())
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://localhost:{daemon.config.port}/health")


async def test_the_url_of_the_mesh_says_https_and_mesh_add_finds_it(tmp_path: Path, bare_environment: None) -> None:
    mesh = {"mesh_enabled": True, "mesh_name": "secured"}
    async with secured(tmp_path, **mesh) as (daemon, _, _):
        await until(lambda: daemon.membership.view().coordinator == daemon.id)
        await until(lambda: daemon.membership.view().url.startswith("https://"))
        async with running(home_of(tmp_path, "other", **mesh)) as other:
            assert other.overlay is not None
            found = await other.overlay.lookup.node(f"127.0.0.1:{daemon.config.port}")
            assert found.id == daemon.id


async def test_a_renewed_certificate_is_taken_over_and_half_of_one_is_not(
    tmp_path: Path, bare_environment: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    new_cert, new_key = make(tmp_path / "new")
    async with secured(tmp_path) as (daemon, cert, key):
        before = trusting(cert)
        shutil.copy(new_cert, cert)
        await until(lambda: "is not renewed" in caplog.text)
        assert "tls-key" in caplog.text
        assert (await get(daemon, before))[0] == 200, "what serves goes on"
        shutil.copy(new_key, key)
        await until(lambda: "was renewed from" in caplog.text)
        assert (await get(daemon, trusting(new_cert)))[0] == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await get(daemon, before)


async def test_who_never_ends_its_handshake_is_cut_off_and_others_are_served(
    tmp_path: Path, bare_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with secured(tmp_path) as (daemon, cert, _):
        server = daemon._servers["edge"]
        assert server._settings.silent_s <= 30
        mute = [await asyncio.open_connection("127.0.0.1", daemon.config.port) for _ in range(20)]
        assert (await get(daemon, trusting(cert)))[0] == 200
        async with asyncio.timeout(60):
            for reader, writer in mute:
                assert await reader.read() == b""
                writer.close()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return make(tmp_path)


def refusal(cert: Path, key: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        EdgeTls(cert, key, lambda _: None)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_every_way_to_be_wrong_names_the_setting_and_the_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = pair
    other_cert, other_key = make(tmp_path / "other")
    _, locked = make(tmp_path / "locked", password="secret")
    text = tmp_path / "text"
    text.write_text("hello")
    cut = tmp_path / "cut.pem"
    cut.write_text(cert.read_text()[:200])
    for found, name, file in (
        (refusal(tmp_path / "none.pem", key), "tls-cert", "none.pem"),
        (refusal(cert, tmp_path / "none.key"), "tls-key", "none.key"),
        (refusal(text, key), "tls-cert", "text"),
        (refusal(cert, text), "tls-key", "text"),
        (refusal(cert, other_key), "tls-key", str(other_key)),
        (refusal(other_cert, key), "tls-key", str(other_cert)),
        (refusal(cert, locked), "tls-key", str(locked)),
        (refusal(cut, key), "tls-cert", str(cut)),
        (refusal(key, cert), "tls-cert", str(key)),
    ):
        assert f"'{name}'" in found
        assert file in found
    assert "password" in refusal(cert, locked)
    assert "secret" not in refusal(cert, locked)


def test_one_without_the_other_is_refused_at_the_start(
    daemon_home: Home, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cert, _ = make(tmp_path)
    edit(daemon_home, tls_cert=str(cert))
    assert run(daemon_home) == 1
    said = capfd.readouterr().err
    assert "'tls-cert' is set and 'tls-key' is not" in said
    assert len(said.splitlines()) == 1


def test_a_key_that_others_can_read_is_told_of(pair: tuple[Path, Path]) -> None:
    cert, key = pair
    told: list[str] = []
    EdgeTls(cert, key, told.append)
    assert told == []
    key.chmod(0o644)
    EdgeTls(cert, key, told.append)
    assert ["chmod 600" in text for text in told] == [True]
    assert Stamps(cert, key).changed() is False


def test_paths_are_below_the_home_unless_they_say_otherwise(daemon_home: Home, tmp_path: Path) -> None:
    cert, key = make(daemon_home.root / "tls")
    edit(daemon_home, tls_cert="tls/edge.pem", tls_key=str(key))
    assert EdgeTls.of(configuration.load(daemon_home), daemon_home, lambda _: None) is not None
    edit(daemon_home, tls_cert="", tls_key=None)
    assert EdgeTls.of(configuration.load(daemon_home), daemon_home, lambda _: None) is None
    assert cert.exists()
