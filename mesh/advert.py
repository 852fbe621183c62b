"""What a node says of itself over mDNS: small, coarse, for finding it and for people with a Bonjour browser. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from mesh.joining import Stance
from mesh.wire import PROTOCOL, PeerSeen
from node.types import NodeId, NodeReport

TXT_BYTES_MAX = 400  # a third of a packet; above 8966 bytes mDNS would say nothing at all, without an error
TXT_BYTES_READ = 1300  # what fits a packet; a longer one comes in fragments, and from nobody we know
_STRING_BYTES_MAX = 255  # one key=value
_NAME_BYTES_MAX = 63
_ID = re.compile(r"[0-9a-f]{16}")
_ADDRESSES_MAX = 16
_STANCES: Mapping[str, Stance] = {"l": "looking", "o": "open", "k": "kept", "c": "closed", "x": "out"}
_LETTERS = {stance: letter for letter, stance in _STANCES.items()}

Txt = dict[str, str]


class Advert(Struct, frozen=True, kw_only=True):
    """`role` is F, L or S as in election; `host` the name it holds as coordinator; `hint` how its certificate's
    fingerprint begins."""

    id: NodeId
    boot: str
    name: str
    mesh: str
    priority: int
    port: int
    peer_port: int
    version: str = ""
    models: tuple[str, ...] = ()
    headroom_bytes: int = 0
    queue_depth: int = 0
    role: str = "F"
    host: str = ""
    mesh_id: str = ""
    stance: Stance = "closed"
    hint: str = ""

    def txt(self) -> Txt:
        """The TXT record, shorter than TXT_BYTES_MAX: names are cut, and as many models as fit are listed."""
        txt = {
            "v": str(PROTOCOL),
            "id": self.id,
            "b": _cut(self.boot, 16),
            "name": _cut(self.name, _NAME_BYTES_MAX),
            "mesh": _cut(self.mesh, _NAME_BYTES_MAX),
            "mid": self.mesh_id,
            "w": _LETTERS[self.stance],
            "k": self.hint,
            "p": str(self.priority),
            "peer": str(self.peer_port),
            "api": str(self.port),
            "mem": f"{self.headroom_bytes / 2**30:.0f}",
            "q": str(self.queue_depth),
            "st": self.role,
            "ver": _cut(self.version, 16),
            "mh": hashlib.blake2b("\n".join(sorted(self.models)).encode(), digest_size=4).hexdigest(),
        }
        if self.host:
            txt["n"] = _cut(self.host, _NAME_BYTES_MAX)
        room = min(_STRING_BYTES_MAX, TXT_BYTES_MAX - txt_bytes(txt) - 1) - len("m=")
        txt["m"] = _models(self.models, room)
        return txt


def advert_of(
    report: NodeReport, mesh: str, *, role: str, host: str, mesh_id: str = "", stance: Stance = "closed", hint: str = ""
) -> Advert:
    """What `report` says of its node, as others may find it."""
    return Advert(
        id=report.id,
        boot=report.boot,
        name=report.name,
        mesh=mesh,
        priority=report.priority,
        port=report.port,
        peer_port=report.peer_port,
        version=report.version,
        models=tuple(m.name for m in report.models),
        headroom_bytes=report.memory.headroom_bytes,
        queue_depth=sum(m.queue_depth for m in report.models),
        role=role,
        host=host,
        mesh_id=mesh_id,
        stance=stance,
        hint=hint,
    )


def txt_bytes(txt: Mapping[str, str | None]) -> int:
    """Its size on the wire: each string with its length byte."""
    return sum(len(key.encode()) + 1 + len((value or "").encode()) + 1 for key, value in txt.items())


def _models(models: Sequence[str], room: int) -> str:
    """Names separated by commas; `+3` stands for three more that do not fit."""
    for count in range(len(models), -1, -1):
        more = [f"+{len(models) - count}"] if count < len(models) else []
        text = ",".join([*models[:count], *more])
        if len(text.encode()) <= room:
            return text
    return ""


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def seen_of(txt: Mapping[str, str | None], addresses: Sequence[str]) -> PeerSeen | None:
    """Who sent this TXT record; None when it is none of ours (anybody may multicast anything)."""
    id_, name = txt.get("id") or "", txt.get("name") or ""
    port, peer_port = _number(txt, "api", 1, 65535), _number(txt, "peer", 1, 65535)
    protocol = _number(txt, "v", 0, 10**6)
    if txt_bytes(txt) > TXT_BYTES_READ:
        return None
    if not _ID.fullmatch(id_) or port is None or peer_port is None or protocol is None:
        return None
    priority = _number(txt, "p", 0, 10**6)
    return PeerSeen(
        id=NodeId(id_),
        name=_cut(name, _NAME_BYTES_MAX) or id_[:4],
        mesh=_cut(txt.get("mesh") or "default", _NAME_BYTES_MAX),
        addresses=tuple(addresses)[:_ADDRESSES_MAX],
        port=port,
        peer_port=peer_port,
        boot=_cut(txt.get("b") or "", 16),
        priority=100 if priority is None else priority,
        version=_cut(txt.get("ver") or "", 16),
        protocol=protocol,
        via="mdns",
        mesh_id=_hex(txt.get("mid")),
        stance=_STANCES.get(txt.get("w") or "", "") if txt.get("mid") else "",
        hint=_hex(txt.get("k")),
    )


def _hex(text: str | None) -> str:
    return text if text and _ID.fullmatch(text) else ""


def _number(txt: Mapping[str, str | None], key: str, low: int, high: int) -> int | None:
    text = txt.get(key) or ""
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        return None
    return int(text) if low <= int(text) <= high else None
