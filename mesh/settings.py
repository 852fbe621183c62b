"""Bounds and timers between nodes. Sources: docs/wire.md for sizes, docs/adr for the numbers of failure detection."""

from __future__ import annotations

from msgspec import Struct

from node.settings import FrontSettings

DRAIN_MAX_S = 366 * 86400.0  # `mesh drain --for`: a time no timer takes is no time
DRILL_AWAY_MAX_S = 30.0  # no drill keeps a node out of the mesh for longer, whoever asks


class MembershipSettings(Struct, frozen=True, kw_only=True):
    """When silence means something. Seconds.

    Suspicion of a peer begins after clamp(gap_factor x its longest gap in gap_window_s + gap_extra_s, floor, cap).
    """

    gap_factor: float = 1.5
    gap_extra_s: float = 0.1  # one heartbeat
    gap_window_s: float = 600.0
    patience_floor_s: float = 0.35
    patience_cap_s: float = 1.5
    far_patience_floor_s: float = 1.5  # other sites, and peers whose datagrams do not get through: slower signs of life
    far_patience_cap_s: float = 5.0
    datagrams_missing_s: float = 3.0  # no heartbeat for so long while the link talks: judged by the link alone
    confirm_s: float = 0.15  # from suspect to dead
    stalled_s: float = 0.25  # our own timer this late: we were stalled, and nobody else is to blame
    link_grace_s: float = 5.0  # a peer that is heard but has no link keeps its place so long
    waiting_s: float = 5.0  # a peer that was found but never reached is called dead after so long
    nudge_s: float = 1.0  # at most one "dial now" so often because a peer without a link was heard
    dead_kept_s: float = 7 * 86400.0
    peers_max: int = 256  # further ones are refused: the oldest dead go first
    strangers_max: int = 64  # of these never reached: anybody may announce or gossip any number
    stranger_kept_s: float = 600.0  # one that was announced, but never reached
    gossip_max: int = 256  # peers taken from one frame
    addresses_max: int = 16  # of one peer


class TrustSettings(Struct, frozen=True, kw_only=True):
    """Records of who belongs. Over a bound the less senior ones are refused, and counted as `too_many`."""

    members_max: int = 64  # further ones are not admitted: `mesh_full`
    records_max: int = 1024
    roster_bytes_max: int = 2 << 20  # of all together: they travel as one frame
    record_bytes_max: int = 40 << 10  # a removal that keeps as many as it may
    cert_bytes_max: int = 1024  # ours have 344
    keeps_max: int = 1024
    contested_max: int = 16  # removals signed by one who is removed, of each such signer
    generation_max: int = 2000  # a thousand removals of one node; then it needs a new id
    verified_max: int = 4096  # signatures whose result is remembered


class LinkSettings(Struct, frozen=True, kw_only=True):
    """One WebSocket per pair of nodes."""

    hello_s: float = 2.0  # from connection to the other side's Hello
    connect_s: float = 2.0  # one address
    head_start_s: float = 0.1  # between the starts of two addresses of one peer
    larger_id_waits_s: float = 0.05  # so that most pairs dial once, not twice
    backoff_first_s: float = 0.1
    backoff_max_s: float = 5.0
    ping_s: float = 1.0
    silence_s: float = 5.0  # nothing at all came: closed, as a time-out
    probe_s: float = 1.0  # for an answer of a link in doubt: after sleep, a new address, or when its peer dials again
    close_s: float = 0.5  # for the bye to leave and the close to be answered
    strangers_max: int = 32  # peers dialled at the same time that were never reached
    outbox_frames: int = 1024
    outbox_bytes: int = 8 << 20
    garbled_max: int = 3  # in a row
    burst_frames: int = 32  # read without a pause; then others have their turn: heartbeats, above all


class CloneSettings(Struct, frozen=True, kw_only=True):
    """Two processes with one node id. Seconds."""

    overlap_s: float = 3.0  # both heard over the same time: longer than any datagram of a former process is on its way
    fresh_s: float = 12.0  # who was not heard for so long is gone; two diallers that are refused try each 5 s
    ask_first_s: float = 2.0  # from the first question to the second; doubled each time
    asks: int = 6
    answer_s: float = 2.0
    answer_bytes: int = 1 << 20
    forget_s: float = 600.0  # a place that was asked so often is left alone for
    places_max: int = 32
    boots_max: int = 4  # of one id
    nodes_max: int = 256


class DrillSettings(Struct, frozen=True, kw_only=True):
    """What a drill may ask of a node, and how long it waits. Seconds unless the name says otherwise."""

    hold_s: float = 20.0  # a drill that says nothing for so long is over
    answer_s: float = 3.0  # a node that has not answered by then is too old for a drill, or gone
    soon_s: float = 0.2  # between a node's answer and its fall: time for the answer to leave
    gap_s: float = 5.0  # between two faults of one node
    window_s: float = 600.0  # in it at most
    kills_max: int = 3  # model servers: a lifecycle gives up at five failures in as long (NodeSettings)
    falls_max: int = 12  # out of the mesh
    seen_max: int = 256  # notes of what became of the others


class PublishSettings(Struct, frozen=True, kw_only=True):
    """How often a node reports itself when nothing has changed. Seconds."""

    every_s: float = 1.0  # while something is open here, or peers have come or gone lately
    met_s: float = 10.0  # "lately"
    quiet_every_s: float = 5.0  # otherwise
    gap_s: float = 0.02  # never more often: changes in between travel together,
    part: float = 0.05  # nor so often that it takes more than this part of the loop's processor time,
    gap_max_s: float = 0.1  # but at least so often while something changes


class NoiseSettings(Struct, frozen=True, kw_only=True):
    """What cannot be read, and who sends it. Seconds."""

    count_min: int = 10  # fewer are chance
    quiet_s: float = 60.0  # after so long without any it is over
    say_every_s: float = 3600.0  # in the log, for one sender
    senders_max: int = 64
    shown_max: int = 3


class AccessSettings(Struct, frozen=True, kw_only=True):
    """What the log says of clients that were turned away. Seconds."""

    say_every_s: float = 3600.0  # of one client and one reason
    clients_max: int = 64  # remembered


class DescriptorSettings(Struct, frozen=True, kw_only=True):
    """File descriptors of this process: one for each connection, file and pipe."""

    tries: tuple[int, ...] = (65_536, 24_576, 10_240, 4096, 1024)  # wanted, best first; the last ones any system gives
    kept: int = 512  # for links, workers, files and databases, or a quarter where there are few
    clients_max: int = 16_384  # connections, however many there are
    peers_max: int = 8192


class ServerSettings(Struct, frozen=True, kw_only=True):
    """TCP connections to one of our ports. Seconds."""

    look_every_s: float = 1.0
    silent_s: float = 10.0  # a connection that has not made a request by then is closed
    silent_max: int = 256  # more of them: the oldest go sooner,
    silent_least_s: float = 1.0  # but not before so long: a busy moment has many that are about to ask
    close_at_once: int = 32  # so many of them in one turn of the loop,
    close_pause_s: float = 0.01  # then others have theirs
    keepalive_s: float = 75.0  # between two requests
    stop_s: float = 5.0  # for what is answered to end, once the server was told to
    put_out_s: float = 0.5  # for the link of who is no member any more to say so; its requests end at once
    front: FrontSettings = FrontSettings()


class HeartbeatSettings(Struct, frozen=True, kw_only=True):
    """The UDP endpoint."""

    answered_s: float = 2.0  # an address that spoke so recently is the only one used
    unmet_s: float = 10.0  # who was neither heard nor linked in so long may be nobody:
    unmet_every_s: float = 1.0  # it is spoken to so often only, until it is met
    buffer_bytes: int = 256 << 10  # waiting in the socket's transport; more is dropped: a late heartbeat is worthless
    addresses_max: int = 16
    ways_max: int = 1024  # addresses whose socket is remembered


class SealSettings(Struct, frozen=True, kw_only=True):
    """What proves a datagram."""

    answer_every_s: float = 0.05  # to one process of a member, while it does not repeat our challenge
    answered_max: int = 8  # processes of one member for which that is remembered
    boots_max: int = 4  # processes of one member that are believed beside each other: copied disks
    window: int = 64  # datagrams; what is that much older than the last came by no other way, but was kept


class HandshakeSettings(Struct, frozen=True, kw_only=True):
    """TLS on the peer port."""

    limit_s: float = 5.0  # for one handshake
    open_max: int = 256  # handshakes at the same time; the oldest goes
    burst: int = 64  # accepted in a row; then others have their turn
    shutdown_s: float = 2.0  # for the other side to say that it has closed
    pause_s: float = 0.2  # without file descriptors: until the next look


class DiscoverySettings(Struct, frozen=True, kw_only=True):
    """mDNS, with research figures: an update is sent three times over 0.45 s, so two may not overlap."""

    update_every_s: float = 10.0  # coarse facts
    update_at_least_s: float = 1.0  # a change of role
    interfaces_every_s: float = 2.0  # addresses are looked at, where the system does not tell when they change
    interfaces_told_every_s: float = 30.0  # and where it does, to be safe
    settle_s: float = 0.1  # after such a notice: one change comes as several
    loop_s: float = 5.0  # for our own announcement to come back to us; what does not leave this machine does not
    unheard_s: float = 20.0  # a near node that is known for so long, and never by mDNS, shows that multicast is lost
    away_s: float = 2.0  # this process did not run for so long (sleep, a stall): announces and browses anew
    retry_s: float = 10.0  # while there is no multicast
    resolve_s: float = 3.0
    asking_max: int = 16  # services resolved at the same time
    found_max: int = 256  # remembered


class NameSettings(Struct, frozen=True, kw_only=True):
    """The coordinator's host names. Seconds unless the name says otherwise."""

    ttl_s: int = 120
    swap_at_s: tuple[float, ...] = (0.0, 0.225, 0.45, 1.0, 3.0)  # of one takeover: multicast is lost at times
    question_s: float = 0.25  # how long the present owner of a name may take to answer
    contest_s: float = 0.25  # before contradicting: by then a deposed coordinator knows that it is one
    rival_s: float = 2.0  # another one claims to rule, after so long a pause: worth saying the names again
    lost_s: float = 1.0  # the loser answers so long for the winner, unless it hears it
    heard_s: float = 5.0  # a datagram or the gateway's answer shows for so long that the network is heard
    fresh_s: float = 0.2  # and it may be so much older than being alone: what is older came before the loss
    gateway_s: float = 0.3  # for the gateway's answer
    gateway_every_s: float = 2.0  # while alone
    gateway_again_s: float = 60.0  # while it has never answered
    cede_s: float = 1.0  # after hearing another mesh's claim: the node may be one of ours that is not known yet
    defend_s: float = 10.0  # a claim is answered once in so long; then whoever claims again may have it
    again_s: float = 30.0  # between questions for a name that another mesh has
    again_soon_s: float = 3.0  # when the last one was not answered
    questions: int = 2  # unanswered in a row: the other mesh is gone
    late_s: float = 0.25  # a timer this late: this process stood still
    owners_max: int = 16  # remembered for one name


class FloodSettings(Struct, frozen=True, kw_only=True):
    """What is read of multicast DNS. A node says some 200 bytes a second when it is busy, 2 kB when it starts."""

    bytes_per_s: int = 64 << 10  # all sources together
    burst_bytes: int = 512 << 10
    source_bytes_per_s: int = 8 << 10
    source_burst_bytes: int = 64 << 10
    datagram_bytes: int = 128  # a smaller one costs as much
    sources_max: int = 256
    note_s: float = 60.0  # a flood is told of for so long after its last datagram


class PeersSettings(Struct, frozen=True, kw_only=True):
    """Finding a peer by its address."""

    port: int = 4000
    connect_s: float = 3.0
    answer_bytes: int = 64 << 10  # more is no /.well-known/mlx-stack
    retry_first_s: float = 1.0
    retry_max_s: float = 30.0
    name_s: float = 5.0  # DNS
    look_s: float = 5.0  # whether a node of `mesh-peers` still lives; while not, its address is resolved again
    probes: int = 16  # machines of the tailnet asked at the same time
    probe_s: float = 1.0  # each
    probed_max: int = 128
    suggested_max: int = 5


class TailscaleSettings(Struct, frozen=True, kw_only=True):
    """Asking Tailscale on this machine."""

    answer_s: float = 6.0  # the LocalAPI; `lsof`, which finds it on a Mac, may take 5 of them
    program_s: float = 5.0
    fresh_s: float = 3.0  # an answer is used again for so long
