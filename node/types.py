"""The words every package shares: who a node is, what it holds, what it reports."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, NewType, TypeAlias

from msgspec import Meta, Struct

NodeId = NewType("NodeId", str)  # 16 hex digits, random, made once per home folder
RequestId = NewType("RequestId", str)  # given by the edge that accepted the request
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]


class Pressure(StrEnum):
    """How short of memory the machine says it is (macOS: kern.memorystatus_vm_pressure_level)."""

    NORMAL = "normal"
    WARN = "warn"
    CRITICAL = "critical"


class ModelState(StrEnum):
    """Where one model of one node is in its life. `ready` and `busy` can answer now."""

    ABSENT = "absent"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    FAILED = "failed"


class Resume(StrEnum):
    """How an answer that was cut can go on: from where it stopped, by running it again, or not at all."""

    CONTINUE = "continue"
    REPLAY = "replay"
    NO = "no"


class Usage(Struct, frozen=True):
    """Tokens of one answer. `cached` is the part of `prompt` that the engine did not have to read again."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


class Hardware(Struct, frozen=True, kw_only=True):
    """What the machine is. `bandwidth` in GB/s of memory, 0 when unknown."""

    chip: str = "unknown"
    memory_bytes: int = 0
    gpu_cores: int = 0
    bandwidth: float = 0.0


class Memory(Struct, frozen=True, kw_only=True):
    """Bytes that models may take on this machine, and take now."""

    budget_bytes: int = 0
    used_bytes: int = 0
    headroom_bytes: int = 0
    evictable_bytes: int | None = None  # what models hold that may be unloaded for another; None: none ever is
    pressure: Pressure = Pressure.NORMAL


class ModelReport(Struct, frozen=True, kw_only=True):
    """One model as its node reports it. The first block is MODEL of `mesh status --json`; the second is for peers."""

    name: str
    aliases: tuple[str, ...] = ()
    source: str = ""
    engine: str = "mlx-lm"
    fingerprint: str = ""
    state: ModelState = ModelState.ABSENT
    size_bytes: int = 0
    slots: int = 1
    in_flight: int = 0
    queue_depth: int = 0
    prefill_tps: float | None = None
    decode_tps: float | None = None
    resume: Resume = Resume.NO
    error: str | None = None

    own: bool = True  # stands in that node's stack file
    load_s: float = 0.0  # expected seconds from absent to ready
    retry_s: float | None = None  # seconds until a failed model is started again; None: not by itself
    cache_tokens: int = 0  # bounds of its prompt cache
    cache_seqs: int = 0
    context: int = 0  # longest prompt plus answer in tokens, 0 = unknown
    paths: tuple[str, ...] = ()  # what else it serves below /v1, besides chat/completions and completions
    fallback: tuple[str, ...] = ()  # names to try when this one cannot be had
    multiple_choices: bool = False  # serves n > 1

    # For people who look at this model: `models show`, `status`.
    reserved_bytes: int = 0  # what is kept for it of the budget now
    measured_bytes: int = 0  # what its process was last seen to take; 0 = not measured
    unloads_in_s: float | None = None  # until it leaves memory if nobody asks for it; None: it stays, or is not there
    progress: float | None = None  # of its download, 0 to 1
    waits_for: str = ""  # why it is not loaded yet: who is in its way
    last_error: str = ""  # of its latest failure, kept when it is well again


class RunningReport(Struct, frozen=True):
    """One request that a node has admitted, so that a new coordinator can count it."""

    id: RequestId
    attempt: int
    model: str
    started: bool  # False: still waiting inside the node
    age_s: float
    edge: NodeId = NodeId("")  # who carries it


class NodeReport(Struct, frozen=True, kw_only=True):
    """All a node says about itself on a link: exact, whole, sent on every change and every few seconds."""

    id: NodeId
    boot: str  # random per daemon start
    name: Annotated[str, Meta(max_length=256)]
    version: Annotated[str, Meta(max_length=256)]
    protocol: int
    priority: int
    uptime_s: float
    addresses: tuple[str, ...] = ()  # best first, without port; IPv6 link-local with scope
    port: Port = 4000
    peer_port: Port = 4001
    tls: bool = False  # `port` speaks https
    draining: bool = False
    drain_reason: str = ""
    hardware: Hardware = Hardware()
    memory: Memory = Memory()
    models: tuple[ModelReport, ...] = ()
    running: tuple[RunningReport, ...] = ()


class ModelStatus(Struct, frozen=True, kw_only=True):
    """One model of one node as the scheduler sees it."""

    name: str
    aliases: tuple[str, ...] = ()
    fingerprint: str = ""
    state: ModelState = ModelState.ABSENT
    own: bool = True
    slots: int = 1
    size_bytes: int = 0
    load_s: float = 0.0
    cache_tokens: int = 0
    cache_seqs: int = 0
    error: str = ""  # why it failed, or how its download goes, in words for people
    retry_s: float | None = None  # seconds until a failed one is started again; None: not by itself
    foreign_in_flight: int = 0  # the part of the node's own number that is known to run this model


class NodeStatus(Struct, frozen=True, kw_only=True):
    """One node as the scheduler sees it. `rtt_s` seconds there and back from here;
    `foreign_in_flight` requests it runs that this scheduler did not grant."""

    node: NodeId
    name: str = ""  # what people call it; messages use it
    chip: str = "unknown"
    bandwidth: float = 0.0
    headroom_bytes: int = 0
    evictable_bytes: int | None = None  # room that can be had there besides: it holds requests until it is; None: none
    pressure: Pressure = Pressure.NORMAL
    draining: bool = False
    rtt_s: float = 0.0
    foreign_in_flight: int = 0
    models: tuple[ModelStatus, ...] = ()


RESTART_WAIT_S = 5.0  # a failed model that is back sooner is a candidate like others, not only when there is no other


def _placeable(model: ModelReport) -> ModelState:
    """A crashed worker about to be started again is on its way, not lost: a request that has nobody else waits."""
    back_soon = model.state is ModelState.FAILED and model.retry_s is not None and model.retry_s <= RESTART_WAIT_S
    return ModelState.LOADING if back_soon else model.state


def status_of(report: NodeReport, rtt_s: float = 0.0, foreign_in_flight: int = 0) -> NodeStatus:
    """What the scheduler needs of a node's report."""
    models = tuple(
        ModelStatus(
            name=m.name,
            aliases=m.aliases,
            fingerprint=m.fingerprint,
            state=_placeable(m),
            own=m.own,
            slots=m.slots,
            size_bytes=m.size_bytes,
            load_s=m.load_s + (m.retry_s or 0.0),
            cache_tokens=m.cache_tokens,
            cache_seqs=m.cache_seqs,
            error=m.error or "",
            retry_s=None if m.engine == "external" else m.retry_s,  # Nobody knows when one that is not ours is back.
        )
        for m in report.models
    )
    return NodeStatus(
        node=report.id,
        name=report.name,
        chip=report.hardware.chip,
        bandwidth=report.hardware.bandwidth,
        headroom_bytes=report.memory.headroom_bytes,
        evictable_bytes=report.memory.evictable_bytes,
        pressure=report.memory.pressure,
        draining=report.draining,
        rtt_s=rtt_s,
        foreign_in_flight=foreign_in_flight,
        models=models,
    )
