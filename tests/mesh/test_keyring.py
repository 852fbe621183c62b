"""Keys of clients on real daemons: kept, told to other nodes, and in force at :4000."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mesh.daemon import Daemon
from mesh.errors import MeshError
from mesh.home import Home
from mesh.metrics import Metrics
from mesh.wire import KeysFrame
from tests.mesh.daemons import edit, home_of, mesh_name, running
from tests.mesh.test_drilling import pair
from tests.mesh.waiting import until

AWAY = {"x-forwarded-for": "192.168.1.9"}  # what counts as from another machine, although the test is on this one
FIRST: Any = {"first": True}


async def asks(daemon: Daemon, key: str = "", path: str = "/v1/models", **fields: str) -> int:
    said = AWAY | ({"authorization": f"Bearer {key}"} if key else {}) | fields
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{daemon.config.port}{path}", headers=said) as answer:
            if answer.status in (401, 403):
                assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}
            return answer.status


async def test_from_the_first_key_on_others_need_one(daemon: Daemon, daemon_home: Home) -> None:
    assert (await asks(daemon), await asks(daemon, "sk-any")) == (200, 200)
    with pytest.raises(MeshError, match="first key"):
        await daemon.control.create_key("phone", False)
    made = await daemon.control.create_key("phone", True)
    assert (await asks(daemon), await asks(daemon, "sk-any"), await asks(daemon, made["key"])) == (401, 401, 200)
    assert await daemon.control.keys() == {
        "needed": True,
        "keys": [{"id": made["id"], "name": "phone", "created": made["created"]}],
        "revoked": 0,
    }
    kept = daemon_home.mesh / "keys.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert made["key"] not in kept.read_text()
    assert made["key"][20:] not in kept.read_text()
    assert (await daemon.control.revoke_key("phone"))["left"] == 0
    assert (await asks(daemon), await asks(daemon, made["key"])) == (401, 401)
    assert b'mlx_mesh_turned_away_total{reason="key"} 4.0' in daemon.metrics.text()
    await daemon.control.keys_off()
    assert await asks(daemon) == 200


@pytest.mark.parametrize("name", ["", "a/b", "x" * 64, "two\nlines"])
async def test_a_name_is_one_that_people_can_read(daemon: Daemon, name: str) -> None:
    with pytest.raises(MeshError, match="the name of a key must be"):
        await daemon.control.create_key(name, True)
    assert not daemon.keys.needed


async def test_keys_hold_over_a_restart(tmp_path: Path, bare_environment: None) -> None:
    home = home_of(tmp_path, "solo")
    async with running(home) as before:
        good = (await before.control.create_key("phone", True))["key"]
        gone = (await before.control.create_key("tablet", False))["key"]
        await before.control.revoke_key("tablet")
    async with running(home) as after:
        assert [await asks(after, key) for key in (good, gone, "")] == [200, 401, 401]


async def test_a_damaged_file_lets_nobody_in_and_is_set_aside(tmp_path: Path, bare_environment: None) -> None:
    """Nor the second start, when there is nothing damaged to see any more."""
    home = home_of(tmp_path, "solo")
    kept = home.mesh / "keys.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text('{"version": 1, "keys": [{"id": ')
    for _ in range(2):
        async with running(home) as solo:
            assert (await asks(solo), await asks(solo, path="/health")) == (401, 200)
            made = await solo.control.create_key("phone", False)
            assert await asks(solo, made["key"]) == 200
            await solo.control.revoke_key("phone")
    assert len(list(kept.parent.glob("keys.json.broken-*"))) == 1
    async with running(home) as solo:
        await solo.control.keys_off()
        assert await asks(solo) == 200


async def test_two_nodes_share_keys_and_revocations(tmp_path: Path, bare_environment: None) -> None:
    async with pair(tmp_path) as (one, two):
        key = (await one.control.create_key("phone", True))["key"]
        await until(lambda: two.keys.needed)
        assert [await asks(d, k) for d in (one, two) for k in (key, "")] == [200, 401] * 2
        began = time.monotonic()
        await two.control.revoke_key("phone")
        await until(lambda: one.keys.name_of(key) is None)
        print(f"revoked on the other node after {1e3 * (time.monotonic() - began):.1f} ms")
        assert [await asks(d, key) for d in (one, two)] == [401, 401]
        await one.control.keys_off()
        await until(lambda: not two.keys.needed)
        assert await asks(two) == 200


async def test_a_node_that_was_away_learns_what_was_revoked_when_it_is_back(
    tmp_path: Path, bare_environment: None
) -> None:
    mesh = {"mesh_enabled": True, "mesh_name": mesh_name()}
    homes = [home_of(tmp_path, name, **mesh) for name in ("one", "two")]
    async with running(homes[0]) as one:
        async with running(homes[1]) as two:
            key = (await one.control.create_key("phone", True))["key"]
            await until(lambda: two.keys.name_of(key) == "phone")
        await one.control.revoke_key("phone")
        made = (await one.control.create_key("tablet", False))["key"]
        async with running(homes[1]) as two:
            await until(lambda: two.keys.name_of(made) == "tablet")
            assert two.keys.name_of(key) is None
    async with running(homes[0]) as one:  # what came by link is on the disk, too
        assert (one.keys.name_of(key), one.keys.name_of(made)) == (None, "tablet")


async def test_a_node_that_lost_its_keys_gets_them_from_another(tmp_path: Path, bare_environment: None) -> None:
    mesh = {"mesh_enabled": True, "mesh_name": mesh_name()}
    home = home_of(tmp_path, "two", **mesh)
    (home.mesh / "keys.json").parent.mkdir(exist_ok=True)
    (home.mesh / "keys.json").write_text("\0")
    async with running(home_of(tmp_path, "one", **mesh)) as one:
        key = (await one.control.create_key("phone", True))["key"]
        async with running(home) as two:
            await until(lambda: two.keys.name_of(key) == "phone")
            assert two.keys.needed
            await one.control.keys_off()
            await until(lambda: not two.keys.needed)
            assert await asks(two) == 200


async def test_a_node_that_switched_its_own_keys_off_opens_no_mesh_that_it_joins(
    tmp_path: Path, bare_environment: None
) -> None:
    name = mesh_name()
    home = home_of(tmp_path, "two", mesh_name=name)
    async with running(home) as alone:
        await alone.control.create_key("old", True)
        await alone.control.keys_off()
    edit(home, mesh_enabled=True)
    async with running(home_of(tmp_path, "one", mesh_enabled=True, mesh_name=name)) as one:
        key = (await one.control.create_key("phone", True))["key"]
        async with running(home) as two:
            await until(lambda: two.keys.name_of(key) == "phone")
            assert [await asks(d, k) for d in (one, two) for k in (key, "")] == [200, 401] * 2


async def test_what_a_frame_says_twice_is_told_to_nobody_again(daemon: Daemon) -> None:
    told: list[KeysFrame | str] = []
    daemon.keys._spread = told.append
    daemon.keys.watch(lambda: told.append("changed"))
    await daemon.control.create_key("phone", True)
    frame = daemon.keys.frame
    assert frame is not None
    assert told == [frame, "changed"]
    daemon.keys.take(frame)
    assert told == [frame, "changed"]


async def test_hosts_and_pages_are_those_of_the_configuration_also_when_it_changes(
    daemon: Daemon, daemon_home: Home
) -> None:
    port = daemon.config.port
    mine = daemon.config.mesh_name.lower()
    for host in ("solo.local", f"solo:{port}", "localhost", f"127.0.0.1:{port}", f"{mine}.local:{port}"):
        assert await asks(daemon, host=host) == 200
    assert await asks(daemon, host="llm.example.com") == 403
    assert await asks(daemon, origin="https://chat.example.com") == 403
    edit(daemon_home, allowed_hosts=["llm.example.com"], cors_origins=["https://*.example.com"], node_name="mono")
    await daemon.reload()
    assert await asks(daemon, host="llm.example.com", origin="https://chat.example.com") == 200
    assert [await asks(daemon, host=host) for host in ("mono.lan", "solo.lan")] == [200, 403]


async def test_who_is_turned_away_is_in_the_log_once_and_without_the_key(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    made = await daemon.control.create_key("phone", True)
    for _ in range(5):
        await asks(daemon, made["key"] + "x")
        await asks(daemon, host="evil.example")
    said = [r for r in caplog.records if getattr(r, "event", "") == "turned_away"]
    assert len(said) == 2
    assert "allowed-hosts" in said[1].getMessage()
    written = json.dumps([r.getMessage() + str(getattr(r, "fields", "")) for r in caplog.records])
    assert made["key"] not in written
    assert made["key"][20:] not in written


async def test_the_line_of_a_request_has_the_name_of_its_key(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    made = await daemon.control.create_key("phone", True)
    caplog.set_level("INFO")
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{daemon.config.port}/v1/chat/completions"
        for fields in ({"authorization": f"Bearer {made['key']}"}, {}):
            async with session.post(url, json={"model": "none", "messages": []}, headers=fields) as answer:
                assert answer.status == 400
    lines: list[Any] = [r for r in caplog.records if getattr(r, "event", "") == "request"]
    assert [line.msg.fields().get("key", "none") for line in lines] == ["phone", "none"]
    route = (await daemon.control.routes(5))["routes"][-1]
    assert route["key"] == "phone"
    assert made["key"][20:] not in json.dumps(route) + "".join(str(r.__dict__) for r in caplog.records)


def test_what_is_turned_away_is_counted_by_reason() -> None:
    metrics = Metrics()
    for reason in ("key", "origin", "key"):
        metrics.turned_away(reason)
    assert b'mlx_mesh_turned_away_total{reason="key"} 2.0' in metrics.text()
