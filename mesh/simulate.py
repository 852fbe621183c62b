"""`mesh simulate`: what this mesh, or another one, would do with recorded requests. Fleets and jobs from what people
have (a mesh's status, a file, a chip's name; a trace, recorded routes), replayed by router/replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from random import Random

import msgspec
import yaml
from msgspec import Struct, structs

from mesh import answers, values
from mesh.errors import MeshError
from node import chips
from node.headroom import default_budget
from node.types import Hardware
from router.replay.machines import Machine, Served, served
from router.replay.peers import LeastInFlight, RoundRobin
from router.replay.result import Result, result
from router.replay.shipped import Knows, Shipped
from router.replay.trace import Job, Row, Trace, arrive, jobs_of, parse
from router.replay.world import Policy, World
from router.settings import RouterSettings

POLICIES = ("mlx-stack", "least in flight", "round robin")
BLOCK_TOKENS = 64  # in which recorded prompts are compared
CACHE_PART = 0.25  # of what models may take, for prompt caches
SIZE_UNKNOWN = 4_000_000_000  # bytes of a model that nobody knows the size of
BANDWIDTH_UNKNOWN = 50.0  # GB/s where the hardware does not say
GONE = ("dead", "incompatible", "waiting")
SEED = 1


class Replayed(Struct, frozen=True, kw_only=True):
    """One fleet under one policy."""

    fleet: str
    policy: str
    result: Result


class Simulation(Struct, frozen=True, kw_only=True):
    """All of it. `rate` calls a second; None: all at once. `notes` are sentences for people."""

    requests: int
    rate: float | None
    models: dict[str, int]
    runs: tuple[Replayed, ...]
    notes: tuple[str, ...] = ()


# Fleets


def fleet_of_status(status: answers.MeshStatus) -> list[Machine]:
    """The nodes that are there, with the speeds they have measured."""
    machines = []
    for node in status.nodes:
        if node.state in GONE or not node.models:
            continue
        hardware = Hardware(
            chip=node.hardware.chip,
            memory_bytes=node.hardware.memory_bytes,
            bandwidth=chips.bandwidth(node.hardware.chip, node.hardware.memory_bytes, node.hardware.gpu_cores),
        )
        budget = node.memory.budget_bytes or default_budget(node.hardware.memory_bytes)
        rtt_s = (node.rtt_ms or 0.0) / 1000
        machines.append(_machine(node.name, hardware, budget, _loaded_first(node.models), rtt_s=rtt_s))
    if not machines:
        raise MeshError("no_fleet", "no node of this mesh has a model: name machines with --fleet FILE")
    return machines


def _loaded_first(models: Sequence[answers.Model]) -> list[answers.Model]:
    return sorted(models, key=lambda m: m.state not in ("ready", "busy"))


def _machine(
    name: str, hardware: Hardware, budget_bytes: int, models: Sequence[answers.Model], *, rtt_s: float = 0.002
) -> Machine:
    """All models in memory together where they fit, else one at a time."""
    bandwidth = hardware.bandwidth or BANDWIDTH_UNKNOWN
    taken = sum(m.size_bytes or SIZE_UNKNOWN for m in models)
    return Machine(
        name=name,
        chip=hardware.chip,
        bandwidth=bandwidth,
        memory_bytes=hardware.memory_bytes,
        slots=max((m.slots for m in models if m.slots > 0), default=8),
        rtt_s=rtt_s,
        resident=taken <= budget_bytes,
        models=tuple(_served(m, bandwidth, budget_bytes) for m in models),
    )


def _served(model: answers.Model, bandwidth: float, budget_bytes: int) -> Served:
    return served(
        model.name,
        model.size_bytes or SIZE_UNKNOWN,
        bandwidth=bandwidth,
        prefill_tps=model.prefill_tps,
        decode_tps=model.decode_tps,
        cache_bytes=CACHE_PART * budget_bytes,
    )


class _MachineInFile(Struct, forbid_unknown_fields=True):
    mac: str
    name: str = ""
    models: tuple[str, ...] = ()
    slots: int = 8


class _FleetFile(Struct, forbid_unknown_fields=True):
    models: dict[str, int | str]
    machines: tuple[_MachineInFile | str, ...]


def fleet_of_file(path: Path) -> list[Machine]:
    """A fleet in YAML (docs/operations.md), or what `mesh status --json` printed. Raises MeshError."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and "nodes" in data:
            return fleet_of_status(msgspec.convert(data, answers.MeshStatus))
        return _fleet(msgspec.convert(data, _FleetFile))
    except OSError as error:
        raise MeshError("no_fleet", f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise MeshError("bad_fleet", f"{path} is no fleet: {error}") from error


def _fleet(found: _FleetFile) -> list[Machine]:
    known = {name: answers.Model(name=name, size_bytes=values.size(size)) for name, size in found.models.items()}
    machines = []
    for entry in found.machines:
        one = _MachineInFile(mac=entry) if isinstance(entry, str) else entry
        if unknown := [name for name in one.models if name not in known]:
            raise ValueError(f"{one.name or one.mac}: models: there is no {', '.join(unknown)}")
        wanted = [known[name] for name in one.models] or list(known.values())
        machine = built(one.mac, wanted, name=one.name)
        machines.append(structs.replace(machine, slots=max(1, one.slots)))
    if not machines:
        raise ValueError("machines: there is none")
    return machines


def built(written: str, models: Sequence[answers.Model], name: str = "") -> Machine:
    """A machine like "M4 Max 64GB" that serves those of `models` that fit there. Raises ValueError."""
    hardware = chips.parse(written)
    budget = default_budget(hardware.memory_bytes)
    fitting = [m for m in models if (m.size_bytes or SIZE_UNKNOWN) <= budget]
    if not fitting:
        raise ValueError(f"{written}: none of the models fits there")
    return _machine(name or written, hardware, budget, fitting)


def with_added(fleet: Sequence[Machine], written: Sequence[str], asked: Mapping[str, int]) -> list[Machine]:
    """`fleet` and further machines, which serve what fits of its models, the most asked for first."""
    known = {m.name: answers.Model(name=m.name, size_bytes=m.size_bytes) for machine in fleet for m in machine.models}
    models = sorted(known.values(), key=lambda m: -asked.get(m.name, 0))
    added = []
    for text in written:
        try:
            added.append(built(text, models, name=f"+ {text}"))
        except ValueError as error:
            raise MeshError("bad_machine", f"--add {text!r}: {error}") from error
    return [*fleet, *added]


# Requests


def trace_of_routes(routes: Sequence[answers.Route]) -> Trace:
    """What this mesh has carried, in the order it came. Raises MeshError when there is nothing.

    Routes hold no prompts. One that found part of its prompt cached is taken to go on from the latest earlier one of
    the same model and node that was long enough.
    """
    good = [r for r in routes if r.outcome in ("ok", "resumed") and r.prompt_tokens > 0 and r.completion_tokens > 0]
    if not good:
        raise MeshError(
            "nothing_recorded", "this mesh has carried no request yet that can be replayed: name --trace FILE"
        )
    good.sort(key=lambda r: r.at)
    began = _seconds(good[0].at)
    rows: list[Row] = []
    latest: dict[tuple[str, str | None], list[tuple[int, ...]]] = {}
    fresh = 0
    for route in good:
        model = route.served_model or route.model
        earlier = latest.setdefault((model, route.node), [])
        shared = route.cached_tokens // BLOCK_TOKENS
        start = next((blocks for blocks in reversed(earlier) if len(blocks) >= shared), ()) if shared else ()
        more = route.prompt_tokens // BLOCK_TOKENS - len(start[:shared])
        blocks = (*start[:shared], *range(fresh, fresh + max(0, more)))
        fresh += max(0, more)
        earlier.append(blocks)
        at = max(0.0, _seconds(route.at) - began)
        rows.append(Row(at, route.prompt_tokens, route.completion_tokens, blocks, m=model))
    return Trace("recorded", tuple(rows), BLOCK_TOKENS)


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


def trace_of_file(path: Path) -> Trace:
    """A trace as docs/operations.md has it. Raises MeshError."""
    try:
        return parse(path.stem, path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MeshError("no_trace", f"{path}: {error.strerror or error}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise MeshError("bad_trace", f"{path} is no trace: {error}") from error


def replayable(trace: Trace, fleet: Sequence[Machine], limit: int) -> tuple[Trace, list[str]]:
    """The first `limit` calls of models that somebody has, and what had to be left out."""
    served_here = {m.name for machine in fleet for m in machine.models}
    kept = [row for row in trace.rows if not row.m or row.m in served_here]
    lost = sorted({row.m for row in trace.rows} - served_here - {""})
    notes = []
    if lost:
        notes.append(f"left out: {len(trace.rows) - len(kept)} requests for {', '.join(lost)}, which no machine has")
    if not kept:
        raise MeshError("no_model", f"no machine has a model that was asked for: {', '.join(lost)}")
    return Trace(trace.name, tuple(kept[:limit]), trace.block), notes


# Replays


def simulate(
    trace: Trace,
    fleets: Mapping[str, Sequence[Machine]],
    *,
    rate: float | None = None,
    notes: Sequence[str] = (),
) -> Simulation:
    """Every fleet under every policy, with the same requests at the same times. `rate` None: as they came."""
    first = next(iter(fleets.values()))
    mix: dict[str, float] = {}
    for machine in first:
        mix[machine.home.name] = mix.get(machine.home.name, 0.0) + 1.0
    span = trace.rows[-1].t - trace.rows[0].t
    rate = rate or (len(trace.rows) / span if span > 0 else float("inf"))
    runs, models = [], dict[str, int]()
    for name, fleet in fleets.items():
        for policy in POLICIES:
            jobs = jobs_of(trace, mix, len(trace.rows), _rng())
            arrive(trace, jobs, rate, _rng(), _rng())
            models = _count(jobs)
            world = World(fleet, jobs, _policy(policy))
            runs.append(Replayed(fleet=name, policy=policy, result=result(world.run())))
    return Simulation(
        requests=len(trace.rows),
        rate=None if rate == float("inf") else rate,
        models=models,
        runs=tuple(runs),
        notes=tuple(notes),
    )


def _policy(name: str) -> Policy:
    if name == "mlx-stack":
        return Shipped(RouterSettings(), _rng(), Knows(bandwidth_error=0.0))
    return LeastInFlight(_rng()) if name == "least in flight" else RoundRobin(_rng())


def _rng() -> Random:
    return Random(SEED)  # noqa: S311 - a replay is the same each time


def asked(trace: Trace) -> dict[str, int]:
    """How often each model was asked for by name."""
    counts: dict[str, int] = {}
    for row in trace.rows:
        if row.m:
            counts[row.m] = counts.get(row.m, 0) + 1
    return counts


def _count(jobs: Sequence[Job]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.model] = counts.get(job.model, 0) + 1
    return counts
