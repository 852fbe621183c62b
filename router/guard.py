"""Who may ask at :4000? The name it was reached by, the page it comes from, the key it brings. Pure.

A page that a browser shows may send requests here without its user's knowledge: its `Origin` says so. One whose owner
answers DNS may say that its own name leads here (DNS rebinding), and is no other site any more for the browser: its
`Host` is then no name of ours. An address cannot be rebound, so any is right there.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Protocol

from msgspec import Struct

from router import catalog
from router.errors import ErrorCode, Refusal

OPEN_PATHS = ("/health", "/.well-known/mlx-stack")  # nothing private: other nodes and watchdogs have no key
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")

# How this machine's own programs, and containers and virtual machines on it, call it.
_OWN = frozenset(
    (
        *("localhost", "host.docker.internal", "gateway.docker.internal", "host.containers.internal"),
        *("host.lima.internal", "host.orb.internal"),
    )
)
# What a router or this network calls a machine: nobody can buy a name below these. Tailscale gives those below ts.net,
# and they lead to machines of a tailnet, never to an address that a page's owner chooses.
_SUFFIXES = ("local", "lan", "home", "home.arpa", "internal", "localdomain")
_GIVEN = (".localhost", ".ts.net")

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)(?:%[\w.~-]+)?\]|([^\s:\[\]/@?#,]+))(?::[0-9]{0,5})?")
_TOKENS = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:[ \t]*,[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+)*")
_SEEN_MAX = 256  # hosts as they were written, and found right
_HEADERS_MAX = 2048  # bytes of a preflight's list
_EXPOSED = (
    "x-request-id, x-mesh-node, x-mesh-model, x-mesh-attempts, x-mesh-queue-ms, x-mesh-decision, "
    "retry-after, retry-after-ms"
)
_METHODS = "GET, HEAD, POST, OPTIONS"
PREFLIGHT_S = 600  # for which a browser need not ask again


class KeyBook(Protocol):
    """The keys of clients."""

    @property
    def needed(self) -> bool: ...
    def name_of(self, presented: str) -> str | None: ...
    def id_of(self, presented: str) -> str: ...
    def counts(self, id_: str) -> bool: ...


class NoKeys:
    """Nobody needs one."""

    needed = False

    def name_of(self, presented: str) -> str | None:  # noqa: ARG002 - as KeyBook has it
        return None

    def id_of(self, presented: str) -> str:  # noqa: ARG002 - as KeyBook has it
        return ""

    def counts(self, id_: str) -> bool:  # noqa: ARG002 - as KeyBook has it
        return False


class Passed(Struct, frozen=True):
    """It may ask. `key`: the name of the one it brought, `key_id` which of that name. `fields` are for the answer: what
    the browser must read."""

    key: str | None = None
    fields: Mapping[str, str] = {}
    key_id: str = ""


class Denied(Struct, frozen=True):
    """It may not. `what` it was, for counting: "host", "origin" or "key". `fields` as Passed has them."""

    what: str
    refusal: Refusal
    fields: Mapping[str, str] = {}


class Preflight(Struct, frozen=True):
    """A browser asks what a page may ask: answered with these and no body."""

    fields: Mapping[str, str]


Verdict = Passed | Denied | Preflight
_PASSED = Passed()


def names_of(*names: str) -> frozenset[str]:
    """What a machine or mesh called so is called by whoever reaches it: the name itself, and its first part alone and
    with what networks put behind it."""
    found = set[str]()
    for name in names:
        whole = name.strip().rstrip(".").lower()
        first = whole.partition(".")[0]
        found |= {whole, first, *(f"{first}.{suffix}" for suffix in _SUFFIXES)}
    return frozenset(found - {"", *(f".{suffix}" for suffix in _SUFFIXES)})


class Guard:
    """`names` are this node's and its mesh's (`names_of`), `hosts` further ones: a name, `*.domain` or `*`; `origins`
    those of pages that may ask: `scheme://host:port`, `*` standing for any part, or `null`."""

    def __init__(
        self,
        keys: KeyBook | None = None,
        *,
        names: Collection[str] = (),
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
    ) -> None:
        self._keys: KeyBook = keys or NoKeys()
        self.retune(names=names, hosts=hosts, origins=origins)

    def retune(self, *, names: Collection[str], hosts: Iterable[str], origins: Iterable[str]) -> None:
        """From the next request on."""
        self._names = frozenset(names) | _OWN
        self._hosts = tuple(h.lower().rstrip(".") for h in hosts)
        self._origins = tuple(re.compile(_pattern(o.lower().rstrip("/"))) for o in origins)
        self._fine: set[str | None] = {None}  # without Host it is HTTP/1.0, and no browser

    def judge(self, method: str, path: str, fields: Mapping[str, str], client: str) -> Verdict:
        """`fields` by their names in lower case, `client` its address."""
        host = fields.get("host")
        if host not in self._fine and not self._named(host or ""):
            return _strange_host(host or "")
        if "origin" in fields:
            return self._of_page(method, path, fields, client)
        return _PASSED if not self._keys.needed else self._keyed(path, fields, client, {})

    def still(self, passed: Passed) -> bool:
        """Its key, if it brought one, was not revoked since."""
        return passed.key is None or not self._keys.needed or self._keys.counts(passed.key_id)

    # Host

    def _named(self, host: str) -> bool:
        """Kept for the next time, as it was written."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = (match[1] or match[2]).lower().rstrip(".")
        known = name in self._names or _is_ip(name) or name.endswith(_GIVEN)
        if not known and not any(_fits(name, allowed) for allowed in self._hosts):
            return False
        if len(self._fine) >= _SEEN_MAX:
            self._fine = {None}
        self._fine.add(host)
        return True

    # Origin

    def _of_page(self, method: str, path: str, fields: Mapping[str, str], client: str) -> Verdict:
        origin = fields["origin"]
        said: dict[str, str] = {}
        if not _same(origin, fields.get("host", "")):
            if not any(allowed.fullmatch(origin.lower()) for allowed in self._origins):
                return _strange_origin(origin)
            said = {"access-control-allow-origin": origin, "vary": "Origin", "access-control-expose-headers": _EXPOSED}
            if method == "OPTIONS" and "access-control-request-method" in fields:
                return Preflight(_preflight(origin, fields))
        if not self._keys.needed:
            return Passed(None, said)
        return self._keyed(path, fields, client, said)

    # Keys

    def _keyed(self, path: str, fields: Mapping[str, str], client: str, said: Mapping[str, str]) -> Verdict:
        presented = _presented(fields)
        name = self._keys.name_of(presented) if presented else None
        if name is not None:
            return Passed(name, said, self._keys.id_of(presented))
        if path in OPEN_PATHS:
            return Passed(None, said)
        forwarded = next((field for field in FORWARDED if field in fields), None)
        if forwarded is None and _is_loopback(client):
            return Passed(None, said)
        return Denied("key", Refusal(ErrorCode.INVALID_API_KEY, _why_no_key(presented, forwarded, client)), said)


def _why_no_key(presented: str, forwarded: str | None, client: str) -> str:
    make = "`mlx-stack keys create NAME` on any Mac of the mesh makes one"
    if presented:
        return f"this API key does not count here: it is mistyped, or was revoked; {make}"
    from_here = (
        f" (it came from this machine, but was forwarded: {forwarded})" if forwarded and _is_loopback(client) else ""
    )
    return (
        f"this request needs an API key{from_here}: Authorization: Bearer sk-mesh-...; {make}"
        "; a program on a Mac of the mesh needs none where it asks localhost"
    )


def _strange_host(host: str) -> Denied:
    shown = catalog.shown(host)
    text = (
        f"'{shown}' is no name of this node, so this may be another site's page (DNS rebinding); if it is yours, "
        "put it into `allowed-hosts` (mlx-stack config set allowed-hosts NAME)"
    )
    return Denied("host", Refusal(ErrorCode.HOST_NOT_ALLOWED, text))


def _strange_origin(origin: str) -> Denied:
    text = (
        f"pages of '{catalog.shown(origin)}' may not ask here; if they may, put it into `cors-origins` "
        "(mlx-stack config set cors-origins ORIGIN)"
    )
    return Denied("origin", Refusal(ErrorCode.ORIGIN_NOT_ALLOWED, text))


def _preflight(origin: str, fields: Mapping[str, str]) -> dict[str, str]:
    """What the page may say: any header that has a name, since what a header means here is decided when it comes."""
    asked = fields.get("access-control-request-headers", "")
    named = len(asked) <= _HEADERS_MAX and _TOKENS.fullmatch(asked.strip(" \t"))
    answer = {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": _METHODS,
        "access-control-allow-headers": asked.strip(" \t") if named else "authorization, content-type",
        "access-control-max-age": str(PREFLIGHT_S),
        "vary": "Origin, Access-Control-Request-Headers",
    }
    if fields.get("access-control-request-private-network") == "true":
        answer["access-control-allow-private-network"] = "true"
    return answer


def _presented(fields: Mapping[str, str]) -> str:
    """As OpenAI's clients send it, or Anthropic's; "" without one."""
    scheme, _, key = fields.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else fields.get("x-api-key", "")


def _same(origin: str, host: str) -> bool:
    """The page came from here: from that name, at that port."""
    scheme, _, authority = origin.lower().partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme)
    return default is not None and authority.removesuffix(default) == host.lower().removesuffix(default) != ""


def _pattern(written: str) -> str:
    return "[^/]*".join(re.escape(part) for part in written.split("*")) if written != "*" else ".*"


def _fits(name: str, allowed: str) -> bool:
    return allowed in ("*", name) or (allowed.startswith("*.") and name.endswith(allowed[1:]))


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@lru_cache(1024)
def _is_loopback(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
