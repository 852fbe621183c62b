"""A drill on its way: announces itself, stops one thing after another, waits until all is as before, and looks what
came of it. mesh/drill.py decides what is stopped and what counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from mesh import answers, drill
from mesh.client import MeshClientError
from mesh.drill import Asked, Fault, Plan, Report, Step, What
from mesh.errors import MeshError

LAST_MAX = 100_000  # routes in one answer


class RunSettings(Struct, frozen=True, kw_only=True):
    """How long a drill waits for what. Seconds."""

    away_s: float = 10.0  # a node is out of the mesh for
    look_s: float = 0.1
    hold_s: float = 5.0  # between two words that this drill still runs (DrillSettings.hold_s)
    begin_s: float = 120.0  # for each client's first answer: a model may have to be read by a slow disk
    ran_s: float = 10.0  # for something to run where the next fault comes
    whole_s: float = 180.0  # for all to be as before after a fault
    routes_s: float = 15.0  # for the routes of its requests to be on record


class Mesh(Protocol):
    """The part of MeshClient that this needs."""

    def mesh_status(self) -> answers.MeshStatus: ...
    def drill(
        self, ask: str, drill: str, *, node: str = "", model: str = "", for_s: float = 10.0
    ) -> answers.DrillAnswers: ...
    def drill_seen(self) -> tuple[answers.Seen, ...]: ...
    def routes(self, last: int) -> answers.Routes: ...


class Clients(Protocol):
    """The part of Load that this needs."""

    @property
    def asked(self) -> list[Asked]: ...
    @property
    def open(self) -> list[float]: ...
    def begin(self) -> None: ...
    def end(self) -> None: ...
    def abandon(self) -> None: ...


class Run:
    """One drill, `name` its id. `say` gets a line for each thing that happens. Times are time.monotonic()'s."""

    def __init__(
        self,
        mesh: Mesh,
        load: Clients,
        plan: Plan,
        *,
        name: str,
        clients: int,
        seconds: float,
        say: Callable[[str], None],
        settings: RunSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._mesh, self._load, self._plan, self._name = mesh, load, plan, name
        self._clients, self._seconds, self._say = clients, seconds, say
        self._settings = settings or RunSettings()
        self._clock, self._pause = clock, pause
        self._held_at = float("-inf")
        self._seen: dict[float, answers.Seen] = {}

    def run(self) -> Report:
        """Raises MeshError before anything is stopped, MeshClientError when this node's daemon is gone. However it
        ends, what was stopped comes back by itself."""
        before = self._mesh.mesh_status()
        try:
            self._announce()
            self._load.begin()
            self._warm_up()
            faults, left_out = self._faults(before)
            self._say("the clients finish what they have open")
            self._load.end()
            return self._report(before, faults, left_out)
        finally:
            self._load.abandon()
            with suppress(MeshClientError):
                self._mesh.drill("release", self._name)

    def _announce(self) -> None:
        """Raises MeshError: another drill runs, or a node that is to be stopped does not know drills."""
        said = self._mesh.drill("hold", self._name)
        self._held_at = self._clock()
        for answer in said.answers:
            if answer.why:
                raise MeshError("busy", f"{answer.node} says: {answer.why}", hint="wait until that one is over")
        silent = {node.id: node.node for node in said.silent}
        for step in self._plan.steps:
            if step.id in silent:
                hint = "update it, or name another node"
                raise MeshError("too_old", f"{step.node} does not answer: it is too old for drills", hint=hint)

    def _warm_up(self) -> None:
        """Raises MeshError when requests fail with everything running."""
        self._say(f"{self._clients} clients ask {self._plan.model}")
        self._until(lambda: len(self._load.asked) >= self._clients, self._settings.begin_s)
        asked = self._load.asked
        lost = next((a.lost for a in asked if a.lost), "" if asked else "no answer yet")
        if lost:
            hint = "nothing was stopped; `mlx-stack mesh routes` shows the requests"
            raise MeshError("unwell", f"requests fail before anything is stopped: {lost}", hint=hint)

    def _faults(self, before: answers.MeshStatus) -> tuple[list[Fault], dict[What, str]]:
        """What was carried out, and why the rest was not, by what it is."""
        faults: list[Fault] = []
        left_out = {step.what: step.left_out for step in self._plan.steps if step.left_out}
        for step in self._plan.steps:
            if step.left_out:
                self._say(f"{step.what}: left out, {step.left_out}")
                continue
            now, ran = self._due(step)
            fault, why = (None, now.left_out) if now.left_out else self._stopped(now, ran)
            if fault is None:
                left_out[step.what] = why
                self._say(f"{step.what}: left out, {why}")
                continue
            faults.append(self._watched(fault, before))
        return faults, left_out

    def _due(self, step: Step) -> tuple[Step, bool]:
        """`step` as it may be taken now, and whether something runs there, for which it waits a while."""
        limit_at = self._clock() + self._settings.ran_s
        while True:
            status = self._mesh.mesh_status()
            now = drill.afresh(step, self._plan, status)
            ran = not now.left_out and drill.runs_on(now, status)
            if ran or (not now.left_out and not now.model) or self._clock() > limit_at:
                return now, ran
            self._look()
            self._pause(self._settings.look_s)

    def _stopped(self, step: Step, ran: bool) -> tuple[Fault | None, str]:
        """Has it stopped; the fault, or why not."""
        ask = "worker" if step.what == "worker" else "node"
        said = self._mesh.drill(ask, self._name, node=step.id, model=step.model, for_s=self._settings.away_s)
        if not said.answers:
            return None, f"{step.node} does not answer"
        answer = said.answers[0]
        if answer.why:
            return None, f"{step.node} says: {answer.why}"
        self._say(drill.announced(step, self._settings.away_s))
        return Fault(step=step, at=answer.at + answer.in_s, ran=ran), ""

    def _watched(self, fault: Fault, before: answers.MeshStatus) -> Fault:
        """Goes on asking for the seconds that were wanted, and until all is as before and what was open when it struck
        has ended."""
        back_at: float | None = None
        ends_at = fault.at + self._seconds
        limit_at = ends_at + self._settings.whole_s
        away_at = fault.at + (0.0 if fault.step.what == "worker" else self._settings.away_s)
        while (now := self._clock()) < ends_at or (now < limit_at and (back_at is None or self._open_since(fault.at))):
            self._look()
            status = self._mesh.mesh_status()
            if drill.missing(before, status) or self._clock() < away_at:
                back_at = None
            elif back_at is None and self._noticed(fault):
                back_at = self._clock()
            self._pause(self._settings.look_s)
        self._say("all is as before" if back_at is not None else "not all is as before yet")
        return replace(fault, back_at=back_at)

    def _open_since(self, at: float) -> bool:
        """A request that was open then still is."""
        return any(began <= at for began in self._load.open)

    def _noticed(self, fault: Fault) -> bool:
        """This node has seen that it was stopped; or it is so long ago that it will not."""
        seen = any(s.at >= fault.at - 1.0 and s.node == fault.step.node for s in self._seen.values())
        return seen or self._clock() > fault.at + self._settings.ran_s

    def _look(self) -> None:
        """Takes down what this node has seen, and says that the drill still runs."""
        self._seen |= {seen.at: seen for seen in self._mesh.drill_seen()}
        if self._clock() - self._held_at >= self._settings.hold_s:
            self._held_at = self._clock()
            self._mesh.drill("hold", self._name)

    def _until(self, holds: Callable[[], bool], limit_s: float) -> bool:
        """False: it did not within `limit_s`."""
        end = self._clock() + limit_s
        while not holds():
            if self._clock() > end:
                return False
            self._look()
            self._pause(self._settings.look_s)
        return True

    def _report(self, before: answers.MeshStatus, faults: list[Fault], left_out: dict[What, str]) -> Report:
        asked, plan = self._load.asked, self._plan
        self._look()
        routes, wall_s = self._routes(asked), time.time() - time.monotonic()
        stopped = drill.judge(faults, asked, routes, list(self._seen.values()), wall_s)
        found = {step.what: step for step in stopped}
        steps = [
            found.get(s.what, drill.Stopped(what=s.what, node=s.node, left_out=left_out.get(s.what, "")))
            for s in plan.steps
        ]
        now = self._mesh.mesh_status()
        return Report(
            model=plan.model,
            edge=before.self_name,
            clients=self._clients,
            seconds=self._seconds,
            steps=tuple(steps),
            requests=len(asked),
            lost=sum(bool(a.lost) for a in asked),
            missing=drill.missing(before, now),
            changed=drill.changed(before, now),
        )

    def _routes(self, asked: list[Asked]) -> dict[str, answers.Route]:
        """By the ids of its requests, as soon as all are on record: routes are written in batches."""
        wanted = {a.id for a in asked}
        found: dict[str, answers.Route] = {}

        def recorded() -> bool:
            routes = self._mesh.routes(min(LAST_MAX, 2 * len(asked) + 100)).routes
            found.update({r.client_request_id: r for r in routes if r.client_request_id in wanted})
            return len(found) == len(wanted)

        self._until(recorded, self._settings.routes_s)
        return found
