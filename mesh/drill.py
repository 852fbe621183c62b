"""What a drill stops, one thing after another, and what came of it: the plan and the judgement. Pure.

Times are seconds on one machine's monotonic clock, that of the node where the drill runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal, TypeAlias, get_args

from msgspec import Struct
from msgspec.structs import replace

from mesh.answers import MeshStatus, Model, Node, Route, Seen
from mesh.errors import MeshError

What: TypeAlias = Literal["worker", "node", "coordinator"]
WHATS: tuple[What, ...] = get_args(What)
_SERVES = ("ready", "busy")
_EARLY_S = 0.05  # a fault may be seen so much before its node's answer: the two come by different ways


class Step(Struct, frozen=True, kw_only=True):
    """`what` is stopped on `node` (its name and `id`); `left_out` says why not, when it cannot be."""

    what: What
    node: str = ""
    id: str = ""
    model: str = ""  # MODEL.name there
    left_out: str = ""


class Plan(Struct, frozen=True, kw_only=True):
    """`model` is asked for, by a name that every node of `serve` answers to."""

    model: str
    steps: tuple[Step, ...]
    serve: tuple[str, ...]


class Asked(Struct, frozen=True, kw_only=True):
    """One request of the drill's own load. `lost` says why it was not answered, "" when it was; `pause_s` is the
    longest time in which its client heard nothing of a stream that had begun."""

    id: str
    began: float
    ended: float
    stream: bool
    lost: str = ""
    pause_s: float = 0.0


class Fault(Struct, frozen=True, kw_only=True):
    """A step that was carried out `at` a time. `back_at`: all was as before again."""

    step: Step
    at: float
    back_at: float | None = None
    ran: bool = False  # something of the drill's own was running there


class Stopped(Struct, frozen=True, kw_only=True):
    """What came of one step. Counts are of the requests it broke off, and of those that ended until the next one began
    and that none before had broken off. `detected_s` from the fault until this node knew, `handed_over_s` until the
    last request that ran there was on another node (and, with the coordinator, another one had taken over), `back_s`
    until all was as before; None: it was not seen."""

    what: What
    node: str = ""
    left_out: str = ""
    detected_s: float | None = None
    handed_over_s: float | None = None
    back_s: float | None = None
    pause_s: float = 0.0
    requests: int = 0
    lost: int = 0
    resumed: int = 0
    retried: int = 0
    why_lost: dict[str, int] = {}
    ran: bool = False


class Report(Struct, frozen=True, kw_only=True):
    """The whole drill. `requests` and `lost` include those before the first step. `missing`: what is not as before;
    `changed`: what is otherwise than before, and well."""

    model: str
    edge: str
    clients: int
    seconds: float
    steps: tuple[Stopped, ...]
    requests: int
    lost: int
    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return not self.lost and not self.missing


# Before


def plan(status: MeshStatus, named: Sequence[str], *, model: str = "", only: What | None = None) -> Plan:
    """What to stop where. Raises MeshError with one line of what to do."""
    if not status.mesh.enabled:
        raise MeshError("mesh_disabled", "the mesh is off on this node", hint="`mlx-stack mesh enable`")
    own = status.self_name
    nodes = tuple(dict.fromkeys(found(status, text) for text in named))
    others = [n for n in nodes if n.name != own]
    if not others:
        raise MeshError("self", "this node runs the drill and carries its requests", hint="name another node")
    model = model or _most_served(status)
    serve = _serve(status, model)
    if len(serve) < 2:
        who = f"only {next(iter(serve))} answers" if serve else "no node answers"
        hint = "load it on another node, or choose one with --model"
        raise MeshError("too_few", f"{who} for '{model}', so stopping a node would lose requests", hint=hint)
    well = [n for n in others if n.state == "ok"]
    steps = tuple(_step(what, status, well, serve) for what in WHATS if only in (None, what))
    if all(step.left_out for step in steps):
        why = "; ".join(dict.fromkeys(f"{step.what}: {step.left_out}" for step in steps))
        raise MeshError("nothing_to_stop", f"nothing of what is named can be stopped ({why})", hint="name other nodes")
    return Plan(model=model, steps=steps, serve=tuple(serve))


def _serve(status: MeshStatus, model: str) -> dict[str, Model]:
    return {n.name: m for n in status.nodes if (m := served(n, model)) is not None}


def _step(what: What, status: MeshStatus, well: Sequence[Node], serve: Mapping[str, Model]) -> Step:
    if what == "worker":
        return _worker(well, serve)
    return _node(well, serve) if what == "node" else _coordinator(status, well, serve)


def _worker(well: Sequence[Node], serve: Mapping[str, Model]) -> Step:
    can = [n for n in well if n.name in serve and serve[n.name].engine != "external"]
    if not can:
        return Step(what="worker", left_out="no node that is named serves the model with a process of its own")
    node = min(can, key=lambda n: n.coordinator)
    return Step(what="worker", node=node.name, id=node.id, model=serve[node.name].name)


def _node(well: Sequence[Node], serve: Mapping[str, Model]) -> Step:
    can = [n for n in well if not n.coordinator]
    if not can:
        return Step(what="node", left_out="no node is named but the coordinator")
    node = min(can, key=lambda n: n.name not in serve)
    return Step(what="node", node=node.name, id=node.id, model=serve[node.name].name if node.name in serve else "")


def _coordinator(status: MeshStatus, well: Sequence[Node], serve: Mapping[str, Model]) -> Step:
    node = next((n for n in well if n.coordinator), None)
    if node is not None:
        model = serve[node.name].name if node.name in serve else ""
        return Step(what="coordinator", node=node.name, id=node.id, model=model)
    who = status.mesh.coordinator
    if who is None:
        return Step(what="coordinator", left_out="nobody coordinates now")
    why = "this node coordinates" if who == status.self_name else f"{who} coordinates, and was not named"
    return Step(what="coordinator", left_out=why)


def found(status: MeshStatus, text: str) -> Node:
    """The node a person means: its name, or at least 4 digits of its id. Raises MeshError."""
    wanted = text.strip().lower()
    for matches in (
        [n for n in status.nodes if wanted in (n.name.lower(), n.id)],
        [n for n in status.nodes if len(wanted) >= 4 and n.id.startswith(wanted)],
    ):
        if len(matches) == 1:
            return matches[0]
    there = ", ".join(sorted(n.name for n in status.nodes))
    raise MeshError("unknown_node", f"no node '{text}' in this mesh; there is: {there}")


def served(node: Node, name: str) -> Model | None:
    """The model of this name or alias, when the node would answer with it now."""
    if node.state != "ok":
        return None
    return next((m for m in node.models if name in (m.name, *m.aliases) and m.state in _SERVES), None)


def _most_served(status: MeshStatus) -> str:
    """The model that the most nodes serve; of several the smallest, which is the quickest to ask."""
    sizes: dict[str, list[int]] = {}
    for node in status.nodes:
        for model in node.models:
            if served(node, model.name) is not None:
                sizes.setdefault(model.name, []).append(model.size_bytes)
    if not sizes:
        raise MeshError("too_few", "no node has a model ready", hint="`mlx-stack models load NAME`")
    return min(sizes, key=lambda name: (-len(sizes[name]), max(sizes[name]), name))


def announced(step: Step, away_s: float) -> str:
    """What will be done to which node, for who is asked whether it may."""
    alone = "programs that use its own port have only its own models meanwhile"
    match step.what:
        case "worker":
            return f"kill the model server of {step.model} on {step.node}; it is begun again by itself"
        case "node":
            return f"cut {step.node} off the mesh for {away_s:.0f} s, as if it had crashed; {alone}"
        case "coordinator":
            return f"cut {step.node}, which coordinates, off the mesh for {away_s:.0f} s, as if it had crashed; {alone}"


def afresh(step: Step, plan: Plan, status: MeshStatus) -> Step:
    """`step` as it may be taken now: as it was planned; or, when another node has that part by now, there, if the same
    was announced of that node; else left out."""
    why = impossible(step, plan, status)
    if not why:
        return step
    same = {s.id for s in plan.steps if s.id and (s.what == "worker") == (step.what == "worker")}
    well = [n for n in status.nodes if n.id in same and n.state == "ok"]
    other = _step(step.what, status, well, _serve(status, plan.model))
    return replace(step, left_out=why) if other.left_out or impossible(other, plan, status) else other


def impossible(step: Step, plan: Plan, status: MeshStatus) -> str:
    """Why `step` must not be taken now, though it could be when it was planned; "" when it may."""
    node = next((n for n in status.nodes if n.id == step.id), None)
    if node is None or node.state != "ok":
        return f"{step.node} is {node.state if node else 'gone'}"
    others = [n for n in status.nodes if n.id != step.id and served(n, plan.model) is not None]
    if not others:
        return f"no other node would answer for {plan.model}"
    if step.what == "coordinator" and not node.coordinator:
        return f"{step.node} does not coordinate any more"
    if step.what == "node" and node.coordinator:
        return f"{step.node} coordinates now"
    if step.what == "worker" and not any(m.name == step.model and m.state in _SERVES for m in node.models):
        return f"{step.model} is not ready on {step.node}"
    return ""


def runs_on(step: Step, status: MeshStatus) -> bool:
    """Something runs there of what the step is about."""
    node = next((n for n in status.nodes if n.id == step.id), None)
    return node is not None and any(m.in_flight for m in node.models if step.model in ("", m.name))


# After


def missing(before: MeshStatus, now: MeshStatus) -> tuple[str, ...]:
    """What was there before and is not now. A model that was unloaded meanwhile, unused, is loaded when asked for: a
    drill unloads none."""
    lacks = [] if now.mesh.coordinator is not None else ["nobody coordinates"]
    there = {n.id: n for n in now.nodes}
    for node in before.nodes:
        if node.state != "ok":
            continue
        again = there.get(node.id)
        if again is None or again.state != "ok":
            lacks.append(f"{node.name} is {again.state if again else 'gone'}")
            continue
        states = {m.name: m.state for m in again.models}
        lacks += [
            f"{m.name} on {node.name} is {states.get(m.name, 'gone')}"
            for m in node.models
            if m.state in _SERVES and states.get(m.name) not in (*_SERVES, "absent")
        ]
    return tuple(lacks)


def changed(before: MeshStatus, now: MeshStatus) -> tuple[str, ...]:
    """What is otherwise than before, without harm."""
    then, who = before.mesh.coordinator, now.mesh.coordinator
    return () if then == who or who is None else (f"{who} coordinates now, {then} did before",)


def judge(
    faults: Sequence[Fault],
    asked: Iterable[Asked],
    routes: Mapping[str, Route],
    seen: Sequence[Seen],
    wall_s: float,
) -> list[Stopped]:
    """What came of each fault. `routes` by the ids of `asked`; `wall_s` is what a wall clock's time is ahead of the
    monotonic one."""
    theirs: list[list[Asked]] = [[] for _ in faults]
    for one in asked:
        if (number := _whose(one, routes.get(one.id), faults)) is not None:
            theirs[number].append(one)
    ends = [*(fault.at for fault in faults[1:]), float("inf")][: len(faults)]
    return [
        _judged(fault, mine, routes, [s for s in seen if fault.at - _EARLY_S <= s.at < end], wall_s)
        for fault, mine, end in zip(faults, theirs, ends, strict=True)
    ]


def _whose(one: Asked, route: Route | None, faults: Sequence[Fault]) -> int | None:
    """The number of the fault that a request counts with: the first that broke it off, else the last before its end."""
    broke = {a.node for a in route.attempts if a.outcome == "failed"} if route is not None else set()
    for number, fault in enumerate(faults):
        if one.began <= fault.at <= one.ended and fault.step.node in broke:
            return number
    before = [number for number, fault in enumerate(faults) if fault.at <= one.ended]
    return before[-1] if before else None


def _judged(
    fault: Fault, mine: Sequence[Asked], routes: Mapping[str, Route], seen: Sequence[Seen], wall_s: float
) -> Stopped:
    step = fault.step
    known = [routes[a.id] for a in mine if a.id in routes]
    moved = [at for route in known if (at := _moved(route, step.node, wall_s)) is not None and at >= fault.at]
    signs = [s.at for s in seen if _tells(s, step)]
    if step.what == "coordinator":
        moved += [s.at for s in seen if s.kind == "coordinator" and s.node not in ("", step.node)][:1]
    lost = [a for a in mine if a.lost]
    return Stopped(
        what=step.what,
        node=step.node,
        detected_s=_after(fault.at, min([*signs, *moved], default=None)),
        handed_over_s=_after(fault.at, max(moved, default=None)),
        back_s=None if fault.back_at is None else round(fault.back_at - fault.at, 3),
        pause_s=round(max((a.pause_s for a in mine), default=0.0), 3),
        requests=len(mine),
        lost=len(lost),
        resumed=sum(r.outcome == "resumed" for r in known),
        retried=sum(r.outcome == "ok" and any(a.outcome == "failed" for a in r.attempts) for r in known),
        why_lost=dict(Counter(a.lost for a in lost)),
        ran=fault.ran,
    )


def _tells(seen: Seen, step: Step) -> bool:
    """It shows that what the step stopped is stopped."""
    if step.what == "worker":
        return (seen.kind, seen.node, seen.model) == ("lost", step.node, step.model)
    succeeded = step.what == "coordinator" and seen.kind == "coordinator" and seen.node != step.node
    return succeeded or (seen.kind, seen.node) == ("gone", step.node)


def _moved(route: Route, node: str, wall_s: float) -> float | None:
    """When the attempt that answered began, of a request that an attempt on `node` had broken off before."""
    if not route.attempts or route.attempts[-1].outcome != "ok":
        return None
    if not any(a.node == node and a.outcome == "failed" for a in route.attempts[:-1]):
        return None
    ended = datetime.fromisoformat(route.at).timestamp() - wall_s + route.total_ms / 1e3
    return ended - route.attempts[-1].ms / 1e3


def _after(at: float, then: float | None) -> float | None:
    return None if then is None else round(max(0.0, then - at), 3)
