"""Every time and bound of the election. docs/election.md says where each number comes from."""

from __future__ import annotations

from msgspec import Struct


class ElectionSettings(Struct, frozen=True, kw_only=True):
    """Seconds unless the name says otherwise. Raises ValueError when they contradict each other."""

    heartbeat_s: float = 0.1
    floor_s: float = 0.35  # suspicion: clamp(gap_factor * longest gap of gap_memory_s + heartbeat_s, floor_s, cap_s)
    cap_s: float = 1.5
    gap_factor: float = 1.5
    gap_memory_s: float = 600.0
    confirm_s: float = 0.15  # others are asked for this long before a silent coordinator is given up
    asks: int = 3  # so often, evenly spread over confirm_s
    skew_s: float = 0.1  # a candidate waits this long for each live node of better rank
    sticky_s: float = 30.0  # a better priority waits for this much uptime of its own and of the running term
    sticky_max_s: float = 600.0
    failed_within_s: float = 60.0  # a node that fails this soon after taking over waits twice as long next time
    handover_s: float = 1.0  # a heir that has not taken over by then is passed over
    lag_s: float = 0.25  # my timer came this late: I was stalled
    wake_s: float = 10.0  # or even asleep: uptime starts anew
    listen_s: float = 0.3  # at start and after a stall: listen first
    live_s: float = 0.45  # a peer counts as live if heard within max(this, suspicion)
    uptime_step_s: float = 10.0  # steps in which uptime ranks
    byes: int = 3  # a goodbye is said so often, bye_gap_s apart: a datagram may be lost
    bye_gap_s: float = 0.05
    far_heartbeat_s: float = 0.5  # between sites: slower, more patient
    far_floor_s: float = 1.5
    far_cap_s: float = 5.0
    term_jump: int = 1 << 20  # a term this far beyond the latest is not believed at once: more than a mesh ever elects
    peers_max: int = 256  # senders remembered
    forget_s: float = 600.0  # a silent stranger may be forgotten when there are too many

    def __post_init__(self) -> None:
        for name, beat, floor, cap in (
            ("", self.heartbeat_s, self.floor_s, self.cap_s),
            ("far_", self.far_heartbeat_s, self.far_floor_s, self.far_cap_s),
        ):
            if not 0 < beat < floor < cap:
                raise ValueError(
                    f"need 0 < {name}heartbeat_s < {name}floor_s < {name}cap_s, got {beat}, {floor}, {cap}"
                )
        if not self.heartbeat_s < self.lag_s < self.floor_s:
            raise ValueError(f"need heartbeat_s < lag_s < floor_s, got lag_s {self.lag_s}")
        if self.asks < 1 or self.byes < 1 or self.peers_max < 1:
            raise ValueError("asks, byes and peers_max are at least 1")
