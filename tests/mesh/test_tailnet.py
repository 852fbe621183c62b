"""mesh/tailnet.py: Tailscale's LocalAPI behind a real socket, its port on a Mac, its program; and whom a name means."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import os
import platform
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tslocal._safesocket

from mesh.errors import MeshError
from mesh.settings import TailscaleSettings
from mesh.tailnet import Machine, Tailnet, Tailscale

QUICK = TailscaleSettings(answer_s=2.0, program_s=2.0, fresh_s=0.0)
NO_SOCKET, TOKEN = "/nowhere/tailscaled.sock", "open sesame"


def peer(name: str, *ips: str, **more: Any) -> dict[str, Any]:
    """A PeerStatus with the fields of the LocalAPI that we know of."""
    return {
        "ID": f"n{name}", "PublicKey": f"nodekey:{name}", "HostName": name, "DNSName": f"{name}.tail1.ts.net.",
        "OS": "macOS", "UserID": 7, "TailscaleIPs": list(ips), "Tags": None, "Online": True, "CurAddr": "",
        "Relay": "fra", "LastHandshake": "2026-11-01T06:00:00Z", "Active": False, "Later": {"unknown": 1}, **more,
    }  # fmt: skip


STATUS: dict[str, Any] = {
    "Version": "1.90.0-t0-g0", "TUN": True, "BackendState": "Running", "Health": None, "AuthURL": "",
    "Self": peer("laptop", "100.64.0.1", "fd7a:115c:a1e0::1"),
    "CurrentTailnet": {"Name": "me@example.com", "MagicDNSSuffix": "tail1.ts.net", "MagicDNSEnabled": True},
    "Peer": {
        "nodekey:1": peer("mac-mini-3", "100.64.0.3", "fd7a:115c:a1e0::3"),
        "nodekey:2": peer("studio", "100.64.0.4", HostName="Studio of Ann", Online=False, LastSeen="2026-11-01"),
        "nodekey:3": peer("lent", "100.64.0.5", DNSName="lent.tail9.ts.net.", Expired=True),
        "nodekey:4": peer("bare", TailscaleIPs=None),
    },
    "User": {"7": {"ID": 7, "LoginName": "me@example.com", "DisplayName": "Me"}},
}  # fmt: skip


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False


class _Port(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False


@contextmanager
def serving(
    at: str | tuple[str, int], answer: Any, *, status: int = 200, token: str = "", who: dict[str, Any] | None = None
) -> Iterator[Any]:
    """A LocalAPI: checks what tailscaled checks (host, no browser's headers, the token) and gives `answer`; None: not
    at all. `who` is at which address."""
    silent = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code = status
            if self.headers["Host"] != "local-tailscaled.sock" or {"Origin", "Referer"} & set(self.headers):
                code = 403
            if token and self.headers["Authorization"] != "Basic " + base64.b64encode(f":{token}".encode()).decode():
                code = 401
            said, asked = answer, self.path.removeprefix("/localapi/v0/whois?addr=")
            if asked != self.path:
                said = (who or {}).get(asked)
                code = 404 if said is None else code
            elif self.path != "/localapi/v0/status":
                code = 404
            if answer is None:
                silent.wait(20)
                return
            body = said if isinstance(said, bytes) else json.dumps(said).encode()
            body = body if code == 200 else b'{"error": "no"}'
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return ""

    server = _Server(at, Handler) if isinstance(at, str) else _Port(at, Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address
    finally:
        silent.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def socket_path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield f"{folder}/tailscaled.sock"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """program(prints, says, code): a `tailscale` on PATH that does this."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(prints: object = "", says: str = "", code: int = 0, *, name: str = "tailscale", sleep: str = "") -> None:
        text = prints if isinstance(prints, str) else json.dumps(prints)
        (folder / "printed").write_text(text)
        script = '#!/bin/sh\n[ "$*" = "status --json" ] || exit 9\n[ "$TAILSCALE_BE_CLI" = 1 ] || exit 8\n'
        if name == "lsof":
            script = "#!/bin/sh\n"
        script += f"{sleep}\ncat {folder}/printed\necho '{says}' >&2\nexit {code}\n"
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)

    return make


def tailscale(socket: str = NO_SOCKET, **more: Any) -> Tailscale:
    return Tailscale(QUICK, socket=socket, programs=("tailscale",), **more)


async def failure(asked: Tailscale) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await asked.tailnet()
    return caught.value


# Asking


async def test_the_local_api_over_a_unix_socket(socket_path: str) -> None:
    with serving(socket_path, STATUS):
        found = await tailscale(socket_path).tailnet()
    assert found.suffix == "tail1.ts.net"
    assert [m.dns_name for m in found.machines] == [
        "bare.tail1.ts.net", "laptop.tail1.ts.net", "lent.tail9.ts.net", "mac-mini-3.tail1.ts.net",
        "studio.tail1.ts.net",
    ]  # fmt: skip
    mini = found.find("mac-mini-3")
    assert mini == Machine("mac-mini-3.tail1.ts.net", "mac-mini-3", ("100.64.0.3", "fd7a:115c:a1e0::3"), online=True)
    assert (found.find("laptop").own, found.find("studio").online, found.find("lent").expired) == (True, False, True)
    assert found.find("bare").addresses == ()


async def test_one_answer_is_used_for_a_moment(socket_path: str) -> None:
    asked = Tailscale(TailscaleSettings(fresh_s=60.0), socket=socket_path, programs=())
    with serving(socket_path, STATUS):
        await asked.tailnet()
    assert (await asked.tailnet()).find("studio").label == "studio"
    never = Tailscale(TailscaleSettings(fresh_s=60.0), socket=socket_path, programs=())
    assert (await failure(never)).code == (await failure(never)).code


async def test_a_null_peer_list_is_an_empty_tailnet(socket_path: str) -> None:
    with serving(socket_path, {**STATUS, "Peer": None, "CurrentTailnet": None}):
        found = await tailscale(socket_path).tailnet()
    assert ([m.label for m in found.machines], found.suffix) == (["laptop"], "")


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[..., None]) -> Path:
    """This is a Mac now; returns its /Library/Tailscale. `lsof` finds nothing."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    library = tmp_path / "Tailscale"
    library.mkdir()
    read = functools.partial(tslocal._safesocket._read_macsys_same_user_proof, shared_dir=str(library))
    monkeypatch.setattr(tslocal._safesocket, "_read_macsys_same_user_proof", read)
    program(name="lsof")
    return library


def proof(library: Path, port: int, token: str = TOKEN) -> None:
    (library / "ipnport").symlink_to(str(port))
    (library / f"sameuserproof-{port}").write_text(token + "\n")


async def test_the_standalone_app_of_a_mac_by_its_port_and_proof(mac: Path) -> None:
    with serving(("127.0.0.1", 0), STATUS, token=TOKEN) as (_, port):
        proof(mac, port)
        assert (await tailscale().tailnet()).find("studio").addresses == ("100.64.0.4",)


async def test_the_app_store_app_of_a_mac_by_the_file_it_holds_open(mac: Path, program: Callable[..., None]) -> None:
    with serving(("127.0.0.1", 0), STATUS, token=TOKEN) as (_, port):
        held = f"/Users/ann/Library/Group Containers/X.tailscale.ipn.macos/sameuserproof-{port}-{TOKEN}"
        program(f"p77\ncIPNExtension\nf12\nn{held}\n", name="lsof")
        assert (await tailscale().tailnet()).find("mac-mini-3").online


async def test_a_macs_stale_proof_is_named_and_the_socket_and_the_program_are_tried(
    mac: Path, socket_path: str, program: Callable[..., None]
) -> None:
    with serving(("127.0.0.1", 0), STATUS) as (_, port):
        proof(mac, port)
    error = await failure(tailscale())
    assert error.code == "tailscale_stale"
    assert "nobody answers there" in error.message
    with serving(socket_path, STATUS):  # the open source daemon beside the remains of the app
        assert (await tailscale(socket_path).tailnet()).machines
    program(STATUS)
    assert (await tailscale().tailnet()).machines


async def test_a_wrong_token_is_denied(mac: Path) -> None:
    with serving(("127.0.0.1", 0), STATUS, token="another") as (_, port):
        proof(mac, port)
        assert (await failure(tailscale())).code == "tailscale_denied"


async def test_a_stale_socket_is_named(socket_path: str) -> None:
    with serving(socket_path, STATUS):
        pass
    assert Path(socket_path).exists()
    assert (await failure(tailscale(socket_path))).code == "tailscale_stale"


async def test_the_program_is_the_last_resort(program: Callable[..., None]) -> None:
    program(STATUS)
    assert (await tailscale().tailnet()).find("mac-mini-3").online


@pytest.mark.parametrize(
    ("state", "code", "said"),
    [
        ("Stopped", "tailscale_stopped", "is stopped here (`tailscale up`"),
        ("NeedsLogin", "tailscale_login", "is not logged in here (`tailscale up`"),
        ("NeedsMachineAuth", "tailscale_login", "admin console"),
        ("Starting", "tailscale_stopped", "state Starting"),
    ],
)
async def test_every_state_in_words(socket_path: str, state: str, code: str, said: str) -> None:
    with serving(socket_path, {**STATUS, "BackendState": state, "Self": {}, "Peer": None}):
        error = await failure(tailscale(socket_path))
    assert (error.code, said in str(error)) == (code, True)


async def test_neither_socket_nor_program() -> None:
    error = await failure(Tailscale(QUICK, socket=NO_SOCKET, programs=("no-such-program",)))
    assert (error.code, error.message) == ("tailscale_missing", "Tailscale is not installed here, or does not run")


async def test_a_program_that_cannot_reach_its_daemon(program: Callable[..., None]) -> None:
    program(says="failed to connect to local tailscaled; is it running?", code=1)
    error = await failure(tailscale())
    assert error.code == "tailscale_stopped"
    assert "failed to connect to local tailscaled" in error.message


@pytest.mark.parametrize("answer", [b"", b"<html>", b"[]", b'{"Version": "1"}', b'{"BackendState": 3}', b"\xff"])
async def test_an_answer_that_is_not_understood(socket_path: str, answer: bytes) -> None:
    with serving(socket_path, answer):
        error = await failure(Tailscale(QUICK, socket=socket_path, programs=()))
    assert error.code in ("tailscale_garbled", "tailscale_stopped")


async def test_a_refusal_and_a_server_error_are_told(socket_path: str) -> None:
    with serving(socket_path, STATUS, status=403):
        assert (await failure(Tailscale(QUICK, socket=socket_path, programs=()))).code == "tailscale_denied"
    Path(socket_path).unlink()
    with serving(socket_path, STATUS, status=500):
        assert (await failure(Tailscale(QUICK, socket=socket_path, programs=()))).code == "tailscale_garbled"


async def test_a_local_api_that_never_answers_holds_one_thread_and_nobody(
    socket_path: str, program: Callable[..., None]
) -> None:
    asked = Tailscale(TailscaleSettings(answer_s=0.2, fresh_s=0.0), socket=socket_path, programs=("tailscale",))
    with serving(socket_path, None):
        for _ in range(3):
            assert (await failure(asked)).code == "tailscale_silent"
        assert [t.name for t in threading.enumerate()].count("tailscale") == 1
        program(STATUS)
        assert (await asked.tailnet()).machines


async def test_a_program_that_never_ends_is_ended(program: Callable[..., None]) -> None:
    program(sleep="exec sleep 60")
    asked = Tailscale(TailscaleSettings(program_s=0.3), socket=NO_SOCKET, programs=("tailscale",))
    assert (await failure(asked)).code == "tailscale_silent"


# Whom a name means


NET = Tailnet(
    (
        Machine("mini.tail1.ts.net", "Mini", ("100.64.0.2", "fd7a:115c:a1e0::2")),
        Machine("mini.tail9.ts.net", "Mini", ("100.64.0.9",)),
        Machine("studio.tail1.ts.net", "Studio of Ann", ("100.64.0.4",)),
        Machine("studio-1.tail1.ts.net", "Studio of Ann", ("100.64.0.5",)),
        Machine("lent.tail9.ts.net", "lent", ("100.64.0.6",)),
    ),
    "tail1.ts.net",
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("mini", "100.64.0.2"),  # of two, the one of this tailnet
        ("mini.tailnet", "100.64.0.2"),
        ("Mini.TAILNET.", "100.64.0.2"),
        ("mini.tail1.ts.net", "100.64.0.2"),
        ("mini.tail1.ts.net.", "100.64.0.2"),
        ("mini.tail9.ts.net", "100.64.0.9"),
        ("mini.tail9", "100.64.0.9"),
        ("100.64.0.4", "100.64.0.4"),
        ("fd7a:115c:a1e0::2", "100.64.0.2"),
        ("lent", "100.64.0.6"),  # shared with us from another tailnet
        ("studio", "100.64.0.4"),
    ],
)
def test_every_form_of_a_name(text: str, found: str) -> None:
    assert NET.find(text).addresses[0] == found


def test_names_that_mean_nobody_or_several() -> None:
    with pytest.raises(MeshError, match="your tailnet has no machine 'mimi'"):
        NET.find("mimi")
    with pytest.raises(MeshError, match=r"more than one machine.*studio.tail1.ts.net, studio-1.tail1.ts.net") as caught:
        NET.find("Studio of Ann")
    assert caught.value.code == "ambiguous_machine"


def test_the_shortest_name_that_finds_it() -> None:
    assert [NET.name_of(m) for m in NET.machines] == ["mini", "mini.tail9.ts.net", "studio", "studio-1", "lent"]


async def test_a_program_that_cannot_be_started_is_none(tmp_path: Path) -> None:
    broken = tmp_path / "tailscale"
    broken.write_bytes(b"\x00no program")
    broken.chmod(0o755)
    error = await failure(Tailscale(QUICK, socket=NO_SOCKET, programs=(str(broken),)))
    assert error.code == "tailscale_missing"


def whois(user: int, *, tags: list[str] | None = None) -> dict[str, Any]:
    """A WhoIsResponse with the fields of the LocalAPI that we know of."""
    return {
        "Node": {
            "ID": 5, "StableID": "n5", "Name": "mac-mini-3.tail1.ts.net.", "User": user, "Key": "nodekey:1",
            "Addresses": ["100.64.0.3/32"], "AllowedIPs": ["100.64.0.3/32"], "Tags": tags, "ComputedName": "mac-mini-3",
            "Hostinfo": {"OS": "macOS", "Hostname": "mac-mini-3"}, "MachineAuthorized": True,
        },
        "UserProfile": {"ID": user, "LoginName": f"{user}@example.com", "DisplayName": "Somebody"},
        "CapMap": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("who", "own"),
    [
        (whois(7), True),
        (whois(8), False),  # shared into this tailnet, or another user's
        (whois(7, tags=["tag:server"]), False),  # belongs to no user
        (whois(0), False),
        (None, False),  # nobody of the tailnet: an address that was made up
    ],
)
async def test_whose_a_machine_of_the_tailnet_is(socket_path: str, who: dict[str, Any] | None, own: bool) -> None:
    with serving(socket_path, STATUS, who={} if who is None else {"100.64.0.3": who}):
        assert await Tailscale(QUICK, socket=socket_path).same_user("100.64.0.3") is own


async def test_an_address_of_no_tailnet_is_nobodys_own_and_tailscale_is_not_asked() -> None:
    assert not await Tailscale(QUICK, socket=NO_SOCKET, programs=()).same_user("10.0.0.3")


async def test_without_tailscale_nobody_is_taken_for_ones_own(socket_path: str) -> None:
    with pytest.raises(MeshError) as caught:
        await Tailscale(QUICK, socket=NO_SOCKET, programs=()).same_user("100.64.0.3")
    assert caught.value.code == "tailscale_missing"
    tagged = {**STATUS, "Self": {**STATUS["Self"], "Tags": ["tag:server"]}}
    with serving(socket_path, tagged, who={"100.64.0.3": whois(7)}):
        assert not await Tailscale(QUICK, socket=socket_path).same_user("100.64.0.3"), "this machine has no user either"
