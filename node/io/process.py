"""A child process of a worker: spawned into its own group with its output in a log file, and ended for certain."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from node.io.diagnosis import diagnose

TOKEN_VARIABLE = "MLX_STACK_WORKER"  # noqa: S105 - its name; the value tells a later daemon whose orphan this is
HOST = "127.0.0.1"
PACKAGES = Path(__file__).resolve().parents[2]  # where `node` is imported from
GUARD = Path(__file__).with_name("guard.py")


def free_port(wanted: int = 0) -> int:
    """`wanted` if nobody listens there, else any free port of the loopback interface."""
    for port in (wanted, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free to servers
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise OSError("no free port on the loopback interface")


def child_environment(token: str, extra: Mapping[str, str]) -> dict[str, str]:
    """Our own environment, the token, and a path on which children find our packages."""
    path = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", TOKEN_VARIABLE: token, **extra}


class Child:
    """One process and its group. stdin is a pipe that only this daemon holds: it closes when the daemon dies, and
    the child (node/io/mlx_worker.py, node/io/guard.py) ends itself then."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, log_start: int, tail_bytes: int) -> None:
        self._process, self._log, self._log_start, self._tail_bytes = process, log, log_start, tail_bytes
        self._swept = False

    @classmethod
    async def spawn(
        cls, argv: Sequence[str], *, env: Mapping[str, str], log: Path, tail_bytes: int, nice: int = 0
    ) -> Child:
        """Starts `argv` with stdout and stderr appended to `log`, `nice` steps below our priority. Raises OSError."""
        output, start = _opened(log)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=dict(env),
            )
        finally:
            os.close(output)
        if nice:
            _give_way(process.pid, nice)
        return cls(process, log, start, tail_bytes)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.returncode

    async def exited(self) -> str:
        """Waits for the process to end, by itself or not; the diagnosis."""
        await self._process.wait()
        self._sweep()
        return self.diagnosis()

    def diagnosis(self) -> str:
        """What its exit code and the end of its output say."""
        return diagnose(self.exit_code, self.tail())

    def tail(self) -> str:
        """The end of what it has written since it started."""
        with suppress(OSError), self._log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            start = self._log_start if self._log_start <= size else 0  # the log was rotated meanwhile
            log.seek(max(start, size - self._tail_bytes))
            return log.read(self._tail_bytes).decode(errors="replace")
        return ""

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to the group, SIGKILL after `grace_s`; returns when the process is gone. Idempotent; a caller that
        is cancelled meanwhile leaves a process that has been killed."""
        try:
            if self.exit_code is None:
                self._signal(signal.SIGTERM)
                async with asyncio.timeout(grace_s):
                    await self._process.wait()
        except TimeoutError:
            pass
        finally:
            self._sweep()
        await self._process.wait()

    def _sweep(self) -> None:
        """Once, at the end: whatever is left of the group, and our end of its stdin."""
        if not self._swept:
            self._swept = True
            self._signal(signal.SIGKILL)
            if self._process.stdin is not None:
                self._process.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM when only a zombie is left of the group
            os.killpg(self.pid, number)


def _give_way(pid: int, nice: int) -> None:
    """What cannot be set (the process is gone, or it is not allowed) stays at our priority."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
    with suppress(OSError):  # Linux, sched(7): a session is weighed as a whole, so inside ours alone nice says nothing
        Path(f"/proc/{pid}/autogroup").write_text(f"{nice}\n", encoding="ascii")


def _opened(log: Path) -> tuple[int, int]:
    """A descriptor that appends to `log`, and the size it has now."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return descriptor, os.fstat(descriptor).st_size
