"""One model as the host keeps it: definition, machine, line, worker, and what was learned of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec import structs

from node import headroom
from node.download import Download
from node.errors import NodeError, NodeErrorCode
from node.io import weights
from node.io.calls import AdmittedCall
from node.io.engine import Engine, ModelSpec, Worker, WorkerStats
from node.io.footprint import Footprint
from node.lifecycle import Changed, Lifecycle
from node.queue import Key, ModelQueue
from node.settings import NodeSettings
from node.speed import Speed
from node.types import ModelReport, ModelState, Resume

_EXTERNAL_LOAD_S = 1.0  # one question to a server that runs already


class Hosted:
    """Changed by the host only, and only on its event loop."""

    def __init__(self, spec: ModelSpec, engine: Engine | None, settings: NodeSettings, footprint: Footprint) -> None:
        self.spec, self.engine, self._settings = spec, engine, settings
        self.lifecycle = Lifecycle(settings, gives_up=spec.engine != "external")
        self.queue = ModelQueue(spec.slots or (engine.default_slots if engine else 1), settings.calls_remembered)
        self.calls: dict[Key, AdmittedCall] = {}
        self.worker: Worker | None = None
        self.life: asyncio.Task[None] | None = None  # starts and watches the worker
        self.timer: asyncio.TimerHandle | None = None
        self.state = ModelState.ABSENT  # the one last reported
        self.error: str | None = None  # why it failed, or why it had no room
        self.last_error = ""  # why it failed the last time, however well it is now
        self.away = ""  # a server that is not ours: why it was told to be gone, until it answers again
        self.doubts: asyncio.Future[None] | None = None  # of its worker; set by who watches that, see `doubt`
        self.held = ""  # what it waits for, while it waits for room
        self.loads = 0  # `models load` commands that wait for it
        self.problem = spec.problem or ("" if engine else f"unknown engine {spec.engine!r}")
        self.waits_for: Hosted | None = None  # its predecessor of the same name, until that is gone
        self.download: Download | None = None  # of its weights; None: they are here, as far as we know
        self.footprint = footprint
        self.context = spec.context
        self.load_s = _EXTERNAL_LOAD_S if spec.engine == "external" else settings.load_fixed_s
        self.fingerprint = f"asserted:{spec.weights}" if spec.weights else ""
        self.speed = Speed()
        self._stats = WorkerStats()
        self._ended_stats = WorkerStats()  # of its earlier workers

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def resume(self) -> Resume:
        """How an answer of it that was cut can go on, by its worker or as long as it has none by its engine."""
        says = self.worker or self.engine
        return says.resume if says else Resume.NO

    @property
    def size_bytes(self) -> int:
        return self.footprint.size

    def answers_to(self, name: str) -> bool:
        return name == self.spec.name or name in self.spec.aliases

    async def examine(self, budget_bytes: int) -> None:
        """Reads sizes from its files; what is wrong with them becomes its problem, until the next look."""
        if self.spec.problem or self.engine is None or self.spec.engine == "external" or self.lifecycle.has_worker:
            return
        if self.spec.hub:
            return  # Nothing is here yet.
        try:
            await asyncio.to_thread(self._look, budget_bytes)
        except NodeError as error:
            # An engine that is a command of the user's may keep its weights where we cannot look.
            self.problem = error.message if self.spec.engine == "mlx-lm" else ""
            return
        self.problem = ""
        shape = self.footprint.shape
        self.context = shape.context
        self.load_s = headroom.load_s(shape.weight_bytes, self._settings.disk_bytes_per_s, self._settings.load_fixed_s)

    def _look(self, budget_bytes: int) -> None:
        try:
            self.footprint.look(self.spec, budget_bytes)
        except OSError as error:
            raise _unreadable(self.spec.path, error) from error

    async def take_fingerprint(self) -> bool:
        """True when it has one now and had none."""
        if self.fingerprint or self.problem or self.spec.hub or self.spec.engine != "mlx-lm":
            return False
        try:
            self.fingerprint = await asyncio.to_thread(_fingerprint, self.spec)
        except NodeError:
            return False  # The files changed under us; the start will say what is wrong.
        return True

    def failure(self, now: float) -> NodeError | None:
        """Why it cannot answer soon, whatever is asked; None when it can, or can be started."""
        if self.problem:
            return NodeError(NodeErrorCode.MODEL_FAILED, f"{self.name}: {self.problem}")
        if self.download is not None:
            return self._not_here(self.download, now)
        if self.lifecycle.state is not ModelState.FAILED:
            return None
        why = f"{self.name}: {self.lifecycle.why or 'failed'}"
        return NodeError(NodeErrorCode.MODEL_FAILED, why, retry_after_s=self._retry_s(now))

    def _retry_s(self, now: float) -> float | None:
        """Seconds until it is started again; None: it has not failed, or not by itself."""
        if self.problem or self.lifecycle.state is not ModelState.FAILED or self.lifecycle.retry_at is None:
            return None
        return max(0.0, self.lifecycle.retry_at - now)

    @property
    def worth_waiting(self) -> bool:
        """Whether it waits for room, and others may have to go for it: somebody waits for it, or it is pinned."""
        return self.spec.pinned or self.loads > 0 or self.queue.queue_depth > 0

    def _not_here(self, download: Download, now: float) -> NodeError:
        """Its weights are being fetched: come back later, or elsewhere now."""
        s, wait_s = self._settings, download.wait_s(now)
        code = NodeErrorCode.MODEL_FAILED if download.failed else NodeErrorCode.NODE_BUSY
        wait_s = min(s.download_wait_cap_s, s.download_wait_s if wait_s is None else wait_s)
        return NodeError(code, f"{self.name}: {download.text()}", retry_after_s=wait_s)

    def doubt(self) -> None:
        """A call of it has failed: who watches its worker shall look at once whether it still answers."""
        if self.doubts is not None and not self.doubts.done():
            self.doubts.set_result(None)

    def news(self, change: Changed) -> bool:
        """Whether `change` is worth telling. A server that is not ours may be away for days and is asked every minute:
        that it has not come back is none."""
        if self.spec.engine != "external":
            return True
        if change.state is ModelState.LOADING:
            return not self.away
        before, self.away = self.away, change.why if change.state is ModelState.FAILED else ""
        return not self.away or self.away != before

    def release_held(self) -> None:
        """It is ready: its calls wait for a slot only."""
        for call in self.calls.values():
            call.hold_until = None

    def hold(self, until: Callable[[Hosted, AdmittedCall], float]) -> None:
        """It is unloaded before their turn: its waiting calls wait for another load."""
        for call in self.calls.values():
            if call.started_at is None and call.hold_until is None:
                call.hold_until = until(self, call)

    def too_late(self, waited_s: float) -> NodeError:
        """For a call that was held as long as it may be: what it waited for. Not a failure: the mesh plans again."""
        loading = self.lifecycle.state is ModelState.LOADING
        what = f"waited {waited_s:.0f} s for room: it {self.held}" if self.held else f"waited {waited_s:.0f} s"
        if loading and not self.held:
            what = f"is still loading after {waited_s:.0f} s"
        return NodeError(NodeErrorCode.NODE_BUSY, f"{self.name} {what}", retry_after_s=max(1.0, self.load_s))

    def fail_calls(self, *, in_flight: NodeError | None, waiting: NodeError) -> None:
        """Ends its calls; None leaves those in flight alone. Each leaves the line when its reader has heard."""
        for call in self.calls.values():
            error = waiting if call.started_at is None else in_flight
            if error is not None:
                call.fail(error)

    def disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def noted(self, stats: WorkerStats) -> None:
        self._stats = stats

    def worker_ended(self) -> None:
        self.worker = self.life = self.doubts = None
        self.footprint.ended()
        self._ended_stats, self._stats = self.stats(), WorkerStats()

    def stats(self) -> WorkerStats:
        """Counters of all its workers since the daemon started; they never go back."""
        then, now = self._ended_stats, self._stats
        return WorkerStats(
            generated_tokens=then.generated_tokens + now.generated_tokens,
            prompt_tokens=then.prompt_tokens + now.prompt_tokens,
            active=now.active if self.worker else 0,
            alive=now.alive and self.worker is not None,
            why=now.why,
        )

    def report(self, now: float) -> ModelReport:
        """MODEL of `mesh status`, and what peers need of it."""
        spec, state = self.spec, ModelState.FAILED if self.problem else self.lifecycle.state
        if state is ModelState.READY and self.queue.in_flight:
            state = ModelState.BUSY
        if state is ModelState.LOADING and self.held:
            state = ModelState.ABSENT  # It waits for room: its load has not begun.
        download = self.download
        if download is not None and not self.problem:
            state = ModelState.FAILED if download.failed else ModelState.DOWNLOADING
        cached = spec.engine == "mlx-lm"
        return ModelReport(
            name=spec.name,
            aliases=spec.aliases,
            source=spec.source,
            engine=spec.engine,
            fingerprint=self.fingerprint,
            state=state,
            size_bytes=self.size_bytes,
            slots=self.queue.slots,
            in_flight=self.queue.in_flight,
            queue_depth=self.queue.queue_depth,
            prefill_tps=self.speed.prefill_tps,
            decode_tps=self.speed.decode_tps,
            resume=self.resume,
            error=self.problem or (download.text() if download else self.error),
            load_s=self.load_s,
            retry_s=self._retry_s(now),
            cache_tokens=self.footprint.cache_tokens if cached else 0,
            cache_seqs=self._settings.cache_seqs if cached else 0,
            context=self.context,
            paths=spec.paths,
            fallback=spec.fallback,
            waits_for=self.held,
            progress=download.progress.share if download and not download.failed else None,
            measured_bytes=self.footprint.measured,
            last_error=self.last_error,
        )


def same_worker(old: ModelSpec, new: ModelSpec) -> bool:
    """Whether a worker made for `old` serves `new` too: they differ in names and policy only. `source` is the name
    that servers we do not launch ourselves know the model by; of weights only the path counts."""
    return (
        structs.replace(
            old,
            aliases=new.aliases,
            source=new.source if new.engine == "mlx-lm" else old.source,
            paths=new.paths,
            fallback=new.fallback,
            pinned=new.pinned,
            keep_alive=new.keep_alive,
        )
        == new
    )


def _fingerprint(spec: ModelSpec) -> str:
    try:
        return weights.fingerprint(weights.locate(spec.path), spec.extra_args)
    except OSError as error:
        raise _unreadable(spec.path, error) from error


def _unreadable(source: str, error: OSError) -> NodeError:
    """A folder without permission, a disk that was pulled out, files that go while they are read."""
    return NodeError(NodeErrorCode.MODEL_FAILED, f"cannot read {source}: {error.strerror}")
