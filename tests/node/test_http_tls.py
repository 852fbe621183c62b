"""A model server behind https: checked, and its connection kept like any other."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from node.io.dial import Origin
from node.io.http_client import HttpClient
from node.io.http_wire import NotConnectedError
from tests.node.speaking import ASK, Speaker


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    argv += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(cert),
    ]
    subprocess.run(argv, check=True, capture_output=True)
    return cert, key


async def test_https_is_checked_and_kept(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(cert, key)
    speaker = Speaker()
    server = await asyncio.start_server(speaker, "127.0.0.1", 0, ssl=theirs)
    origin = Origin("localhost", server.sockets[0].getsockname()[1], tls=True)
    try:
        async with HttpClient(tls=lambda: ssl.create_default_context(cafile=str(cert))) as client:
            for _ in range(2):
                answer = await client.ask([origin], ASK, connect_s=30.0, silence_s=30.0)
                assert await answer.whole(100) == b"ok"
            assert speaker.connections == client.idle == 1
        async with HttpClient() as stranger:
            with pytest.raises(NotConnectedError, match="localhost"):
                await stranger.ask([origin], ASK, connect_s=30.0, silence_s=30.0)
            assert stranger.connections == 0
            assert stranger._open == {}
    finally:
        server.close()
