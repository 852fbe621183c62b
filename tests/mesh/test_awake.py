"""Keep-awake: one caffeinate while requests are open, none a while after, and no harm when it cannot be had."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from mesh.awake import AGAIN_S, LINGER_S, Awake


class Process:
    """A caffeinate that ends when told to, unless it is `stubborn`."""

    def __init__(self, argv: Sequence[str], *, stubborn: bool = False) -> None:
        self.argv, self.stubborn = tuple(argv), stubborn
        self.signals: list[str] = []
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.signals.append("TERM")
        if not self.stubborn:
            self.code = -15

    def kill(self) -> None:
        self.signals.append("KILL")
        self.code = -9

    def wait(self, timeout: float | None = None) -> int:
        if self.code is None:
            raise subprocess.TimeoutExpired("caffeinate", timeout or 0.0)
        return self.code


class Mac:
    """Records what is started."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.started: list[Process] = []
        self.stubborn = stubborn
        self.awake = Awake(self.spawn, lambda name: f"/usr/bin/{name}")

    def spawn(self, argv: Sequence[str]) -> Process:
        self.started.append(Process(argv, stubborn=self.stubborn))
        return self.started[-1]

    @property
    def running(self) -> int:
        return sum(p.code is None for p in self.started)


def test_it_runs_while_requests_are_open_and_ends_a_while_after() -> None:
    mac = Mac()
    mac.awake.look(False, 0.0)
    assert mac.started == []
    for second in range(1, 100):
        mac.awake.look(True, float(second))
    assert [p.argv for p in mac.started] == [("/usr/bin/caffeinate", "-i", "-w", str(os.getpid()))]
    mac.awake.look(False, 99.0 + LINGER_S - 0.1)
    assert mac.running == 1
    mac.awake.look(False, 99.0 + LINGER_S)
    assert mac.running == 0
    mac.awake.look(False, 99.0 + LINGER_S + 1)
    assert not mac.awake.held
    mac.awake.look(True, 99.0 + LINGER_S + 2)
    assert mac.running == 1
    assert len(mac.started) == 2


def test_a_request_while_it_ends_starts_the_next() -> None:
    mac = Mac()
    mac.awake.look(True, 0.0)
    mac.awake.look(False, LINGER_S)
    mac.awake.look(True, LINGER_S + 0.1)
    assert mac.running == 1
    mac.awake.close()
    mac.awake.close()
    assert mac.running == 0


def test_one_that_ends_by_itself_is_not_started_again_and_again() -> None:
    mac = Mac()
    for second in range(int(AGAIN_S * 3)):
        mac.awake.look(True, float(second))
        for process in mac.started:
            process.code = 1
    assert len(mac.started) == 3


def test_one_that_does_not_end_is_killed_when_the_daemon_ends() -> None:
    mac = Mac(stubborn=True)
    mac.awake.look(True, 0.0)
    mac.awake.close()
    assert mac.started[0].signals == ["TERM", "KILL"]


def test_without_caffeinate_nothing_happens() -> None:
    def refused(_: Sequence[str]) -> Process:
        raise OSError("no more processes")

    for awake in (Awake(refused, lambda _: None), Awake(refused, lambda name: name)):
        awake.look(True, 0.0)
        awake.look(False, 1000.0)
        assert not awake.held
        awake.close()
