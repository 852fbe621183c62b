"""The member's side of join calls: bounded sessions, the key of the caller proven, then mesh/door.py judges. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from mesh import checks
from mesh.checks import Seen
from mesh.door import Caller
from mesh.join_call import Answer, Begin, Offer, Result, Reveal
from mesh.join_settings import JoinSettings
from node.io import identity as keys
from node.types import NodeId


@dataclass(slots=True)
class _Session:
    begin: Begin
    nonce: bytes
    address: str
    until: float
    known: bool


class Reception:
    """`cert` is this node's; `shown(node, cert)` the number that is shown for a key already, "" for none. Times in
    seconds."""

    def __init__(
        self, cert: Callable[[], bytes], shown: Callable[[NodeId, bytes], str], settings: JoinSettings | None = None
    ) -> None:
        self._cert, self._shown, self._settings = cert, shown, settings or JoinSettings()
        self._sessions: dict[bytes, _Session] = {}
        self._numbers, self._numbers_at = float(self._settings.numbers_max), float("-inf")
        self.refused: dict[str, int] = {}  # calls that came to nothing, by reason

    def begin(self, begin: Begin, address: str, now: float) -> Answer:
        """The first half. A certificate that is none of a node's is refused before anything is kept of it."""
        for key in [k for k, s in self._sessions.items() if now >= s.until]:
            del self._sessions[key]
        if keys.owner(begin.cert) != begin.id:
            return self.refuse("bad_certificate", "its certificate does not name its id")
        same = sum(s.address == address for s in self._sessions.values())
        if len(self._sessions) >= self._settings.calls_max or same >= self._settings.calls_per_address:
            return Result(outcome="busy", code="crowded", why="too many ask at the same time")
        known = bool(begin.check) and self._shown(begin.id, begin.cert) == begin.check
        if not (known or begin.invited or self._may_make_a_number(now)):
            return self.refuse("numbers", "too many have asked for a check number here; an invite needs none")
        session, nonce = secrets.token_bytes(16), secrets.token_bytes(checks.NONCE_BYTES)
        self._sessions[session] = _Session(begin, nonce, address, now + self._settings.call_s, known)
        return Offer(session=session, nonce=nonce, cert=self._cert(), known=known)

    def reveal(self, reveal: Reveal, address: str, now: float) -> tuple[Begin, Caller] | Result:
        """The second half: who it is, if it has kept to its commitment and holds its key. A session is good for one
        answer, from the address that began it."""
        session = self._sessions.pop(reveal.session, None)
        if session is None or now >= session.until or session.address != address:
            return self.refuse("no_session", "this call was not begun here, or too long ago")
        begin = session.begin
        if begin.invited and not reveal.proof:
            return self.refuse("bad_invite", "it spoke of an invite and shows none")
        if not checks.matches(begin.commit, reveal.nonce, begin.cert):
            return self.refuse("broken_commitment", "it has another nonce than it committed to")
        seen = Seen(begin.cert, self._cert(), reveal.nonce, session.nonce)
        if not keys.verify(begin.cert, seen.signed(), reveal.signature):
            return self.refuse(
                "bad_signature", "it does not hold the key of its certificate, or somebody is in between"
            )
        check = begin.check if session.known else seen.number()
        return begin, Caller(
            node=begin.id, name=begin.name, cert=begin.cert, seen=seen, check=check, address=address,
            port=begin.port, peer_port=begin.peer_port, proof=reveal.proof,
        )  # fmt: skip

    def _may_make_a_number(self, now: float) -> bool:
        """Whoever is in between learns the number with the offer, and can break off unseen: so offers are counted."""
        s = self._settings
        self._numbers = min(s.numbers_max, self._numbers + max(0.0, now - self._numbers_at) / s.number_every_s)
        self._numbers_at = now
        if self._numbers < 1.0:
            return False
        self._numbers -= 1.0
        return True

    def refuse(self, code: str, why: str) -> Result:
        self.refused[code] = self.refused.get(code, 0) + 1
        return Result(outcome="refused", code=code, why=why)
