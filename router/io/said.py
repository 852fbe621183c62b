"""What a client says about its request in headers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from router.errors import ErrorCode, RouterError

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(frozen=True, slots=True)
class Said:
    """`client` tells clients apart (the name of a key that counts, a hash of another, or an address: never the key);
    `deadline_s` None = not said; `explain`: the response shall carry the decision."""

    client: str
    client_request_id: str | None
    priority: Literal["normal", "low"]
    deadline_s: float | None
    content_type: str
    explain: bool = False

    @classmethod
    def of(cls, headers: Mapping[str, str], remote: str, key: str | None = None) -> Said:
        """`headers` by their names in lower case, `remote` the client's address, `key` the name of its own. Raises
        RouterError when content-type is no text, x-mesh-deadline-ms no positive whole number, or another header none of
        the words it may be."""
        content_type = headers.get("content-type", "application/json")
        if not content_type.isascii():
            raise RouterError(ErrorCode.INVALID_REQUEST, "content-type must be ASCII", param="content-type")
        name = headers.get("x-request-id", "")
        return cls(
            client=f"key:{key}" if key is not None else _client(headers.get("authorization", ""), remote),
            client_request_id=name if _SANE_ID.fullmatch(name) else None,
            priority="low" if _one_of(headers, "x-priority", ("normal", "low")) == "low" else "normal",
            deadline_s=_deadline_s(headers.get("x-mesh-deadline-ms")),
            content_type=content_type,
            explain=_one_of(headers, "x-mesh-explain", ("0", "1")) == "1",
        )


def _one_of(headers: Mapping[str, str], name: str, words: tuple[str, ...]) -> str:
    """What the header says; the first of `words` when it is not there."""
    said = headers.get(name, words[0]).strip().lower()
    if said not in words:
        raise RouterError(ErrorCode.INVALID_REQUEST, f"{name} must be {' or '.join(words)}", param=name)
    return said


def _client(authorization: str, remote: str) -> str:
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return "key:" + hashlib.blake2b(key.strip().encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return remote


def _deadline_s(value: str | None) -> float | None:
    if value is None:
        return None
    text = value.strip()
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        message = "x-mesh-deadline-ms must be a whole number of milliseconds above 0"
        raise RouterError(ErrorCode.INVALID_REQUEST, message, param="x-mesh-deadline-ms")
    return int(text) / 1e3
