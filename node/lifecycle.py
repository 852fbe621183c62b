"""One model on this node: absent -> loading -> ready -> draining -> absent, or failed and started again later.

Pure: the shell tells it what happened and performs its effects. Two rules hold whatever happens: after `Start` the
next `Start` comes only when `Gone` was told, and after each end of a worker a `Stop` asks the shell to make sure of it.
"""

from __future__ import annotations

from typing import TypeAlias, assert_never

from msgspec import Struct

from node.settings import NodeSettings
from node.types import ModelState

# Events


class Wanted(Struct, frozen=True):
    """It should be in memory. `afresh` (`models load`): earlier failures no longer count."""

    afresh: bool = False


class Unwanted(Struct, frozen=True):
    """It should leave memory; what it is answering may finish first (tell `Quiet` then). `cause`: of ModelFact."""

    why: str
    cause: str = ""


class Evicted(Struct, frozen=True):
    """It leaves memory now; nothing is in flight. `again`: somebody waits for it already, so it comes back."""

    why: str
    again: bool = False
    cause: str = ""


class Begun(Struct, frozen=True):
    """After `Start`: its memory is reserved and it is its turn to load; the limit of a start counts from here."""


class NoRoom(Struct, frozen=True):
    """Answer to `Start`: not started, because its memory could not be reserved."""

    why: str


class Started(Struct, frozen=True):
    """It has generated a token, `load_s` seconds after its `Start`."""

    load_s: float


class StartFailed(Struct, frozen=True):
    why: str


class Exited(Struct, frozen=True):
    """A ready worker ended by itself, hangs, or cannot answer any more."""

    why: str


class Quiet(Struct, frozen=True):
    """Nothing is in flight."""


class Gone(Struct, frozen=True):
    """Answer to `Stop`: the pid is gone and its memory released."""


class Tick(Struct, frozen=True):
    pass


LifecycleEvent: TypeAlias = (
    Wanted | Unwanted | Evicted | Begun | NoRoom | Started | StartFailed | Exited | Quiet | Gone | Tick
)

# Effects


class Start(Struct, frozen=True):
    """Reserve its memory and start a worker. Answered by `Started`, `StartFailed` or `NoRoom`."""


class Stop(Struct, frozen=True):
    """End the worker, running or half started or dead already, and answer `Gone`."""


class Changed(Struct, frozen=True):
    """`retry_s` seconds until the next start, with FAILED; None then means: not before `Wanted(afresh=True)`."""

    state: ModelState
    why: str = ""
    load_s: float | None = None
    retry_s: float | None = None
    cause: str = ""  # why it leaves memory, in one word


LifecycleEffect: TypeAlias = Start | Stop | Changed


class Lifecycle:
    """`state` is ABSENT, LOADING, READY, DRAINING or FAILED; `why` says how it got there, when that needs saying.

    `gives_up`: one that fails too often is not started again. A server that is not ours is only asked, for as long as
    it is wanted.
    """

    def __init__(self, settings: NodeSettings, *, gives_up: bool = True) -> None:
        self._settings, self._gives_up = settings, gives_up
        self.state = ModelState.ABSENT
        self.why = ""
        self._cause = ""
        self.deadline: float | None = None  # of a start, of the next restart, or of the proof of health
        self.retry_at: float | None = None  # when a failed model is started again; None: not by itself
        self._wanted = False
        self._worker = False
        self._ending = False  # Stop was said, Gone is awaited
        self._row = 0  # failures since it was last healthy
        self._recent: list[float] = []  # their times, within the flapping window

    @property
    def has_worker(self) -> bool:
        """There is, or may be, a process: between `Start` and `Gone`."""
        return self._worker

    @property
    def emptied(self) -> bool:
        """Its unloading has gone so far that nothing can stop it: wanted now, it starts again after that."""
        return self.state is ModelState.DRAINING and self._ending

    @property
    def comes_back(self) -> bool:
        """It is being unloaded, and wanted again."""
        return self.state is ModelState.DRAINING and self._wanted

    @property
    def _starting(self) -> bool:
        return self.state is ModelState.LOADING and self._worker and not self._ending

    def step(self, event: LifecycleEvent, now: float) -> list[LifecycleEffect]:
        match event:
            case Wanted(afresh):
                return self._want(afresh, now)
            case Unwanted(why, cause):
                return self._unwant(why, cause)
            case Evicted(why, again, cause) if self.state is ModelState.READY:
                self._wanted = again
                return [*self._become(ModelState.DRAINING, why, cause=cause), *self._end()]
            case Evicted():
                return []  # It is ending already.
            case Begun() | NoRoom() | Started() | StartFailed():
                return self._of_start(event, now) if self._starting else []  # Else: of one given up already.
            case Exited(why) if self.state is ModelState.READY:
                return self._failed(why, now)
            case Exited():
                return self._end() if self.state is ModelState.DRAINING else []  # It was leaving anyhow.
            case Quiet():
                return self._end() if self.state is ModelState.DRAINING else []
            case Gone():
                return self._gone()
            case Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    def _want(self, afresh: bool, now: float) -> list[LifecycleEffect]:
        self._wanted = True
        if afresh:
            self._forget()
        match self.state:
            case ModelState.ABSENT:
                return self._start()
            case ModelState.FAILED if afresh:
                return self._start()
            case ModelState.DRAINING if not self._ending:
                return self._become(ModelState.READY, "wanted again", deadline=now + self._settings.health_s)
            case _:
                return []  # On its way already, or failed and waiting for its time.

    def _unwant(self, why: str, cause: str) -> list[LifecycleEffect]:
        self._wanted = False
        match self.state:
            case ModelState.READY:
                return self._become(ModelState.DRAINING, why, cause=cause)
            case ModelState.LOADING:
                return [*self._become(ModelState.DRAINING, why, cause=cause), *self._end()]
            case ModelState.FAILED:
                return self._become(ModelState.ABSENT, why, cause=cause)
            case _:
                return []

    def _start(self) -> list[LifecycleEffect]:
        """Loading begins; with a worker still ending, only `Gone` brings the Start."""
        effects = self._become(ModelState.LOADING)
        if self._worker:
            return effects
        self._worker = True
        return [*effects, Start()]

    def _of_start(self, event: Begun | NoRoom | Started | StartFailed, now: float) -> list[LifecycleEffect]:
        """How the start that is outstanding goes."""
        match event:
            case Begun():
                self.deadline = now + self._settings.start_limit_s
                return []
            case NoRoom(why):
                self._worker = self._wanted = False
                return self._become(ModelState.ABSENT, why)
            case Started(load_s):
                return self._become(ModelState.READY, deadline=now + self._settings.health_s, load_s=load_s)
            case StartFailed(why):
                return self._failed(why, now)
            case _:
                assert_never(event)

    def _failed(self, why: str, now: float) -> list[LifecycleEffect]:
        s = self._settings
        self._row += 1
        self._recent = [t for t in self._recent if now - t < s.flapping_window_s] + [now]
        if self._gives_up and len(self._recent) >= s.flapping_failures:
            self.retry_at = None
            why += f" ({len(self._recent)} failures within {s.flapping_window_s:.0f} s: `models load` tries again)"
        else:
            self.retry_at = now + backoff_s(s, self._row)
        retry_s = None if self.retry_at is None else self.retry_at - now
        return [*self._become(ModelState.FAILED, why, deadline=self.retry_at, retry_s=retry_s), *self._end()]

    def _end(self) -> list[LifecycleEffect]:
        if self._ending or not self._worker:
            return []
        self._ending = True
        return [Stop()]

    def _gone(self) -> list[LifecycleEffect]:
        self._worker = self._ending = False
        match self.state:
            case ModelState.LOADING:
                self._worker = True  # Wanted again while the last one ended.
                return [Start()]
            case ModelState.DRAINING if self._wanted:
                return self._start()
            case ModelState.DRAINING:
                return self._become(ModelState.ABSENT, self.why, cause=self._cause)
            case _:
                return []

    def _forget(self) -> None:
        self._row = 0
        self._recent.clear()

    def _tick(self, now: float) -> list[LifecycleEffect]:
        if self.deadline is None or now < self.deadline:
            return []  # An early wake-up is harmless.
        self.deadline = None
        match self.state:
            case ModelState.LOADING:
                return self._failed(f"not ready within {self._settings.start_limit_s:.0f} s", now)
            case ModelState.READY:
                self._forget()
                return []
            case ModelState.FAILED:
                return self._start()
            case _:
                return []

    def _become(
        self,
        state: ModelState,
        why: str = "",
        *,
        deadline: float | None = None,
        load_s: float | None = None,
        retry_s: float | None = None,
        cause: str = "",
    ) -> list[LifecycleEffect]:
        self.state, self.why, self._cause, self.deadline = state, why, cause, deadline
        return [Changed(state, why, load_s, retry_s, cause)]


def backoff_s(settings: NodeSettings, failures: int) -> float:
    """Seconds before the next start after this many failures in a row (>= 1): doubles, up to the cap."""
    doubled: float = settings.backoff_first_s * 2.0 ** min(failures - 1, 60)
    return min(settings.backoff_cap_s, doubled)
