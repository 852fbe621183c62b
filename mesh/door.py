"""Who is let into the mesh, as one of its members judges: the window, who waits, who is new, invites. Pure.

Times are seconds on the clock of `now`, except `at` (Unix, for people). What members tell each other comes as a `Doors`
frame and is merged so that the order does not matter: the higher window number wins, the rest is a union.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Collection, Mapping
from typing import Literal, TypeAlias

from msgspec import Struct

from mesh.checks import Seen, Token
from mesh.doors import Doors, Newcomer, Waiter
from mesh.errors import MeshError
from mesh.join_settings import JoinSettings
from node.types import NodeId

How: TypeAlias = Literal["member", "window", "invite", "tailnet", "accepted"]


class Caller(Struct, frozen=True, kw_only=True):
    """Who asks to be let in, with the key of `cert` proven. `near`: from one of this machine's networks; `own`: from a
    machine of the same user's tailnet. `proof`: that it knows an invite (b"": it has none). `check`: the number that
    both show."""

    node: NodeId
    name: str
    cert: bytes
    seen: Seen
    check: str
    address: str = ""
    port: int = 4000
    peer_port: int = 4001
    near: bool = False
    own: bool = False
    proof: bytes = b""


class Members(Struct, frozen=True):
    """The mesh as its records say: each member's certificate, and whether an id or a certificate was put out."""

    certs: Mapping[NodeId, bytes]
    removed: Callable[[NodeId, bytes], bool]


class Let(Struct, frozen=True):
    """Admit it. `proof`: that this node knows the invite too."""

    how: How
    proof: bytes = b""


class Wait(Struct, frozen=True):
    """It may come again; a person lets it in, or nobody. `why` for people."""

    why: str


class Refuse(Struct, frozen=True):
    code: Literal["bad_invite", "id_taken", "full", "sent_away"]
    why: str


Verdict: TypeAlias = Let | Wait | Refuse


class Invite(Struct):
    secret: bytes
    until: float


class DoorFile(Struct, frozen=True, kw_only=True):
    """mesh/door.json. Times are Unix seconds."""

    version: int = 1
    mesh: str = ""
    settled: bool = True
    n: int = 0
    open_until: float = 0.0
    fixed: bool = False
    kept: bool = False
    newcomers: tuple[Newcomer, ...] = ()
    acknowledged: tuple[str, ...] = ()
    invites: tuple[tuple[bytes, float], ...] = ()


def tag(cert: bytes) -> str:
    """16 hex digits that stand for a certificate."""
    return hashlib.sha256(cert).hexdigest()[:16]


class Door:
    """The door of one mesh. `changed` is true when others should hear of it; who tells them sets it back."""

    def __init__(self, mesh: str, settings: JoinSettings | None = None) -> None:
        self._settings = settings or JoinSettings()
        self.mesh = mesh
        self.n, self.kept = 0, False
        self._until, self._fixed = float("-inf"), False
        self._newcomers: dict[NodeId, Newcomer] = {}
        self._acknowledged: dict[str, None] = {}  # tags, the oldest first
        self._waiting: dict[NodeId, Waiter] = {}
        self._heard: dict[NodeId, float] = {}  # of who waits
        self._sent_away: dict[str, float] = {}  # tags, until when
        self._invites: list[Invite] = []
        self._wrong = 0
        self.changed = False
        self.ended_invites = ""  # why, for people

    # The window

    def found(self, now: float) -> None:
        """The mesh was just founded: open."""
        self.n, self._until, self._fixed, self.changed = 1, now + self._settings.window_s, False, True

    def open(self, for_s: float | None, now: float) -> None:
        """`mesh open`; with `for_s` joins do not lengthen it. Raises MeshError(bad_request)."""
        if for_s is not None and not 0 < for_s <= self._settings.window_max_s:
            hours = self._settings.window_max_s / 3600
            raise MeshError("bad_request", f"a window is open for more than 0 s and at most {hours:.0f} hours")
        self.n += 1
        self._until, self._fixed = now + (for_s or self._settings.window_s), for_s is not None
        self.changed = True

    def close(self) -> None:
        """`mesh close`."""
        self.n += 1
        self._until, self._fixed, self.changed = float("-inf"), False, True

    def left_s(self, now: float) -> float:
        """How long the window is still open; 0 when it is closed."""
        return max(0.0, self._until - now)

    # Invites

    def invite(self, cert: bytes, random_bytes: Callable[[int], bytes], now: float) -> Token:
        """A new one, for the node that has this certificate: this one. The oldest gives way to a ninth."""
        hint = hashlib.sha256(cert).digest()[:8]
        token = Token(hint, random_bytes(16))
        self._forget_old(now)
        self._invites.append(Invite(token.secret, now + self._settings.invite_s))
        del self._invites[: -self._settings.invites_max]
        self._wrong, self.ended_invites, self.changed = 0, "", True
        return token

    def _redeem(self, caller: Caller, now: float) -> Let | Refuse:
        """An invite works once. A wrong proof counts against all: whoever guesses names none."""
        self._forget_old(now)
        for invite in self._invites:
            token = Token(b"", invite.secret)
            if hmac.compare_digest(token.proof("newcomer", caller.seen), caller.proof):
                self._invites.remove(invite)
                self.changed = True
                return Let("invite", token.proof("member", caller.seen))
        if not self._invites:
            return Refuse("bad_invite", "there is no open invite here: it was used, or is too old")
        self._wrong += 1
        left = self._settings.invite_tries - self._wrong
        if left > 0:
            return Refuse("bad_invite", f"this invite does not hold here; {left} more wrong tries end every open one")
        self._invites.clear()
        self.changed, self.ended_invites = (
            True,
            f"{self._wrong} wrong tries, the last from {caller.address or 'unknown'}",
        )
        return Refuse("bad_invite", "this invite does not hold here; every open one has ended")

    def _forget_old(self, now: float) -> None:
        self._invites = [i for i in self._invites if now < i.until]

    # Judging

    def judge(self, caller: Caller, members: Members, now: float) -> Verdict:
        """What becomes of this caller. Who is a member by its key comes back, whatever the window says."""
        present = members.certs.get(caller.node)
        if present is not None and present == caller.cert:
            return Let("member")
        if present is not None or members.removed(caller.node, caller.cert):
            return self._apart(caller, present is not None)
        if caller.proof:
            return self._redeem(caller, now)
        if caller.own:
            return Let("tailnet")
        if caller.near and self.left_s(now) > 0:
            return Let("window")
        return Wait("the window is closed" if not self.left_s(now) else "it is not on this network")

    def _apart(self, caller: Caller, taken: bool) -> Verdict:
        if taken:
            why = (
                f"a member has the id {caller.node} with another key. If it is this machine, whose key was lost: "
                f"`mlx-stack mesh remove {caller.node}` on a member, then `mlx-stack mesh accept {caller.node}`"
            )
            return Refuse("id_taken", why)
        return Wait("it was removed from this mesh")

    def admitted(self, caller: Caller, how: How, by: str, at: float, now: float) -> None:
        """It is a member now. Who came through the window, or with its tailnet, is new until somebody accepts it."""
        s = self._settings
        self._waiting.pop(caller.node, None)
        if how == "window" and not self._fixed and self._until < now + s.window_s:
            self.n, self._until = self.n + 1, now + s.window_s
        if how in ("window", "tailnet"):
            self._put(Newcomer(node=caller.node, name=caller.name, tag=tag(caller.cert), check=caller.check,
                               how=how, by=by, at=at))  # fmt: skip
        elif how in ("invite", "accepted"):
            self.kept = True
        self.changed = True

    def waits(self, caller: Caller, why: str, by: NodeId, now: float) -> Refuse | None:
        """Puts it on the list, or says why not."""
        self._drop_old(now)
        if now < self._sent_away.get(tag(caller.cert), now):
            return Refuse("sent_away", "it was sent away by `mlx-stack mesh remove`; an invite lets it in")
        before = self._waiting.get(caller.node)
        if before is not None and before.cert != caller.cert:
            return Refuse("id_taken", f"another machine that calls itself {before.name} waits with this id; "
                          f"`mlx-stack mesh remove {before.name}` on a member sends it away")  # fmt: skip
        if before is None and len(self._waiting) >= self._settings.waiting_max:
            return Refuse("full", f"{len(self._waiting)} machines wait already; accept or remove them first")
        near = sum(w.address == caller.address for w in self._waiting.values())
        if before is None and caller.address and near >= self._settings.waiting_per_address:
            return Refuse("full", f"{near} machines wait at {caller.address} already; accept or remove them first")
        self._waiting[caller.node] = Waiter(
            node=caller.node, name=caller.name, cert=caller.cert, check=caller.check, why=why, by=by,
            address=caller.address, port=caller.port, peer_port=caller.peer_port,
        )  # fmt: skip
        self._heard[caller.node] = now
        self.changed = self.changed or before != self._waiting[caller.node]
        return None

    def shown(self, node: NodeId, cert: bytes) -> str:
        """The number that is shown for this key already, "" for none."""
        found = self._waiting.get(node)
        return found.check if found is not None and found.cert == cert else ""

    def _drop_old(self, now: float) -> None:
        old = [n for n, at in self._heard.items() if now > at + self._settings.waiting_kept_s or n not in self._waiting]
        for node in old:
            self._waiting.pop(node, None)
            del self._heard[node]

    # People

    def waiting(self, now: float) -> list[Waiter]:
        self._drop_old(now)
        return list(self._waiting.values())

    def newcomers(self) -> list[Newcomer]:
        """Who has come by itself and was not acknowledged yet, the latest last."""
        return sorted(self._newcomers.values(), key=lambda x: (x.at, x.node))

    def acknowledge(self, node: NodeId) -> Newcomer | None:
        """`mesh accept` of one that is in already. From now on this mesh is never left for another."""
        found = self._newcomers.pop(node, None)
        if found is not None:
            self._remember(found.tag)
            self.kept = self.changed = True
        return found

    def let_in(self, node: NodeId) -> None:
        """`mesh accept` of one that waits: it is a member now, by a person's hand."""
        gone = self._waiting.pop(node, None)
        if gone is not None:
            self._sent_away.pop(tag(gone.cert), None)
            self._remember(tag(gone.cert))
        self.kept = self.changed = True

    def gave_up(self, node: NodeId, me: NodeId) -> bool:
        """It says that it has a mesh of its own, and waits for this one no more. True: it was this node's to tell."""
        mine = (found := self._waiting.get(node)) is not None and found.by == me
        if mine:
            del self._waiting[node]
            self.changed = True
        return mine

    def forget(self, node: NodeId, now: float) -> bool:
        """It was removed, or somebody does not want it: who waits is sent away for a while. False: it is not here."""
        newcomer, waiter = self._newcomers.pop(node, None), self._waiting.pop(node, None)
        if waiter is not None:
            self._sent_away[tag(waiter.cert)] = now + self._settings.sent_away_s
            while len(self._sent_away) > self._settings.waiting_max:
                del self._sent_away[next(iter(self._sent_away))]
        found = newcomer is not None or waiter is not None
        self.changed = self.changed or found
        return found

    def _put(self, newcomer: Newcomer) -> None:
        if newcomer.tag in self._acknowledged:
            return
        before = self._newcomers.get(newcomer.node)
        if before is not None and (before.at, before.check) >= (newcomer.at, newcomer.check):
            return
        self._newcomers[newcomer.node] = newcomer
        if len(self._newcomers) > self._settings.newcomers_max:
            del self._newcomers[self.newcomers()[0].node]

    def _remember(self, tag_: str) -> None:
        self._acknowledged[tag_] = None
        while len(self._acknowledged) > self._settings.acknowledged_max:
            del self._acknowledged[next(iter(self._acknowledged))]

    # Others

    def frame(self, now: float) -> Doors:
        """What other members should know."""
        return Doors(
            mesh=self.mesh, n=self.n, left_s=self.left_s(now), fixed=self._fixed, kept=self.kept,
            newcomers=tuple(self.newcomers()), acknowledged=tuple(self._acknowledged),
            waiting=tuple(self.waiting(now)),
        )  # fmt: skip

    def merge(self, said: Doors, teller: NodeId, members: Collection[NodeId], now: float) -> bool:
        """What another member says. True: something was new here. Of who waits it tells what it heard itself."""
        if said.mesh != self.mesh:
            return False
        before = self._shown()
        left_s = min(max(0.0, said.left_s), self._settings.window_max_s)
        until = now + left_s if left_s else float("-inf")
        if said.n > self.n or (said.n == self.n and until < self._until - 1.0):
            self.n, self._until, self._fixed = said.n, until, said.fixed
        self.kept = self.kept or said.kept
        for tag_ in said.acknowledged:
            if tag_ not in self._acknowledged:
                self._remember(tag_)
        for node in [n for n, x in self._newcomers.items() if x.tag in self._acknowledged]:
            del self._newcomers[node]
        for newcomer in said.newcomers:
            if newcomer.node in members:
                self._put(newcomer)
        self._drop_old(now)
        for waiter in said.waiting:
            mine = self._waiting.get(waiter.node)
            known = mine is not None and mine.cert == waiter.cert
            if waiter.by == teller and (known or (mine is None and len(self._waiting) < self._settings.waiting_max)):
                self._waiting[waiter.node], self._heard[waiter.node] = waiter, now
        for node in [n for n, x in self._waiting.items() if x.by == teller and n not in {w.node for w in said.waiting}]:
            del self._waiting[node]  # it was let in, or has given up
        return before != self._shown()

    def _shown(self) -> tuple[object, ...]:
        return self.n, self.kept, dict(self._newcomers), dict(self._acknowledged), dict(self._waiting)

    # Disk

    def file(self, now: float, unix: float, *, settled: bool = True) -> DoorFile:
        """`unix` is the time of `now`; `settled`: the mesh counts as founded."""
        self._forget_old(now)
        open_until = unix + self.left_s(now) if self.left_s(now) else 0.0
        return DoorFile(
            mesh=self.mesh, settled=settled, n=self.n, open_until=open_until, fixed=self._fixed,
            kept=self.kept, newcomers=tuple(self.newcomers()), acknowledged=tuple(self._acknowledged),
            invites=tuple((i.secret, unix + i.until - now) for i in self._invites),
        )  # fmt: skip

    @classmethod
    def of_file(cls, file: DoorFile, now: float, unix: float, settings: JoinSettings | None = None) -> Door:
        """As it was kept. A clock that was set back lengthens no window beyond what may be asked for."""
        door = cls(file.mesh, settings)
        s = door._settings
        door.n, door.kept, door._fixed = file.n, file.kept, file.fixed
        longest_s = s.window_max_s if file.fixed else s.window_s
        if file.open_until > unix:
            door._until = now + min(file.open_until - unix, longest_s)
        door._newcomers = {x.node: x for x in file.newcomers}
        door._acknowledged = dict.fromkeys(file.acknowledged)
        door._invites = [Invite(secret, now + min(until - unix, s.invite_s)) for secret, until in file.invites]
        door._forget_old(now)
        return door
