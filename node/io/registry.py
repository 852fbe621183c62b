"""Who runs: the worker processes of this home, in `node/workers.json`, so that a later daemon can end what a killed one
left behind. docs/adr/0004-orphans.md says why they are ended and not adopted.

A process is ours when its pid, its birth and our token in its environment all agree: never by pid alone.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from node.io.files import read_file, write_file
from node.io.probe import Probe
from node.io.process import TOKEN_VARIABLE

_END_LIMIT_S = 10.0  # for a killed process to be gone; one that waits for a broken disk may take longer
_LOOK_S = 0.02


class Entry(Struct, frozen=True):
    """One worker: its pid (it leads a process group of that number), its Probe.birth, the token in its environment; and
    the pid and birth of the daemon that spawned it."""

    pid: int
    birth: str
    token: str
    model: str
    port: int
    daemon: int = 0
    daemon_birth: str = ""


class Registry:
    """The workers of this daemon, on disk from their spawn to their end. `file` None: in memory only.

    Methods block on the disk: call them in a thread. A disk that takes nothing costs the memory of who ran; then only
    what each worker does itself when its daemon dies is left.
    """

    def __init__(self, file: Path | None = None, probe: Probe | None = None) -> None:
        self.token = secrets.token_hex(16)
        self._file, self._probe = file, probe or Probe()
        self._lock = threading.Lock()
        self._entries: dict[int, Entry] = {}
        self._left: list[Entry] = []  # of earlier daemons, not gone yet

    def add(self, pid: int, model: str, port: int) -> None:
        """`pid` was spawned just now, with our token."""
        with self._lock:
            me, birth = os.getpid(), self._probe.birth
            self._entries[pid] = Entry(pid, birth(pid), self.token, model, port, me, birth(me))
            self._write()

    def remove(self, pid: int) -> None:
        """It is gone. Idempotent."""
        with self._lock:
            if self._entries.pop(pid, None) is not None:
                self._write()

    def kill(self) -> None:
        """SIGKILL to every worker of this daemon, for a daemon that ends at once. Takes no lock and waits for nothing:
        a signal handler may call it. Their pids are not reused before we, their parent, have waited for them."""
        for pid in list(self._entries):
            _kill_group(pid)

    def end_orphans(self) -> list[str]:
        """Ends what earlier daemons of this home left running; a sentence about each. Call it before the first `add`,
        with the home's lock held. Whose daemon still runs belongs to another home, which this one is a copy of."""
        there = self._file is not None and self._file.exists()
        known = read_file(self._file, list[Entry]) if self._file is not None else None
        said = [f"{self._file} is damaged and set aside: who ran is not known"] if there and known is None else []
        # A number or a token that is none (the file was damaged) would mean processes of others, or all of a group.
        known = [entry for entry in known or [] if entry.pid > 1 and entry.token]
        found = [entry for entry in known if not self._has_daemon(entry)]
        ours = {entry.pid: {pid: self._probe.birth(pid) for pid in self._processes(entry)} for entry in found}
        for entry in found:
            self._kill(entry, list(ours[entry.pid]))
        deadline = time.monotonic() + _END_LIMIT_S
        for entry in found:
            if not ours[entry.pid]:
                continue
            while (alive := self._lives(entry, ours[entry.pid])) and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
            said.append(f"ended the worker of {entry.model} (pid {entry.pid}) that an earlier daemon left behind")
            if alive:
                self._left.append(entry)
                said[-1] = f"the worker of {entry.model} (pid {entry.pid}) of an earlier daemon does not end"
        with self._lock:
            if known:
                self._write()
        return said

    def _lives(self, entry: Entry, killed: Mapping[int, str]) -> bool:
        """Whether one of the killed (pid -> birth) is still there: it loses its environment, and so its token, before
        its pid; or one that joined their group meanwhile."""
        there = any(birth and self._probe.birth(pid) == birth for pid, birth in killed.items())
        return there or bool(self._processes(entry))

    def _has_daemon(self, entry: Entry) -> bool:
        """Whether another daemon than this one, who spawned it, is alive."""
        other = entry.daemon not in (0, os.getpid()) and entry.daemon_birth != ""
        return other and self._probe.birth(entry.daemon) == entry.daemon_birth

    def _processes(self, entry: Entry) -> list[int]:
        """Which processes of an entry's group live and are ours."""
        if self._is(entry):
            return [entry.pid]
        return [pid for pid in self._probe.pids() if _group(pid) == entry.pid and self._has_token(pid, entry)]

    def _is(self, entry: Entry) -> bool:
        return entry.birth != "" and self._probe.birth(entry.pid) == entry.birth and self._has_token(entry.pid, entry)

    def _has_token(self, pid: int, entry: Entry) -> bool:
        return self._probe.birth(pid) != "" and self._probe.variable(pid, TOKEN_VARIABLE) == entry.token

    def _kill(self, entry: Entry, pids: list[int]) -> None:
        """The whole group when its leader is ours; else only the members that are."""
        for pid in pids:
            if pid == entry.pid and _group(pid) == pid:
                _kill_group(pid)
            else:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def _write(self) -> None:
        if self._file is not None:
            write_file(self._file, msgspec.json.encode([*self._left, *self._entries.values()]))


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return 0


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
