"""Every bound of this package, in one place. mesh/config.py fills some from config.yaml."""

from __future__ import annotations

from msgspec import Struct


class NodeSettings(Struct, frozen=True, kw_only=True):
    """Bounds of one node: its memory, its queues, its patience. Times in seconds, sizes in bytes."""

    memory_budget_bytes: int = 0  # 0: headroom.default_budget decides
    kv_tokens: int = 8192  # a text so long fits into a worker's KV cache in any case, if its context allows
    cache_bytes_min: int = 2**28  # what one worker's KV cache may take: a part of the budget (headroom.cache_bytes)
    cache_bytes_max: int = 2**31
    cache_seqs: int = 1000  # what peers are told of a worker's prompt cache: as EngineSettings bounds it
    measure_every_s: float = 5.0  # what a worker takes
    leak_factor: float = 1.5  # a worker that takes so many times what is reserved for it is recycled once idle
    disk_bytes_per_s: float = 1.5e9  # assumed until a load is measured: an internal SSD, uncached
    load_fixed_s: float = 4.0  # Python, MLX and the first token, whatever the size

    request_gap_s: float = 15.0  # quiet a model must have had before another may push it out of memory
    idle_timeout_s: float | None = None  # unused for so long it is unloaded; None: by RAM, negative: never
    turn_s: float = 20.0  # a model in memory may stay so long; who waits for room so long may claim that of busy ones
    demand_half_life_s: float = 600.0  # how fast requests are forgotten as a sign of the next ones

    start_limit_s: float = 900.0  # a worker that is not ready by then is ended
    slow_factor: float = 4.0  # a load that takes so many times what it should does not keep other loads waiting,
    slow_floor_s: float = 60.0  # but never sooner
    backoff_first_s: float = 1.0  # before the first restart; doubles with each failure without health between
    backoff_cap_s: float = 60.0
    health_s: float = 120.0  # ready for this long: earlier failures are forgotten
    flapping_failures: int = 5  # so many within the window: no restart until `models load`
    flapping_window_s: float = 600.0
    prefill_step_tokens: int = 2048  # read between two signs of progress
    hang_factor: float = 4.0  # a busy worker hangs when it takes so many times what reading takes by its own speed,
    hang_floor_s: float = 60.0  # but never sooner
    hang_blind_s: float = 300.0  # nor than this, for a server that does not tell how its reading goes
    hang_prefill_tps: float = 25.0  # tokens a second, until its speed is known
    frozen_limit_s: float = 3.0  # stopped by a signal for so long: ended
    idle_probe_first_s: float = 60.0  # one token from a worker that nobody uses; doubles
    idle_probe_cap_s: float = 900.0
    idle_probe_limit_s: float = 60.0
    stop_grace_s: float = 10.0  # SIGTERM, then SIGKILL
    stats_every_s: float = 1.0
    probe_every_s: float = 5.0

    hold_factor: float = 1.5  # a request is held for a load at most this many times the expected load time,
    hold_floor_s: float = 30.0  # and this long: an estimate from bytes knows nothing of a busy machine
    hold_margin_s: float = 1.0  # on a node alone until so long before its deadline: the client shall hear why
    alive_every_s: float = 1.0  # said to the edge while there is nothing else to say
    close_limit_s: float = 5.0  # for a worker's stream to close behind a client that left
    calls_remembered: int = 1024  # ended (request, attempt) pairs that are not run again

    downloads_max: int = 2  # processes that fetch from the hub at a time; the others wait in line
    download_disk_factor: float = 1.2  # free bytes wanted for each byte to fetch
    download_retry_first_s: float = 5.0  # a failed download is tried again then; doubles until it gets on
    download_retry_cap_s: float = 600.0
    download_rate_s: float = 10.0  # its rate is that of the last so many seconds
    download_told_s: float = 5.0  # between two facts of its progress
    download_wait_s: float = 30.0  # told to a caller, when nobody knows how long it takes
    download_wait_cap_s: float = 300.0
    download_nice: int = 10  # below the workers

    def __post_init__(self) -> None:
        assert 0 < self.backoff_first_s <= self.backoff_cap_s
        assert self.flapping_failures >= 1
        assert self.request_gap_s >= 0
        assert self.turn_s > 0
        assert self.demand_half_life_s > 0
        assert self.downloads_max >= 1
        assert 0 < self.download_retry_first_s <= self.download_retry_cap_s


class HttpSettings(Struct, frozen=True, kw_only=True):
    """Bounds of our HTTP client, on the way to model servers and to peers. Times in seconds, sizes in bytes."""

    head_bytes: int = 64 * 1024  # of one answer; a longer one is refused
    interim_heads: int = 8  # 1xx before an answer
    chunk_line_bytes: int = 1024  # the size of a chunk, and what else its line says
    trailer_bytes: int = 16 * 1024

    buffer_bytes: int = 256 * 1024  # of an answer that nobody has read yet; then its connection is not read
    slice_bytes: int = 256 * 1024  # of a question handed to the system at a time
    open_max: int = 4096  # connections to one address; past it a question is refused, not queued
    idle_max: int = 64  # of them kept for the next question,
    idle_s: float = 30.0  # for so long
    end_s: float = 1.0  # what follows the last event of a stream is waited for so long; then the connection is closed
    stale_s: float = 1.0  # a kept connection that ends so soon after a question was stale: the question is sent again
    beside_s: float = 0.25  # an address that has not answered by then: the next one is tried beside it
    shun_s: float = 10.0  # and goes to the end of the line for so long
    shunned_max: int = 1024  # addresses

    def __post_init__(self) -> None:
        assert self.buffer_bytes > 0
        assert self.slice_bytes > 0
        assert 0 <= self.idle_max <= self.open_max
        assert self.chunk_line_bytes >= 16


class CrowdSettings(Struct, frozen=True, kw_only=True):
    """How many of something may be here at a time. mesh/limits.py fits `all_max` to the file descriptors there are."""

    all_max: int = 8192
    address_max: int = 512  # of one address, where it is not
    loopback_max: int = 4096  # this machine
    few: int = 16  # who holds so many, or more, finds it full earlier:
    few_part: float = 0.25  # this part of all places is for others

    @property
    def kept(self) -> int:
        """Places for those who hold few."""
        return int(self.all_max * self.few_part)

    def __post_init__(self) -> None:
        assert self.all_max >= 1
        assert min(self.address_max, self.loopback_max, self.few) >= 1
        assert 0 <= self.few_part < 1


class FrontSettings(Struct, frozen=True, kw_only=True):
    """Bounds of one connection of our HTTP server, as far as it reads requests itself. Times in seconds, sizes in
    bytes, and in brackets what a client hears."""

    head_bytes: int = 32 * 1024  # request line and fields (431)
    target_bytes: int = 8 * 1024  # (414)
    fields_max: int = 100  # (431)
    chunk_line_bytes: int = 128  # the size of a chunk and its extensions (400)
    framing_bytes: int = 4 * 2**20  # such lines of one body, and what follows the last chunk (400)
    ahead_bytes: int = 64 * 1024  # sent before the last answer was out; then the connection is not read
    linger_s: float = 5.0  # what a refused client still sends is thrown away so long, so that it can read why
    untaken_s: float = 60.0  # a client that takes nothing of what waits for it for so long is cut off,
    cut_at_once: int = 100  # so many such at one look: each ends a request, and others wait meanwhile
    head_s: float = 10.0  # from the first byte of a next request to the last of its head (408)
    crowd: CrowdSettings = CrowdSettings()  # connections; past it a quiet one makes way, or the new one is refused
    refused_s: float = 1.0  # (429, 503): what it still sends is thrown away so long, so that it can read why,
    refused_max: int = 64  # of so many at a time; more are closed at once

    def __post_init__(self) -> None:
        assert 0 < self.target_bytes < self.head_bytes
        assert self.chunk_line_bytes >= 16


class DoorSettings(Struct, frozen=True, kw_only=True):
    """Bounds of what peers send to be run here. Times in seconds, sizes in bytes, and in brackets what they hear."""

    body_limit_bytes: int = 33 * 2**20  # of one call: an edge takes 32 MiB from a client (bad_request)
    bodies_limit_bytes: int = 512 * 2**20  # of all calls that are open (node_busy)
    bodies_address_bytes: int = 512 * 2**20  # of one peer: as many
    body_timeout_s: float = 120.0  # for a peer to send its body (unreachable),
    body_grace_s: float = 10.0  # and after so long it must have come this fast, all in all: a path that carries
    body_bytes_per_s: int = 4096  # no more is of no use
    retry_after_s: float = 2.0  # told with node_busy

    def __post_init__(self) -> None:
        assert 0 < self.body_limit_bytes <= self.bodies_limit_bytes
        assert self.body_timeout_s > 0


class EngineSettings(Struct, frozen=True, kw_only=True):
    """Bounds of the engines and their workers. Times in seconds, sizes in bytes."""

    start_limit_s: float = 600.0  # from spawn to the first generated token
    health_every_s: float = 0.5  # how often a starting worker is asked whether it still lives
    connect_limit_s: float = 5.0
    first_block_limit_s: float = 300.0  # until the first SSE block, comments included
    silence_limit_s: float = 300.0  # between two blocks; one prefill step of a large model takes a minute
    probe_limit_s: float = 300.0  # an external server's first token: it may load its model first
    stats_limit_s: float = 2.0  # one question for counters
    stats_misses: int = 15  # unanswered questions in a row after which a worker counts as dead
    exit_notice_s: float = 2.0  # how long a broken stream waits to learn that its process has ended, and why
    worker_nice: int = 5  # below the daemon: heartbeats and other nodes' requests stay on time while all cores compute
    port_tries: int = 3  # somebody may take a free port between our look and the worker's bind

    tail_bytes: int = 16_384  # of a worker's output, read for the diagnosis
    error_bytes: int = 64 * 1024  # of an engine's error body
    block_bytes: int = 16 * 2**20  # one SSE block; a longer one is a failure
    post_bytes: int = 256 * 2**20  # answer of another endpoint (audio, images)

    external_slots: int = 4
    command_slots: int = 4
    mlx_slots: int = 4  # --decode-concurrency: answers that one worker generates side by side
    max_tokens: int = 32_768  # when the client sets none and the model's context is unknown
    prompt_cache_seqs: int = 1000  # many, because bytes are the bound that matters: ten lose agents' prefixes
    prompt_cache_bytes: int = 2**28  # for a spec that says no other
    buffer_bytes: int = 2**28  # freed GPU buffers a worker may keep; headroom budgets for them

    http: HttpSettings = HttpSettings()
    urls_max: int = 64  # of one server, kept taken apart

    def __post_init__(self) -> None:
        assert self.port_tries >= 1
        assert min(self.external_slots, self.command_slots, self.mlx_slots) >= 1
        assert self.stats_misses >= 1
