"""Who may ask at :4000: names, pages and keys, decided."""

from __future__ import annotations

import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ErrorCode
from router.guard import Denied, Guard, NoKeys, Passed, Preflight, Verdict, names_of

LAN, SELF = "192.168.1.9", "127.0.0.1"
CHAT = "/v1/chat/completions"
NAMES = names_of("mini", "Brunos-Mac-mini.fritz.box") | {"mlx-mesh.local", "coordinator.local"}
PHONES = Passed("phone", key_id="id of sk-right")


class OneKey:
    """`sk-right` is phone's."""

    needed = valid = True

    def name_of(self, presented: str) -> str | None:
        return "phone" if presented == "sk-right" else None

    def id_of(self, presented: str) -> str:
        return f"id of {presented}"

    def counts(self, id_: str) -> bool:
        return id_ == "id of sk-right" and self.valid


def judge(guard: Guard, client: str = LAN, method: str = "POST", path: str = CHAT, **fields: str) -> Verdict:
    said = {"host": "mini.local:4000"} | {name.replace("_", "-"): value for name, value in fields.items()}
    return guard.judge(method, path, said, client)


def denied(verdict: Verdict) -> Denied:
    assert isinstance(verdict, Denied)
    assert "\n" not in verdict.refusal.message
    return verdict


# Hosts


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST:4000", "localhost.", "app.localhost:1", "127.0.0.1:4000", "192.168.1.7", "8.8.8.8:4000",
        "[::1]:4000", "[fe80::1%en0]:4000", "[fd7a:115c:a1e0::1]", "host.docker.internal:4000", "mini", "mini:4000",
        "Mini.local:4000", "mini.lan", "mini.home.arpa", "brunos-mac-mini.local", "Brunos-Mac-mini.fritz.box",
        "mlx-mesh.local:4000", "coordinator.local", "mini.tail1234.ts.net:4000", "mini.tail1234.ts.net.",
    ],
)  # fmt: skip
def test_names_of_this_node_and_addresses_are_right(host: str) -> None:
    assert judge(Guard(names=NAMES), host=host) == Passed()


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:4000", "localhost.evil.example", "127.0.0.1.nip.io", "mini.evil.example", "",
        "evil.local", "evil.lan", "ts.net.evil.example", "evilts.net", "fritz.box", "mlx-mesh.local.evil.example",
        "mini local", "mini,evil.example", "user@mini", "mini/", "[::1", "::1", "[evil.example]", "local", ".local",
        "é", "a" * 5000,
    ],
)  # fmt: skip
def test_a_name_that_is_not_ours_is_refused_and_told_which_key_to_set(host: str) -> None:
    for _ in range(2):
        found = denied(judge(Guard(names=NAMES), SELF, host=host))
        assert (found.what, found.refusal.code) == ("host", ErrorCode.HOST_NOT_ALLOWED)
        assert "mlx-stack config set allowed-hosts" in found.refusal.message
        assert len(found.refusal.message) < 400


def test_http_1_0_needs_no_host() -> None:
    assert Guard().judge("POST", CHAT, {}, LAN) == Passed()


@pytest.mark.parametrize(
    ("allowed", "host", "right"),
    [
        ("llm.example.com", "LLM.example.com:4000", True),
        ("llm.example.com", "x.llm.example.com", False),
        ("*.example.com", "x.y.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "evilexample.com", False),
        ("*", "anything.at.all", True),
    ],
)
def test_further_names_can_be_allowed(allowed: str, host: str, right: bool) -> None:
    assert isinstance(judge(Guard(hosts=[allowed]), host=host), Passed) is right


def test_names_change_while_it_runs_and_no_answer_of_before_is_kept() -> None:
    guard = Guard(names={"old.local"})
    assert isinstance(judge(guard, host="old.local"), Passed)
    guard.retune(names={"new.local"}, hosts=(), origins=())
    assert isinstance(judge(guard, host="old.local"), Denied)
    assert isinstance(judge(guard, host="new.local"), Passed)


def test_what_is_remembered_of_hosts_is_bounded() -> None:
    guard = Guard(hosts=["*"])
    for number in range(5000):
        assert judge(guard, host=f"h{number}.example") == Passed()
    assert len(guard._fine) <= 256


# Pages


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:3000", "http://mini.local", "file://", "", "x" * 9000]
)
def test_a_page_of_another_site_is_refused_and_told_which_key_to_set(origin: str) -> None:
    found = denied(judge(Guard(names=NAMES), SELF, origin=origin))
    assert (found.what, found.refusal.code) == ("origin", ErrorCode.ORIGIN_NOT_ALLOWED)
    assert "mlx-stack config set cors-origins" in found.refusal.message
    assert found.fields == {}, "and it cannot read that either"


@pytest.mark.parametrize("host", ["mini.local:4000", "[::1]:4000"])
def test_our_own_page_may_ask(host: str) -> None:
    assert judge(Guard(names=NAMES), host=host, origin=f"http://{host}") == Passed()
    assert isinstance(judge(Guard(names=NAMES), host=host, origin=f"http://{host}1"), Denied)


def test_a_rebound_name_is_no_page_of_ours() -> None:
    found = denied(judge(Guard(names=NAMES), SELF, host="evil.example:4000", origin="http://evil.example:4000"))
    assert found.what == "host"


@pytest.mark.parametrize(
    ("allowed", "origin", "right"),
    [
        ("http://localhost:3000", "http://localhost:3000", True),
        ("http://localhost:3000/", "http://LOCALHOST:3000", True),
        ("http://localhost:3000", "http://localhost:30001", False),
        ("http://localhost:*", "http://localhost:5173", True),
        ("http://localhost:*", "http://localhost:5173/@evil.example", False),
        ("https://*.example.com", "https://a.example.com", True),
        ("https://*.example.com", "https://example.com.evil", False),
        ("chrome-extension://*", "chrome-extension://abcdef", True),
        ("null", "null", True),
        ("*", "https://evil.example", True),
        ("https://a.b", "https://axb", False),
    ],
)
def test_pages_can_be_allowed(allowed: str, origin: str, right: bool) -> None:
    verdict = judge(Guard(names=NAMES, origins=[allowed]), origin=origin)
    assert isinstance(verdict, Passed) is right
    if right:
        assert isinstance(verdict, Passed)
        assert verdict.fields["access-control-allow-origin"] == origin
        assert verdict.fields["vary"] == "Origin"
        assert "x-mesh-node" in verdict.fields["access-control-expose-headers"]


def test_a_preflight_is_answered_without_a_key_and_only_to_pages_that_may() -> None:
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,x-stainless-os"}
    guard = Guard(OneKey(), names=NAMES, origins=["https://chat.example"])
    verdict = judge(guard, method="OPTIONS", origin="https://chat.example", **asked)
    assert isinstance(verdict, Preflight)
    assert verdict.fields["access-control-allow-origin"] == "https://chat.example"
    assert verdict.fields["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "POST" in verdict.fields["access-control-allow-methods"]
    assert isinstance(judge(guard, method="OPTIONS", origin="https://evil.example", **asked), Denied)
    wild = {**asked, "access_control_request_headers": "x\r\nset-cookie: a"}
    told = judge(guard, method="OPTIONS", origin="https://chat.example", **wild)
    assert isinstance(told, Preflight)
    assert told.fields["access-control-allow-headers"] == "authorization, content-type"


# Keys


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_this_machine_needs_no_key(client: str) -> None:
    assert judge(Guard(OneKey(), names=NAMES), client) == Passed()
    assert judge(Guard(OneKey(), names=NAMES), client, authorization="Bearer sk-wrong") == Passed()
    assert judge(Guard(OneKey(), names=NAMES), client, authorization="Bearer sk-right") == PHONES


@pytest.mark.parametrize("field", ["forwarded", "x_forwarded_for"])
def test_what_was_forwarded_to_this_machine_does(field: str) -> None:
    guard = Guard(OneKey(), names=NAMES)
    found = denied(judge(guard, SELF, **{field: "1.2.3.4"}))
    assert found.refusal.code is ErrorCode.INVALID_API_KEY
    assert field.replace("_", "-") in found.refusal.message
    assert judge(guard, SELF, authorization="Bearer sk-right", **{field: "1.2.3.4"}) == PHONES


@pytest.mark.parametrize("client", [LAN, "100.64.1.2", "fe80::1%en0", "fd7a::1", "::ffff:10.0.0.1", "", "what"])
def test_others_do_once_one_exists(client: str) -> None:
    guard = Guard(OneKey(), names=NAMES)
    found = denied(judge(guard, client))
    assert (found.what, found.refusal.code) == ("key", ErrorCode.INVALID_API_KEY)
    assert "mlx-stack keys create NAME" in found.refusal.message
    wrong = denied(judge(guard, client, authorization="Bearer sk-wrong")).refusal.message
    assert "revoked" in wrong
    assert "sk-wrong" not in wrong, "a key that was mistyped is still nearly one"
    assert judge(guard, client, authorization="Bearer sk-right") == PHONES
    assert judge(guard, client, authorization="bearer  sk-right ") == PHONES
    assert judge(guard, client, x_api_key="sk-right") == PHONES
    assert isinstance(judge(guard, client, authorization="Basic sk-right"), Denied)


@pytest.mark.parametrize("path", ["/health", "/.well-known/mlx-stack"])
def test_what_is_nobodys_secret_needs_none(path: str) -> None:
    guard = Guard(OneKey(), names=NAMES)
    assert judge(guard, method="GET", path=path) == Passed()
    assert isinstance(judge(guard, method="GET", path="/v1/models"), Denied)
    assert isinstance(judge(guard, method="GET", path="/metrics"), Denied)
    assert isinstance(judge(guard, method="GET", path=path, host="evil.example"), Denied)


def test_while_none_is_needed_any_is_ignored() -> None:
    assert judge(Guard(NoKeys(), names=NAMES), authorization="Bearer anything") == Passed()


def test_a_page_that_may_ask_reads_that_its_key_is_wrong() -> None:
    guard = Guard(OneKey(), names=NAMES, origins=["https://chat.example"])
    found = denied(judge(guard, origin="https://chat.example"))
    assert found.refusal.code is ErrorCode.INVALID_API_KEY
    assert found.fields["access-control-allow-origin"] == "https://chat.example"


HOSTS = st.sampled_from(["mini.local:4000", "evil.example", "127.0.0.1", "", "[::1]:1"]) | st.text(max_size=30)
TEXTS = st.sampled_from(["", "null", "https://chat.example", "Bearer sk-right", "Bearer"]) | st.text(max_size=30)


@given(
    fields=st.fixed_dictionaries(
        {}, optional={"host": HOSTS, "origin": TEXTS, "authorization": TEXTS, "x-api-key": TEXTS, "forwarded": TEXTS}
    ),
    client=st.sampled_from([LAN, SELF, "::1", ""]),
    method=st.sampled_from(["GET", "POST", "OPTIONS"]),
)
def test_whatever_is_said_it_judges_the_same_twice(fields: dict[str, str], client: str, method: str) -> None:
    """And nobody from elsewhere passes without the key."""
    guard = Guard(OneKey(), names=NAMES, origins=["https://chat.example"])
    verdict = guard.judge(method, CHAT, fields, client)
    assert guard.judge(method, CHAT, fields, client) == verdict
    if isinstance(verdict, Passed) and client in (LAN, ""):
        assert verdict.key == "phone"


def test_without_keys_a_request_is_judged_in_less_than_2_us() -> None:
    guard = Guard(names=NAMES)
    fields = {"host": "mini.local:4000", "authorization": "Bearer none", "content-type": "application/json"}
    best = min(timeit.repeat(lambda: guard.judge("POST", CHAT, fields, LAN), number=10_000, repeat=20)) / 10_000
    print(f"{best * 1e6:.2f} us")
    assert best < 2e-6
