"""What the admin API answers, as its readers see it (DESIGN section 4). Unknown fields are ignored, missing ones have
defaults, so that a command and a daemon of two versions understand each other."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Model(Struct, frozen=True, kw_only=True):
    """MODEL. Speeds in tokens per second, None while unmeasured."""

    name: str
    aliases: tuple[str, ...] = ()
    source: str = ""
    engine: str = ""
    fingerprint: str = ""
    state: str = "absent"
    size_bytes: int = 0
    slots: int = 0
    in_flight: int = 0
    queue_depth: int = 0
    prefill_tps: float | None = None
    decode_tps: float | None = None
    resume: str = "no"
    error: str | None = None


class ModelDetails(Model, frozen=True, kw_only=True):
    """What its own node tells besides. Times in seconds, sizes in bytes; `progress` of a download, 0 to 1."""

    reserved_bytes: int = 0
    measured_bytes: int = 0
    unloads_in_s: float | None = None
    progress: float | None = None
    waits_for: str = ""
    last_error: str = ""
    load_s: float = 0.0
    context: int = 0
    paths: tuple[str, ...] = ()
    fallback: tuple[str, ...] = ()


class Event(Struct, frozen=True, kw_only=True):
    """EVENT: what happened to this node (`model` "") or a model of it. `at` RFC 3339 UTC."""

    at: str
    kind: str
    model: str = ""
    text: str = ""
    data: dict[str, Any] = {}


class Hardware(Struct, frozen=True, kw_only=True):
    chip: str = "unknown"
    memory_bytes: int = 0
    gpu_cores: int = 0


class Memory(Struct, frozen=True, kw_only=True):
    budget_bytes: int = 0
    used_bytes: int = 0
    headroom_bytes: int = 0
    pressure: str = "normal"


class Node(Struct, frozen=True, kw_only=True):
    """NODE."""

    name: str
    id: str
    state: str = "ok"
    reason: str = ""
    coordinator: bool = False
    far: bool = False
    priority: int = 0
    uptime_s: float = 0.0
    addresses: tuple[str, ...] = ()
    version: str = ""
    via: str = ""
    rtt_ms: float | None = None
    hardware: Hardware = Hardware()
    memory: Memory = Memory()
    queue_depth: int = 0
    in_flight: int = 0
    models: tuple[Model, ...] = ()


class OwnNode(Node, frozen=True, kw_only=True):
    models: tuple[ModelDetails, ...] = ()


class Mesh(Struct, frozen=True, kw_only=True):
    name: str = ""
    id: str = ""
    enabled: bool = False
    coordinator: str | None = None
    term: int = 0
    url: str = ""
    alone: bool = True
    queue_depth: int = 0
    in_flight: int = 0


class Trust(Struct, frozen=True, kw_only=True):
    """For how many seconds nodes may still join by themselves (0: not at all), and by node id the numbers that people
    compare: of who waits, and of who joined by itself."""

    window_s: float = 0.0
    checks: dict[str, str] = {}


class MeshStatus(Struct, frozen=True, kw_only=True, rename={"self_name": "self"}):
    """`mesh status --json`; `self_name` is `self` there. `notes` are sentences for people."""

    mesh: Mesh = Mesh()
    trust: Trust = Trust()
    self_name: str = ""
    nodes: tuple[Node, ...] = ()
    notes: tuple[str, ...] = ()


class Running(Struct, frozen=True, kw_only=True):
    """A machine of the tailnet that runs a node. `name` is what `mesh add` takes; `added`: it is known here already."""

    name: str
    node: str = ""
    id: str = ""
    mesh: str = ""
    version: str = ""
    address: str = ""
    added: bool = False


class Status(Struct, frozen=True, kw_only=True):
    """GET /v1/status: this daemon. `started_at` RFC 3339 UTC."""

    version: str = ""
    pid: int = 0
    home: str = ""
    started_at: str = ""
    uptime_s: float = 0.0
    url: str = ""
    port: int = 0
    peer_port: int = 0
    no_stack: bool = False
    message: str = ""
    warnings: tuple[str, ...] = ()
    mesh: MeshStatus | None = None
    node: OwnNode | None = None


class Key(Struct, frozen=True, kw_only=True):
    """A key of a client. `created` RFC 3339 UTC."""

    id: str
    name: str
    created: str = ""


class NewKey(Key, frozen=True, kw_only=True):
    """POST /v1/keys: with its text, which is told once."""

    key: str


class Keys(Struct, frozen=True, kw_only=True):
    """GET /v1/keys. `needed`: clients on other machines are refused without one. `revoked`: how many were."""

    needed: bool = False
    keys: tuple[Key, ...] = ()
    revoked: int = 0


class RevokedKey(Struct, frozen=True, kw_only=True):
    """`left`: how many keys count still."""

    revoked: str
    id: str = ""
    left: int = 0


class Attempt(Struct, frozen=True, kw_only=True):
    node: str
    outcome: str
    error: str | None = None
    ms: float = 0.0
    mode: str = "start"
    cut: bool = False


class Term(Struct, frozen=True, kw_only=True):
    name: str
    seconds: float
    why: str = ""


class Candidate(Struct, frozen=True, kw_only=True):
    node: str
    model: str = ""
    total_s: float | None = None
    terms: tuple[Term, ...] = ()
    excluded: str | None = None


class Decision(Struct, frozen=True, kw_only=True):
    request: dict[str, Any] = {}
    chosen: str | None = None
    waited_ms: float = 0.0
    candidates: tuple[Candidate, ...] = ()


class Route(Struct, frozen=True, kw_only=True):
    """ROUTE. Times in ms; `at` RFC 3339 UTC."""

    id: str
    client_request_id: str | None = None
    at: str = ""
    edge: str = ""
    node: str | None = None
    coordinator: str | None = None
    model: str = ""
    served_model: str | None = None
    stream: bool = False
    status: int = 0
    outcome: str = ""
    queue_ms: float = 0.0
    ttft_ms: float | None = None
    total_ms: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    attempts: tuple[Attempt, ...] = ()
    decision: Decision | None = None
    resumable: bool = True
    lost: str | None = None
    key: str | None = None  # the name of its client's


class DrillAnswer(Struct, frozen=True, kw_only=True):
    """What a node said to a question of a drill: `why` not, or ""; it happens `in_s` seconds after `at`, the time of
    its answer on this machine's monotonic clock."""

    node: str
    id: str = ""
    why: str = ""
    at: float = 0.0
    in_s: float = 0.0


class DrillAnswers(Struct, frozen=True, kw_only=True):
    """POST /v1/mesh/drill. `silent`: those that did not answer."""

    answers: tuple[DrillAnswer, ...] = ()
    silent: tuple[DrillAnswer, ...] = ()


class Seen(Struct, frozen=True, kw_only=True):
    """What this node saw become of another, `at` on this machine's monotonic clock: it is "gone" or "back", has become
    the "coordinator" (`node` "": nobody), or its `model` is "lost" or "ready"."""

    at: float
    kind: str
    node: str = ""
    model: str = ""
    text: str = ""


class Routes(Struct, frozen=True, kw_only=True):
    """`mesh routes --json`."""

    routes: tuple[Route, ...] = ()
    unreachable: tuple[str, ...] = ()
