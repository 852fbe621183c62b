"""What a node says: numbered, addressed, and to peers on another site at their slower pace."""

from __future__ import annotations

from msgspec.structs import replace

from election.messages import Effect, Id, Kind, Message, Rank, Reign, Role, Send
from election.peers import Peers
from election.settings import ElectionSettings


class Voice:
    """Collects Sends in `out`; its owner empties it."""

    def __init__(self, me: Id, boot: str, mesh: str, peers: Peers, settings: ElectionSettings) -> None:
        self._me, self._boot, self._mesh, self._peers = me, boot, mesh, peers
        self._far_heartbeat_s = settings.far_heartbeat_s
        self._seq = 0
        self.out: list[Effect] = []

    def say(
        self,
        kind: Kind,
        now: float,
        *,
        to: Id | None = None,
        paced: bool = False,
        role: Role,
        coordinator: Id | None,
        reign: Reign,
        rank: Rank,
        uptime_s: float,
        age_s: float,
    ) -> None:
        """`to` None: to everybody; those on another site are left out until their turn if `paced`."""
        self._seq += 1
        message = Message(
            kind=kind,
            sender=self._me,
            boot=self._boot,
            seq=self._seq,
            mesh=self._mesh,
            reign=reign,
            coordinator=coordinator,
            role=role,
            rank=rank,
            uptime_s=uptime_s,
            age_s=age_s,
        )
        if to is not None:
            peer = self._peers.get(to)
            self.out.append(Send(replace(message, far=True) if peer is not None and peer.far else message, to))
        elif not self._peers.distant:
            self.out.append(Send(message))
        else:
            self._one_by_one(message, now, paced)

    def _one_by_one(self, message: Message, now: float, paced: bool) -> None:
        for peer in self._peers:
            if peer.distant:
                if paced and now < peer.next_beat:
                    continue
                peer.next_beat = now + self._far_heartbeat_s
            self.out.append(Send(replace(message, far=peer.far), peer.id))
