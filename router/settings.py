"""Every bound of this package, in one place. mesh/config.py fills some from config.yaml."""

from __future__ import annotations

from msgspec import Struct


class PromptSettings(Struct, frozen=True, kw_only=True):
    """How an edge sees prompts (router/prompt.py). `block_bytes` must be the same on all nodes of a mesh: blocks of
    another length are other blocks."""

    block_bytes: int = 256  # about 64 tokens
    blocks_limit: int = 2048  # of one prompt: its first 512 KiB, 18 kB in an ask
    media_bytes: int = 4096  # an image or a sound counts as so much text
    media_hashed_bytes: int = 65_536  # of each field of one, and its length

    bytes_per_token: float = 4.0  # before anything was learned of a model,
    prior_tokens: float = 256.0  # with the weight of so many tokens, always
    forget: float = 0.9  # weight of what was known, per answer
    sample_tokens: float = 4096.0  # a longer prompt weighs no more
    learn_least_bytes: int = 512  # a shorter one says nothing
    ratio_least: float = 1.0
    ratio_most: float = 10.0
    models_limit: int = 256  # names whose ratio is remembered

    def __post_init__(self) -> None:
        assert self.block_bytes > 0
        assert self.blocks_limit >= 0
        assert 0 < self.ratio_least <= self.bytes_per_token <= self.ratio_most
        assert self.prior_tokens > 0
        assert 0 < self.forget < 1


class EdgeSettings(Struct, frozen=True, kw_only=True):
    """Bounds of one edge. Times in seconds, sizes in bytes."""

    request_timeout_s: float = 600.0  # `request-timeout`: a whole request; x-mesh-deadline-ms lowers it
    body_limit_bytes: int = 32 * 2**20
    bodies_limit_bytes: int = 512 * 2**20  # of all requests that are open,
    bodies_address_bytes: int = 128 * 2**20  # and of those of one address, where it is not this machine
    body_timeout_s: float = 120.0  # for the client to send its body,
    body_grace_s: float = 10.0  # and after so long it must have come this fast, all in all
    body_bytes_per_s: int = 4096
    json_depth: int = 128  # arrays and objects inside each other: model servers read what passes here with recursion
    json_slice_bytes: int = 256 * 2**10  # looked through at a time: some ms at most
    zipped_inline_bytes: int = 64 * 2**10  # a compressed body of no more
    plain_inline_bytes: int = 2**20  # that makes no more is unpacked on the loop: a ms or two; others beside it
    answer_limit_bytes: int = 32 * 2**20  # a non-streamed answer is put together in memory
    open_limit: int = 4096  # requests that this edge carries at once,
    open_address_limit: int = 256  # of them from one address,
    open_loopback_limit: int = 4096  # and from this machine
    kept_stream_bytes: int = 8 * 2**20  # of what one client was sent, so that its answer can go on elsewhere
    kept_limit_bytes: int = 256 * 2**20  # of all of them; beyond it the oldest streams are not kept

    prompt: PromptSettings = PromptSettings()
    explain_limit_bytes: int = 8192 - 64  # of `x-mesh-decision`: clients take lines of 8 KiB, name and all
    names_listed: int = 50  # of models, in the message that says what exists

    failures_limit: int = 6  # attempts of one request that may fail
    busy_limit: int = 30  # grants of one request that may meet a full node
    cuts_limit: int = (
        8  # times that one answer may break off and go on elsewhere: each gives it new failures and rounds
    )
    rounds: int = 5  # times that nobody may be left after a failure,
    round_pause_s: float = 1.0  # this long apart: a worker restarts, a node comes back
    lately_s: float = 300.0  # nobody has the model, but a node that had it was lost so shortly ago: the same rounds
    lately_names: int = 1024  # of models on nodes that were lost
    busy_pause_s: float = 0.1  # when every candidate was full; doubles each time
    busy_pause_cap_s: float = 2.0
    last_word_s: float = 1.5  # so shortly before the deadline, or in the last tenth, a full node has the last word
    placed_ahead_s: float = 0.25  # a place must be found so long, or a twentieth, before the request's own deadline:
    # the coordinator's refusal, which says what was waited for, then comes before the edge's own
    retry_after_s: float = 2.0  # told to a client when nothing better is known
    stopping_retry_s: float = 0.3  # told by a node that stops: the name has another owner already

    head_hold_s: float = 10.0  # a stream's head waits this long for the first byte
    comfort_every_s: float = 5.0  # after that: comments, so that the client sees a sign of life

    farewell_s: float = 5.0  # for a client that does not read to take the error that ends its stream

    connect_floor_s: float = 0.25  # an address of a peer that took no connection by then: the next is tried beside it
    connect_cap_s: float = 1.0  # for one address to take it
    silence_s: float = 5.0  # the serving node says `: alive` each second
    block_limit_bytes: int = 8 * 2**20  # of one event of a stream
    refusal_limit_bytes: int = 64 * 2**10  # of a node's refusal

    def __post_init__(self) -> None:
        assert self.failures_limit >= 1
        assert self.busy_limit >= 1
        assert self.rounds >= 1
        assert self.cuts_limit >= 0
        assert 0 <= self.kept_stream_bytes <= self.kept_limit_bytes
        assert 0 < self.busy_pause_s <= self.busy_pause_cap_s
        assert 0 < self.connect_floor_s <= self.connect_cap_s
        assert self.silence_s > 1.0


class RouterSettings(Struct, frozen=True, kw_only=True):
    """Weights and bounds of placing: the Scheduler, and the two machines that talk about it. Times in seconds."""

    # The queue
    queue_limit: int = 1024  # requests that wait; past it `mesh_saturated`
    open_limit: int = 4096  # requests one desk or one asker keeps in mind, running ones included
    look_ahead: int = 64  # requests of one kind that are planned in one walk
    low_priority_s: float = 30.0  # `priority: low` queues as if it had come this much later: it never starves
    early_s: float = 6.0  # a turn whose start a node holds counts as if it had come up to so much earlier,
    early_per_s: float = 12.0  # less this for each second that it has to be read even there
    early_part: float = 0.5  # if at least this part of its prompt is held
    idle_bound_s: float = 45.0  # no node that could start a waiting request now stands idle for longer,
    untried_s: float = 2.0  # nor than this, if its speed is a mere guess (`speed.guessed`)
    recheck_s: float = 1.0  # while a request is held for a better node, look again this often
    busy_pause_s: float = 0.5  # a node that said `node_busy` gets nothing for this long
    overdue_s: float = 60.0  # past its deadline a granted request nobody ended is forgotten,
    granted_limit_s: float = 3600.0  # and one without a deadline this long after its grant
    retry_after_s: float = 5.0  # told with a refusal, spread by a fifth so that clients do not come back at once
    gone_memory_s: float = 600.0  # models of a node that went down are "not available", not unknown, for so long
    names_limit: int = 1000  # names of such models
    names_listed: int = 50  # in the message that says what exists

    # The cost (docs/scoring.md)
    begin_s: float = 0.03  # from a grant to the first prompt token read
    decode_weight: float = 0.25  # of seconds of decoding against seconds to the first token
    quick_s: float = 0.02  # a node whose first tokens come sooner after their grants reads prompts side by side,
    quick_forget: float = 0.2  # as a mean of its latest ones says
    stream_slowdown: float = 0.15  # one more stream makes a decode step this much longer
    hurt_weight: float = 0.25  # of seconds that those who run there lose
    guard_weight: float = 1.0  # of seconds that requests for a machine's own model will lose
    talk_s: float = 30.0  # so far a conversation looks ahead: its next turns are over by then
    guard_cap: float = 8.0  # the most that a busy model's queue can multiply that by
    rate_forget: float = 0.1  # how fast the rate of requests for a name follows what is seen
    chunk_tokens: int = 2048  # prompts are read in pieces of so many, and streams take a step between two
    headroom_weight: float = 0.25  # of the load that the next one costs when this one leaves no memory
    headroom_s: float = 0.01  # the most that little memory left can cost a loaded model: it only breaks ties
    headroom_half_bytes: float = 16e9  # bytes left at which it costs half of that
    late_part: float = 0.25  # a prompt is taken to be read still for this part of its time past its expected end,
    late_cap_s: float = 10.0  # at most this long

    # What is learned
    prefill_prior: float = 7.6  # tokens/s per (GB/s of memory bandwidth / GB of weights)
    decode_prior: float = 0.8
    prior_weight: float = 0.2  # in samples; constant, so the prior never fades
    position_scale: float = 30_000.0  # tokens before it that double the price of reading one more
    forget: float = 0.97  # weight of what was known, per new sample
    decode_forget: float = 0.85  # the same for writing speeds: their samples are less noisy
    refresh_s: float = 30.0  # how stale the fading of what was learned may be
    fade_s: float = 900.0  # and per second unused: e^-1 in this time
    prior_distance: float = 50.0  # a sample further than this factor from the prior counts as that far
    bandwidth_unknown: float = 50.0  # GB/s where the hardware does not say
    size_unknown_bytes: int = 4_000_000_000
    size_least_bytes: int = 2**28  # a process that takes less keeps its weights elsewhere: their size is unknown
    output_tokens: float = 256.0  # expected length of an answer before any was seen,
    output_forget: float = 0.03  # and how fast that follows what is seen
    read_least_tokens: int = 32  # shorter prompts say nothing about prefill speed
    decode_least_tokens: int = 8
    load_base_s: float = 1.0  # loading a model whose node does not say how long: this plus bytes / rate
    load_bytes_per_s: float = 3e9
    speeds_limit: int = 1024  # (node, model) pairs remembered
    cache_unknown_tokens: int = 32_768  # held by a prompt cache that was seen to work, but whose bounds nobody tells
    mirror_blocks: int = 131_072  # blocks of prompts in all mirrors of caches: about 25 MB
    cached_least: float = 0.5  # a node that finds less than this part of what the mirror says proves it wrong,
    cached_more: float = 0.25  # and one that finds more than this part of the prompt beyond it, too small:
    cached_growth: float = 1.25  # then it is taken to hold so many times what was thought,
    cached_cap: float = 8.0  # at most so many times what its node reports
    conversations_limit: int = 16_384  # whose weights are remembered
    kinds_limit: int = 256  # (names, excluded nodes) whose candidates are kept from one walk to the next

    # Between edge and coordinator
    answer_s: float = 0.5  # an ask without any answer for so long is sent again,
    quiet_s: float = 5.0  # and one that was answered `queued` after so much silence
    hold_s: float = 2.0  # without a coordinator an edge waits this long, then decides alone;
    cut_hold_s: float = 0.5  # of one that lives, but cannot be talked to, it waits only for the way: no other will come
    untaken_s: float = 1.0  # a grant that its edge has not taken by then is withdrawn
    edge_gone_s: float = 10.0  # requests of an edge whose link is gone are forgotten after this
    lost_s: float = 30.0  # requests of a node that went down wait this long for their edge to ask again
    unreported_s: float = 5.0  # what we think runs on a node, but it has not reported for so long, does not
    zombie_s: float = 2.0  # a request that ended counts against its node again if it is reported for longer
    housekeeping_s: float = 0.25  # how exactly the bounds above are kept
    queued_after_s: float = 0.1  # a request that is not granted by then hears its place in the queue,
    queued_every_s: float = 1.0  # and news about it at most this often,
    queued_change: float = 0.25  # and only if the place changed, or the wait by this part
    done_memory_s: float = 30.0  # ended requests are told again after a lost link for this long
    done_limit: int = 4096

    def __post_init__(self) -> None:
        assert 0 < self.queue_limit <= self.open_limit
        assert self.look_ahead >= 1
        assert 0 < self.forget < 1
        assert self.prior_weight > 0, "plain learning without a constant prior can leave a node idle for good"
        assert self.answer_s <= self.cut_hold_s
        assert self.answer_s < self.hold_s
        assert self.untaken_s < self.edge_gone_s
