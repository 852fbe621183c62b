"""`mlx-stack keys`: what is printed, asked and refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import Result

from tests.mesh.commands import run

MADE = {"id": "aabbccddeeff", "name": "phone", "created": "2026-11-20T20:00:00.000Z", "key": "sk-mesh-" + "a" * 52}
FIRST = {"error": {"code": "first_key", "message": "this is the first key: others are refused (... --yes ...)"}}


def asked(admin: Any, *words: str, **extra: Any) -> Result:
    return run("keys", *words, **extra)


def test_a_key_alone_is_on_stdout_so_that_a_script_can_take_it(admin: Any) -> None:
    admin.answer("POST /v1/keys", MADE)
    done = asked(admin, "create", "phone", "--yes")
    assert (done.exit_code, done.stdout) == (0, MADE["key"] + "\n")
    assert "not shown again" in done.stderr
    assert admin.asked == [("POST /v1/keys", {"name": "phone", "first": True})]


def test_json_is_the_answer_as_it_is(admin: Any) -> None:
    admin.answer("POST /v1/keys", MADE)
    assert json.loads(asked(admin, "create", "phone", "--json").stdout) == MADE
    assert admin.asked == [("POST /v1/keys", {"name": "phone", "first": False})]


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_the_first_one_is_not_made_unasked_where_nobody_can_answer(admin: Any, words: tuple[str, ...]) -> None:
    admin.answer("POST /v1/keys", FIRST, 409)
    done = asked(admin, "create", "phone", *words)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "this is the first key" in done.stderr
    assert "--yes" in done.stderr


@pytest.mark.parametrize(("said", "made"), [("y\n", True), ("n\n", False), ("", False)])
def test_a_person_is_asked_before_the_first_one(
    admin: Any, monkeypatch: pytest.MonkeyPatch, said: str, made: bool
) -> None:
    admin.answer("POST /v1/keys", FIRST, 409)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    done = asked(admin, "create", "phone", input=said)
    assert "From now on clients on other machines are refused" in done.stderr
    tries = [body["first"] for _, body in admin.asked]
    assert tries == ([False, True] if made else [False])
    assert done.exit_code == 1  # this daemon refuses either way, and so does the person


def test_the_list_is_a_table_or_says_what_holds(admin: Any) -> None:
    key = {name: MADE[name] for name in ("id", "name", "created")}
    admin.answer("GET /v1/keys", {"needed": True, "keys": [key], "revoked": 2})
    assert asked(admin, "list").stdout.splitlines() == [
        "NAME   ID            CREATED",
        "phone  aabbccddeeff  2026-11-20T20:00:00.000Z",
    ]
    assert json.loads(asked(admin, "list", "--json").stdout) == {"needed": True, "keys": [key], "revoked": 2}
    admin.answer("GET /v1/keys", {"needed": True, "keys": [], "revoked": 2})
    assert "all" not in asked(admin, "list").stdout
    assert "are refused" in asked(admin, "list").stdout
    admin.answer("GET /v1/keys", {"needed": False, "keys": [], "revoked": 0})
    assert asked(admin, "list").stdout.startswith("No key is needed.")


def test_revoking_the_last_one_says_that_nobody_else_gets_in(admin: Any) -> None:
    admin.answer("DELETE /v1/keys/phone", {"revoked": "phone", "id": "aabbccddeeff", "left": 1})
    done = asked(admin, "revoke", "phone")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "Key 'phone' (aabbccddeeff) counts no more\n", "")
    admin.answer("DELETE /v1/keys/phone", {"revoked": "phone", "id": "aabbccddeeff", "left": 0})
    done = asked(admin, "revoke", "phone", "--json")
    assert json.loads(done.stdout)["left"] == 0
    assert "`mlx-stack keys off` lets everybody in again" in done.stderr


def test_off_wants_to_be_sure(admin: Any) -> None:
    admin.answer("POST /v1/keys/off", {"needed": False, "keys": [], "revoked": 0})
    done = asked(admin, "off")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--yes" in done.stderr
    assert admin.asked == []
    assert asked(admin, "off", "--yes").stdout == "No key is needed any more\n"


def test_a_daemon_that_is_down_is_one_line(home: Any) -> None:
    done = run("keys", "list")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "mlx-stack up" in done.stderr
