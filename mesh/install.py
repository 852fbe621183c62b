"""Start at boot: puts a job in its place and has launchd or systemd run it. Every command goes through one `run`."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from msgspec import Struct

from mesh.errors import MeshError
from mesh.files import write_atomic
from mesh.job import EXIT_S, UNIT, Job

COMMAND_LIMIT_S = 90.0  # systemctl waits for a unit to stop
GONE_WITHIN_S = EXIT_S + 15.0  # launchctl bootout returns before the job has left
BOOTSTRAP_WITHIN_S = 20.0  # launchd keeps a label busy for some seconds after its job has left (measured: 5)
LOOK_EVERY_S = 0.5
_BUSY = (5, 37)  # EIO, EALREADY: the label is still busy


class Ran(Struct, frozen=True):
    """How a command ended, and all it said."""

    code: int
    said: str = ""


Run: TypeAlias = Callable[[Sequence[str]], Ran]


def run_command(argv: Sequence[str]) -> Ran:
    """Runs it for real; a command that cannot be run has code 127."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return Ran(127, str(error))
    return Ran(done.returncode, (done.stdout + done.stderr).strip())


class State(Struct, frozen=True, kw_only=True):
    """Of one job. `loaded`: the system knows it; `current`: its file is what `install` would write now."""

    kind: str
    file: str
    installed: bool = False
    current: bool = False
    loaded: bool = False
    running: bool = False
    pid: int | None = None
    last_exit: int | None = None


class Manager(Protocol):
    """launchd or systemd."""

    def stop(self, job: Job) -> None: ...
    def start(self, job: Job) -> None: ...
    def look(self, job: Job) -> State: ...


class Installer:
    """Installs, removes and looks. `chown` gives a file to the job's account; only root may."""

    def __init__(self, manager: Manager, chown: Callable[[Path, int, int], None] = os.chown) -> None:
        self._manager, self._chown = manager, chown

    def install(self, job: Job) -> None:
        """Stops the job if it is there, writes its file, starts it. Raises MeshError; then it is not running."""
        self._manager.stop(job)
        try:
            self._prepare(job)
            write_atomic(job.file, job.content, mode=0o644)
        except OSError as error:
            raise MeshError("not_written", f"{job.file} cannot be written: {error.strerror}") from error
        self._manager.start(job)

    def uninstall(self, job: Job) -> bool:
        """Stops the job and removes its file; nothing else. False when there was neither. Raises MeshError."""
        before = self.look(job)
        if not before.installed and not before.loaded:
            return False
        self._manager.stop(job)
        try:
            job.file.unlink(missing_ok=True)
        except OSError as error:
            raise MeshError("not_removed", f"{job.file} cannot be removed: {error.strerror}") from error
        return True

    def look(self, job: Job) -> State:
        state = self._manager.look(job)
        try:
            written: bytes | None = job.file.read_bytes()
        except OSError:
            written = None
        return State(
            kind=job.kind,
            file=str(job.file),
            installed=written is not None or job.file.exists(),
            current=written == job.content,
            loaded=state.loaded,
            running=state.running,
            pid=state.pid,
            last_exit=state.last_exit,
        )

    def _prepare(self, job: Job) -> None:
        """The log must be there and the account's own: launchd would make it, as root, and the node could not write."""
        for folder in (job.home.root, job.home.logs):
            if not folder.exists():
                folder.mkdir(parents=True)
                self._give(folder, job)
        if not job.home.daemon_log.exists():
            job.home.daemon_log.touch()
            self._give(job.home.daemon_log, job)

    def _give(self, path: Path, job: Job) -> None:
        if job.needs_root:
            self._chown(path, job.account.uid, job.account.gid)


class Launchd:
    """launchctl, with the verbs of macOS 10.11 and later. `pause` waits, `clock` is in seconds."""

    def __init__(
        self,
        run: Run = run_command,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._pause, self._clock = run, pause, clock

    def stop(self, job: Job) -> None:
        if not self.look(job).loaded:
            return
        said = self._run(["launchctl", "bootout", job.service])
        patience = self._clock() + GONE_WITHIN_S
        while self.look(job).loaded:
            if self._clock() > patience:
                raise MeshError("not_stopped", f"launchd does not let {job.service} go: {said.said or said.code}")
            self._pause(LOOK_EVERY_S)

    def start(self, job: Job) -> None:
        self._run(
            ["launchctl", "enable", job.service]
        )  # a disabled one would be refused with the same word as any fault
        argv = ["launchctl", "bootstrap", job.service.rpartition("/")[0], str(job.file)]
        patience = self._clock() + BOOTSTRAP_WITHIN_S
        while (done := self._run(argv)).code != 0:
            if done.code not in _BUSY or self._clock() > patience:
                raise _failed(argv, done)
            self._pause(LOOK_EVERY_S)

    def look(self, job: Job) -> State:
        done = self._run(["launchctl", "print", job.service])
        pid = _number(r"^\s*pid = (\d+)", done.said)
        return State(
            kind=job.kind,
            file=str(job.file),
            loaded=done.code == 0,
            running=done.code == 0 and pid is not None,
            pid=pid if done.code == 0 else None,
            last_exit=_number(r"^\s*last exit code = (\d+)", done.said),
        )


class Systemd:
    """systemctl; of the user's own manager for a job of kind "user"."""

    def __init__(self, run: Run = run_command) -> None:
        self._run = run

    def stop(self, job: Job) -> None:
        if not self.look(job).loaded:
            return
        self._must(job, "disable", "--now", UNIT)

    def start(self, job: Job) -> None:
        self._must(job, "daemon-reload")
        self._must(job, "enable", "--now", UNIT)
        if job.kind == "user":
            self._run(["loginctl", "enable-linger", job.account.name])  # else it ends when the last session does

    def look(self, job: Job) -> State:
        fields = "LoadState,MainPID,ExecMainStatus,ActiveState"
        done = self._run([*self._systemctl(job), "show", UNIT, f"--property={fields}"])
        found = dict(line.split("=", 1) for line in done.said.splitlines() if "=" in line) if done.code == 0 else {}
        pid = int(found.get("MainPID", "0") or 0)
        return State(
            kind=job.kind,
            file=str(job.file),
            loaded=found.get("LoadState") == "loaded",
            running=found.get("ActiveState") == "active",
            pid=pid or None,
            last_exit=None if pid or "ExecMainStatus" not in found else int(found["ExecMainStatus"] or 0),
        )

    def _systemctl(self, job: Job) -> list[str]:
        return ["systemctl", "--user"] if job.kind == "user" else ["systemctl"]

    def _must(self, job: Job, *words: str) -> None:
        argv = [*self._systemctl(job), *words]
        done = self._run(argv)
        if done.code != 0:
            raise _failed(argv, done)


def commands(job: Job) -> list[list[str]]:
    """What `install` runs on a machine without the job, for `--dry-run`."""
    ran: list[list[str]] = []

    def record(argv: Sequence[str]) -> Ran:
        ran.append(list(argv))
        return Ran(0)

    manager: Manager = Launchd(record) if job.kind in ("daemon", "agent") else Systemd(record)
    manager.start(job)
    return ran


def _failed(argv: Sequence[str], done: Ran) -> MeshError:
    why = done.said.splitlines()[0] if done.said else f"exit code {done.code}"
    return MeshError("not_started", f"`{' '.join(argv)}`: {why}", hint="`mlx-stack logs daemon` may say why")


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text, re.MULTILINE)
    return int(found[1]) if found else None
