"""Bounds and timers of founding, joining and letting in. Pure."""

from __future__ import annotations

from msgspec import Struct


class JoinSettings(Struct, frozen=True, kw_only=True):
    """Founding, joining and letting in. Seconds unless the name says otherwise."""

    look_s: float = 3.0  # a new founding looks so long for a mesh that is there already
    meet_s: float = 1.0  # before it joins one as new as its own: mDNS finds an older one until then
    window_s: float = 1800.0  # open after the founding, and after each join through the window
    window_max_s: float = 86400.0  # `mesh open --for`
    linked_s: float = 3.0  # from seeing a fellow member to a link; then the two ask each other who belongs
    call_s: float = 5.0  # one join call, from the connection to the last answer
    calls_max: int = 32  # under way at the same time: more are told to come again
    calls_per_address: int = 4
    body_bytes: int = 16 << 10  # of a question; a certificate of P-256 has some 350
    answer_bytes: int = 4 << 20  # 1024 records fit
    ask_first_s: float = 0.5  # after a call that failed; doubled each time
    ask_max_s: float = 60.0
    busy_s: float = 0.5  # after "I am joining somebody myself": half of it to all of it
    out_kept_s: float = 150.0  # a closed mesh that let this node wait is waited for, so long after its last answer
    hurries_max: int = 20  # "something has changed for you", from whoever says so
    sights_max: int = 256  # nodes of other meshes of this name
    waiting_max: int = 16  # nodes that ask to be let in; further ones are told that the list is full
    waiting_per_address: int = 4
    numbers_max: int = 40  # check numbers that callers may have made at once, each a try to meet one that is shown,
    number_every_s: float = 60.0  # and one more so often; further callers are refused until then
    waiting_kept_s: float = 900.0  # after they asked last
    sent_away_s: float = 3600.0  # whom a person does not want
    told_every_s: float = (
        30.0  # members tell each other who waits, and how long the window is open, on change and so often
    )
    newcomers_max: int = 64
    acknowledged_max: int = 256  # remembered
    invite_s: float = 600.0
    invites_max: int = 8
    invite_tries: int = 5  # wrong ones, then every open invite ends
