"""What does an edge give each of its requests to work with?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from node.types import NodeId, RequestId, Usage
from router.events import Outcome, Request
from router.facts import RouteFact
from router.frames import CoordinatorFrame
from router.io.bodies import Bodies
from router.io.carry import Hop
from router.kept import Keep
from router.lately import Lately
from router.lengths import Lengths
from router.settings import EdgeSettings
from router.view import View


class Placing(Protocol):
    """The edge's side of router/io/dispatch.py."""

    def ask(
        self,
        request: Request,
        attempt: int,
        age_s: float,
        last_outcome: Outcome | None,
        on_answer: Callable[[CoordinatorFrame], None],
    ) -> None: ...

    def taken(self, request: RequestId, attempt: int) -> None: ...

    def first(self, request: RequestId, attempt: int, cached_tokens: int) -> None: ...

    def done(self, request: RequestId, attempt: int, outcome: Outcome, usage: Usage) -> None: ...

    def cancel(self, request: RequestId, attempt: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Means:
    """What every exchange of an edge works with. `hop` raises NodeError when there is no way to that node."""

    view: Callable[[], View]
    dispatch: Placing
    hop: Callable[[NodeId], Hop]
    bodies: Bodies
    keep: Keep
    lengths: Lengths
    lately: Lately
    settings: EdgeSettings
    report: Callable[[RouteFact], None]
    count: Callable[[str, int], None]
    limited: Callable[[str], None]
