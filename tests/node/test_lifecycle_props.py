"""A lifecycle against a shell that behaves, with users, crashes and clocks that do not."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from node.lifecycle import (
    Begun,
    Changed,
    Exited,
    Gone,
    Lifecycle,
    LifecycleEvent,
    NoRoom,
    Quiet,
    Start,
    Started,
    StartFailed,
    Stop,
    Tick,
    Unwanted,
    Wanted,
)
from node.settings import NodeSettings
from node.types import ModelState

S = NodeSettings(health_s=50.0, flapping_failures=4, flapping_window_s=200.0, start_limit_s=40.0)
actions = st.sampled_from(
    [
        "want",
        "afresh",
        "unwant",
        "begin",
        "no room",
        "started",
        "start fails",
        "exits",
        "quiet",
        "gone",
        "stale",
        "wait",
    ]
)
scripts = st.lists(st.tuples(actions, st.floats(0.0, 60.0)), max_size=120)


class Shell:
    """Performs effects as the host does: a process exists from Begun to Gone, answers come in any allowed order."""

    def __init__(self) -> None:
        self.it = Lifecycle(S)
        self.now = 0.0
        self.asked = self.began = self.up = self.ending = False
        self.waits: list[float] = []  # back-offs since it was last healthy
        self.ready_since: float | None = None

    @property
    def process(self) -> bool:
        """There is, or may be, one."""
        return self.asked or self.began or self.up or self.ending

    def tell(self, event: LifecycleEvent) -> None:
        if isinstance(event, Wanted) and event.afresh:
            self.waits.clear()
        healthy = self.ready_since is not None and self.now - self.ready_since >= S.health_s
        for effect in self.it.step(event, self.now):
            match effect:
                case Start():
                    assert not self.process, "a start while one is outstanding"
                    self.asked = True
                case Stop():
                    assert not self.ending, "a second stop"
                    assert self.asked or self.began or self.up
                    self.asked = self.began = self.up = False
                    self.ending = True
                case Changed(state, _, _, retry_s):
                    self.ready_since = self.now if state is ModelState.READY else None
                    if state is ModelState.FAILED and retry_s is not None:
                        if healthy:
                            self.waits.clear()
                        assert not self.waits or retry_s >= self.waits[-1] - 1e-9, "the back-off shrank without health"
                        assert S.backoff_first_s - 1e-9 <= retry_s <= S.backoff_cap_s + 1e-9
                        self.waits.append(retry_s)

    def act(self, action: str) -> None:
        match action:
            case "want" | "afresh":
                self.tell(Wanted(afresh=action == "afresh"))
            case "unwant":
                self.tell(Unwanted("u"))
            case "begin" if self.asked:
                self.asked, self.began = False, True
                self.tell(Begun())
            case "no room" if self.asked:
                self.asked = False
                self.tell(NoRoom("n"))
            case "started" if self.began:
                self.began, self.up = False, True
                self.tell(Started(1.0))
            case "start fails" if self.began:
                self.tell(StartFailed("s"))
            case "exits" if self.up:
                self.tell(Exited("e"))
            case "gone" if self.ending:
                self.ending = False
                self.tell(Gone())
            case "quiet":
                self.tell(Quiet())
            case "stale" if self.ending:
                self.tell(StartFailed("cancelled"))
                self.tell(Exited("cancelled"))
            case _:
                pass

    def wait(self, seconds: float) -> None:
        """Time passes; timers ring when they are due."""
        until = self.now + seconds
        while self.it.deadline is not None and self.it.deadline <= until:
            self.now = max(self.now, self.it.deadline)
            before = self.it.deadline
            self.tell(Tick())
            assert self.it.deadline is None or self.it.deadline > before, "a timer that rings for ever"
        self.now = until

    def check(self) -> None:
        assert self.it.has_worker == self.process
        if self.it.state is ModelState.READY:
            assert self.up
        if self.it.state is ModelState.ABSENT:
            assert not self.process or self.ending


@settings(max_examples=300)
@given(script=scripts)
def test_one_worker_at_most_and_a_back_off_that_only_health_resets(script: list[tuple[str, float]]) -> None:
    shell = Shell()
    for action, seconds in script:
        if action == "wait":
            shell.wait(seconds)
        else:
            shell.act(action)
        shell.check()


@settings(max_examples=200)
@given(script=scripts)
def test_whatever_happened_a_model_can_be_loaded_and_unloaded(script: list[tuple[str, float]]) -> None:
    shell = Shell()
    for action, seconds in script:
        shell.wait(seconds) if action == "wait" else shell.act(action)
    shell.act("afresh")
    for action in ("gone", "begin", "started"):
        shell.act(action)
    assert shell.it.state is ModelState.READY
    for action in ("unwant", "quiet", "gone"):
        shell.act(action)
    assert shell.it.state is ModelState.ABSENT
    assert not shell.it.has_worker
    shell.check()


@settings(max_examples=200)
@given(script=scripts, early=st.floats(0.0, 1.0, exclude_max=True))
def test_a_tick_before_the_deadline_changes_nothing(script: list[tuple[str, float]], early: float) -> None:
    shell = Shell()
    for action, seconds in script:
        shell.wait(seconds) if action == "wait" else shell.act(action)
        due = shell.it.deadline
        state = shell.it.state
        sooner = shell.now + early * ((due or shell.now) - shell.now)
        if due is None or sooner < due:
            assert shell.it.step(Tick(), sooner) == []
            assert (shell.it.state, shell.it.deadline) == (state, due)
