"""One peer of the mesh: what is known of it, and what that makes it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from mesh.liveness import Liveness
from mesh.settings import MembershipSettings
from mesh.wire import PROTOCOL, PeerSeen
from node.types import NodeReport
from router.view import NodeState, NodeView


@dataclass(slots=True)
class Member:
    """Membership writes it; the methods only read, but for `place` and `begin_anew`. `now` in seconds."""

    seen: PeerSeen
    since: float  # when it was found, or found again after a restart
    life: Liveness
    boot: str = ""
    report: NodeReport | None = None
    advertised: tuple[str, ...] = ()  # the last addresses of its own that its reports named
    reached: bool = False  # a link was up at least once
    link_boot: str = ""  # the process at the other end of the link; "" without one
    last_link_boot: str = ""  # of the last link: it is this process that is gone when its address refuses
    unlinked_at: float = 0.0
    ended: str = ""  # why it is dead
    ended_at: float = 0.0
    left: bool = False  # it said so: late datagrams of that process mean nothing
    deaf_since: float | None = None  # it is heard, and says that it hears nothing of this node
    incompatible: str = ""
    tried: str = ""  # the last failed dial, for people
    sighted: bool = False  # mDNS has seen it since its last link ended: on this network, whatever its addresses say
    nudged_at: float = float("-inf")
    rtt_s: float | None = None
    up: bool = False
    state: NodeState = NodeState.WAITING
    reason: str = ""
    due: float | None = None  # when time alone may change its state

    @property
    def ranks_last(self) -> bool:
        """It is far and on the added side."""
        return self.seen.far and self.seen.added

    def place(self, *, far: bool, added: bool = False) -> bool:
        """Where it is by the latest evidence. True: its rank has changed."""
        before = self.ranks_last
        self.seen = replace(self.seen, far=far, added=self.seen.added or added)
        self.life.far = far
        return self.ranks_last != before

    def begin_anew(self, boot: str, settings: MembershipSettings) -> None:
        """It is another process: the one before is history, its gaps, its report and its words too."""
        self.boot, self.report, self.advertised, self.left, self.deaf_since = boot, None, (), False, None
        self.life = Liveness(settings, far=self.seen.far)

    @property
    def linked(self) -> bool:
        """To the process we mean. Who tells of a former or later one (a restart, gossip that is late) ends no link."""
        return self.link_boot == self.boot != ""

    def deaf(self, now: float) -> bool:
        """It does not hear this node: said for longer than our next heartbeats, and its answer to them, need. It was
        patient with us already."""
        return self.deaf_since is not None and now >= self.deaf_since + self.life.answer_s

    @property
    def unheard(self) -> bool:
        """It was given up because nothing of it arrives; it did not say that it leaves."""
        return self.ended != "" and self.deaf_since is None and not self.left

    def as_before(self, now: float) -> bool:
        """All is well with it, and still is: nothing to judge but when to look again."""
        report, life = self.report, self.life
        if self.state is not NodeState.OK or self.reason or not (self.up and self.linked) or self.ended:
            return False
        if report is None or report.draining or life.heard is None or life.datagrams_missing or self.incompatible:
            return False
        if self.deaf_since is not None:
            return False
        silent_at = life.heard + life.patience_s()
        if now >= silent_at:
            return False
        self.due = silent_at
        return True

    def verdict(self, now: float) -> tuple[NodeState, str]:
        """Its state and the reason in words ("" when all is well)."""
        if self.incompatible:
            return NodeState.INCOMPATIBLE, self.incompatible
        if self.ended:
            return NodeState.DEAD, self.ended
        heard = self.life.heard
        if heard is None:
            return NodeState.WAITING, f"found by {self.seen.via}, {self.tried or 'dialling'}"
        if self.report and self.report.draining:
            return NodeState.DRAINING, self.report.drain_reason
        if now >= heard + self.life.patience_s():
            return NodeState.SUSPECT, f"silent for more than {self.life.patience_s():.2f} s"
        if not self.linked:
            return NodeState.SUSPECT, f"heard, but no link: {self.tried or 'dialling'}"
        if self.report is None:
            return NodeState.WAITING, "linked, its first report is on the way"
        if self.life.datagrams_missing:
            return NodeState.OK, f"its heartbeats do not arrive (is UDP port {self.seen.peer_port} open?)"
        return NodeState.OK, ""

    def gone_if_refused(self) -> bool:
        """A dial refused at the address of the last link speaks of that link's process. Datagrams, gossip or mDNS may
        have told of another since: of a restart, or of a clone elsewhere."""
        return self.boot == self.last_link_boot and not self.linked and not self.ended

    def kept_s(self, settings: MembershipSettings) -> float:
        """How long it is shown as dead: a person may look for one that was here, or that was added by hand; what was
        only announced may be a ghost."""
        known = self.reached or self.seen.via in ("static", "tailscale")
        return settings.dead_kept_s if known else settings.stranger_kept_s

    def next_change(self, now: float, settings: MembershipSettings) -> float | None:
        s, heard = settings, self.life.heard
        if self.incompatible:
            return None
        if self.ended and (self.deaf_since is None or heard is None):
            return self.ended_at + self.kept_s(s)
        if heard is None:
            return None if self.linked else self.since + s.waiting_s
        suspect = heard + self.life.patience_s()
        times = [suspect, suspect + s.confirm_s]
        if self.deaf_since is not None:
            times.append(self.deaf_since + self.life.answer_s)
        if not self.linked:
            times.append(self.unlinked_at + s.link_grace_s)
        return min((t for t in times if t > now), default=None)

    def shown(self) -> NodeView:
        """As the view has it; before its first report, from what was seen of it."""
        seen = self.seen
        report = self.report or NodeReport(
            id=seen.id, boot=seen.boot, name=seen.name, version=seen.version, protocol=seen.protocol,
            priority=seen.priority, uptime_s=0.0, addresses=seen.addresses, port=seen.port, peer_port=seen.peer_port,
        )  # fmt: skip
        return NodeView(
            report=report, state=self.state, reason=self.reason, far=seen.far, via=seen.via, rtt_s=self.rtt_s,
            addresses=seen.addresses, reachable=self.up,
        )  # fmt: skip


def incompatible(protocol: int, version: str) -> str:
    """Why a node of this protocol cannot take part; "" when it can."""
    if protocol == PROTOCOL:
        return ""
    older = "it" if protocol < PROTOCOL else "this node"
    return f"speaks protocol {protocol} (version {version or 'unknown'}), this node speaks {PROTOCOL}: update {older}"
