"""Small fleets of qwens for the Scheduler and the desk, and what is asked of them."""

from __future__ import annotations

import random

from msgspec import structs

from node.types import ModelState, ModelStatus, NodeId, NodeStatus, RequestId
from router.events import Grant, NodeUp, Refuse, Request, SchedulerEffect, Submit
from router.schedule import Scheduler
from router.settings import RouterSettings

GB = 10**9


def model(name: str = "qwen", /, **changes: object) -> ModelStatus:
    base = ModelStatus(name=name, state=ModelState.READY, slots=2, size_bytes=4 * GB, load_s=5.0)
    return structs.replace(base, **changes)


def node(name: str, *models: ModelStatus, **changes: object) -> NodeStatus:
    base = NodeStatus(
        node=NodeId(name), name=name, bandwidth=200.0, headroom_bytes=10 * GB, models=models or (model(),)
    )
    return structs.replace(base, **changes)


def serving(name: NodeId, slots: int) -> NodeStatus:
    """A node that has its model loaded, and memory for no other."""
    return node(name, model(slots=slots), headroom_bytes=0)


def ask(name: str, *models: str, **changes: object) -> Submit:
    base = Request(id=RequestId(name), models=models or ("qwen",), prompt_tokens=100, max_tokens=50)
    return Submit(structs.replace(base, **changes))


def scheduler(*statuses: NodeStatus, now: float = 0.0, **bounds: object) -> Scheduler:
    """One that knows of them since `now`; `bounds` are of RouterSettings."""
    made = Scheduler(structs.replace(RouterSettings(), **bounds), random.Random(1))
    for status in statuses:
        assert made.step(NodeUp(status), now) == []
    return made


def granted(effects: list[SchedulerEffect]) -> list[tuple[str, str]]:
    """(request, node) of each; nothing else may have happened."""
    assert all(isinstance(e, Grant) for e in effects), effects
    return [(e.id, e.node) for e in effects if isinstance(e, Grant)]


def refused(effects: list[SchedulerEffect]) -> Refuse:
    """The one thing that happened."""
    [effect] = effects
    assert isinstance(effect, Refuse), effect
    return effect
