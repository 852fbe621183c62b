"""What the machine says of itself: chip, memory, pressure, processes, ports. The only psutil import.

Parsers are pure and read outputs as macOS prints them (research: mesh.md section 9). Methods of Probe block: some run
a command, so call them in a thread. A reading that cannot be had is the stated default, never an exception.
"""

from __future__ import annotations

import ctypes
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import psutil
from msgspec import Struct

from node.chips import bandwidth
from node.headroom import GIB
from node.types import Hardware, Pressure

Run: TypeAlias = Callable[[Sequence[str]], str]  # argv -> stdout, "" on any failure

_COMMAND_LIMIT_S = 10.0
_RUSAGE_BYTES = 96  # struct rusage_info_v0 of macOS's <sys/resource.h>: a UUID and ten 64-bit numbers,
_RUSAGE_FOOTPRINT = 72  # the eighth of which is ri_phys_footprint
_PAGES_USED = ("Pages active", "Pages wired down", "Pages occupied by compressor")
# Asked in a child: MLX in the daemon would tie the daemon's life to Metal's.
_WORKING_SET = (
    "import mlx.core as m; f = getattr(m, 'device_info', None) or m.metal.device_info; "
    "print(f()['max_recommended_working_set_size'])"
)


class Holder(Struct, frozen=True):
    """Who listens on a port. `pid` 0 and no name: somebody, whom only the administrator may see."""

    pid: int
    name: str


def gpu_cores_of_ioreg(text: str) -> int:
    """From `ioreg -rc AGXAccelerator`; 0 = not there."""
    found = re.search(r'"gpu-core-count"\s*=\s*(\d+)', text)
    return int(found[1]) if found else 0


def gpu_cores_of_profiler(text: str) -> int:
    """From `system_profiler SPDisplaysDataType -json`; 0 = not there."""
    found = re.search(r'"sppci_cores"\s*:\s*"(\d+)"', text)
    return int(found[1]) if found else 0


def used_of_vm_stat(text: str) -> int:
    """Bytes that are active, wired or held by the compressor, from `vm_stat`; 0 = unreadable."""
    page = re.search(r"page size of (\d+) bytes", text)
    counts = [re.search(rf"{name}:\s+(\d+)\.", text) for name in _PAGES_USED]
    return int(page[1]) * sum(int(c[1]) for c in counts if c) if page else 0


def pressure_of_level(text: str) -> Pressure | None:
    """From `sysctl -n kern.memorystatus_vm_pressure_level`: 1, 2 or 4."""
    return {"1": Pressure.NORMAL, "2": Pressure.WARN, "4": Pressure.CRITICAL}.get(text.strip())


def free_percent_of_memory_pressure(text: str) -> int | None:
    """From `memory_pressure -Q`."""
    found = re.search(r"free percentage:\s*(\d+)%", text)
    return int(found[1]) if found else None


def pressure_of_free(percent: float) -> Pressure:
    """For systems that give no verdict of their own."""
    return Pressure.CRITICAL if percent < 5 else Pressure.WARN if percent < 10 else Pressure.NORMAL


def working_set_of(wired_limit: str, memory_bytes: int) -> int:
    """Bytes a GPU may hold, from `sysctl -n iogpu.wired_limit_mb` (0 = macOS decides: by size, as measured)."""
    limit = int(wired_limit) if wired_limit.strip().isdigit() else 0
    if limit:
        return limit * 2**20
    share = 2 / 3 if memory_bytes <= 32 * GIB else 0.75 if memory_bytes < 128 * GIB else 0.84
    return int(memory_bytes * share)


def footprint_of_rusage(raw: bytes) -> int:
    """Physical footprint in bytes, from the struct that proc_pid_rusage(pid, RUSAGE_INFO_V0) fills."""
    return int.from_bytes(raw[_RUSAGE_FOOTPRINT : _RUSAGE_FOOTPRINT + 8], "little")


def footprint_of_command(text: str) -> int:
    """Physical footprint in bytes, from `footprint --noCategories --format bytes PID`; 0 = not there."""
    found = re.search(r"^\s*phys_footprint:\s*(\d+) B", text, re.MULTILINE) or re.search(r"Footprint:\s*(\d+) B", text)
    return int(found[1]) if found else 0


def variable_of_ps(text: str, name: str) -> str:
    """The value of an environment variable (one without blanks), from `ps eww -o command= -p PID`; "" = not there."""
    found = re.search(rf"(?:^|\s){re.escape(name)}=(\S*)", text)
    return found[1] if found else ""


def birth_of_stat(stat: str, boot_id: str) -> str:
    """What tells a process from a later one with the same pid, from /proc/PID/stat (its start in ticks) and the
    system's boot id; "" for a zombie and for what is no such line."""
    fields = stat.rpartition(")")[2].split()  # the name before may hold blanks and brackets
    return "" if len(fields) < 20 or fields[0] in ("Z", "X") else f"{boot_id.strip()}:{fields[19]}"


def chip_of_cpuinfo(text: str) -> str:
    """`model name` of /proc/cpuinfo; "" = none there (most ARM machines)."""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def run_command(argv: Sequence[str]) -> str:
    """Its stdout; "" when it is missing, fails or takes longer than 10 s."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout


class Probe:
    """Readings of this machine. `system` as platform.system() names it; `run` runs a command."""

    def __init__(self, system: str = platform.system(), run: Run = run_command) -> None:
        self._mac = system == "Darwin"
        self._run = run

    def hardware(self) -> Hardware:
        """What the machine is; takes up to seconds."""
        memory_bytes = self._memory_bytes()
        if not self._mac:
            chip = chip_of_cpuinfo(_text(Path("/proc/cpuinfo"))) or platform.machine() or "unknown"
            return Hardware(chip=chip, memory_bytes=memory_bytes)
        chip = self._run(["sysctl", "-n", "machdep.cpu.brand_string"]).strip() or "unknown"
        cores = gpu_cores_of_ioreg(self._run(["ioreg", "-rc", "AGXAccelerator"])) or gpu_cores_of_profiler(
            self._run(["system_profiler", "SPDisplaysDataType", "-json"])
        )
        return Hardware(
            chip=chip, memory_bytes=memory_bytes, gpu_cores=cores, bandwidth=bandwidth(chip, memory_bytes, cores)
        )

    def working_set_bytes(self) -> int:
        """Bytes the GPU may hold; 0 = no such limit here."""
        if not self._mac:
            return 0
        said = self._run([sys.executable, "-c", _WORKING_SET]).strip()
        if said.isdigit():
            return int(said)
        return working_set_of(self._run(["sysctl", "-n", "iogpu.wired_limit_mb"]), self._memory_bytes())

    def pressure(self) -> Pressure:
        """How short of memory the machine is."""
        if not self._mac:
            memory = psutil.virtual_memory()
            return pressure_of_free(100.0 * memory.available / memory.total)
        level = pressure_of_level(self._run(["sysctl", "-n", "kern.memorystatus_vm_pressure_level"]))
        if level is not None:
            return level
        percent = free_percent_of_memory_pressure(self._run(["memory_pressure", "-Q"]))
        return Pressure.NORMAL if percent is None else pressure_of_free(percent)

    def free_bytes(self) -> int:
        """Memory that nobody uses, file caches counted as free."""
        if self._mac and (used := used_of_vm_stat(self._run(["vm_stat"]))):
            return max(0, self._memory_bytes() - used)
        return int(psutil.virtual_memory().available)

    def process_bytes(self, pid: int) -> int:
        """Resident bytes of a process; 0 when it is gone or not ours to look at."""
        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return 0

    def worker_bytes(self, pid: int, *, children: bool = False) -> int:
        """What a process (and its children) takes of memory: proportional set size on Linux, physical footprint on
        macOS; 0 when it is gone or not ours to look at."""
        try:
            processes = [psutil.Process(pid)]
            processes += processes[0].children(recursive=True) if children else []
        except psutil.Error:
            return 0
        return sum(self._footprint(process) for process in processes)

    def _footprint(self, process: psutil.Process) -> int:
        if self._mac:
            asked = ["footprint", "--noCategories", "--format", "bytes", str(process.pid)]
            return _rusage_footprint(process.pid) or footprint_of_command(self._run(asked))
        try:
            return int(process.memory_full_info().pss)
        except (psutil.Error, AttributeError):
            return self.process_bytes(process.pid)

    def frozen(self, pid: int) -> bool:
        """It was stopped by a signal (SIGSTOP, a debugger) and does nothing."""
        try:
            return str(psutil.Process(pid).status()) == psutil.STATUS_STOPPED
        except psutil.Error:
            return False

    def birth(self, pid: int) -> str:
        """What tells a living process from an earlier or later one with the same pid; "" when there is none."""
        if not self._mac and Path("/proc/self/stat").exists():
            return birth_of_stat(_text(Path(f"/proc/{pid}/stat")), _text(Path("/proc/sys/kernel/random/boot_id")))
        try:
            process = psutil.Process(pid)
            return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.6f}"
        except psutil.Error:
            return ""

    def variable(self, pid: int, name: str) -> str:
        """Of a process's environment as it was started; "" when it has none, is gone or not ours to look at."""
        try:
            return psutil.Process(pid).environ().get(name, "")
        except (psutil.Error, OSError):
            return variable_of_ps(self._run(["ps", "eww", "-o", "command=", "-p", str(pid)]), name) if self._mac else ""

    def pids(self) -> list[int]:
        """Of every process."""
        return psutil.pids()

    def port_holder(self, port: int) -> Holder | None:
        """Who listens on TCP `port` of this machine; None when nobody does, as far as one can see."""
        for pid, listening in _listening():
            if listening == port:
                return Holder(pid, _name(pid) if pid else "")
        return None

    def _memory_bytes(self) -> int:
        said = self._run(["sysctl", "-n", "hw.memsize"]).strip() if self._mac else ""
        return int(said) if said.isdigit() else int(psutil.virtual_memory().total)


def _rusage_footprint(pid: int) -> int:
    """Physical footprint of a process from macOS's kernel; 0 when it cannot be had."""
    buffer = ctypes.create_string_buffer(_RUSAGE_BYTES)
    try:
        failed = ctypes.CDLL("/usr/lib/libproc.dylib").proc_pid_rusage(pid, 0, buffer)
    except (OSError, AttributeError):
        return 0
    return 0 if failed else footprint_of_rusage(buffer.raw)


def _listening() -> list[tuple[int, int]]:
    """(pid, TCP port) of all that listens; pid 0 = not ours to see."""
    try:
        return [
            (c.pid or 0, c.laddr.port)
            for c in psutil.net_connections("tcp")
            if c.status == psutil.CONN_LISTEN and c.laddr
        ]
    except psutil.Error:  # macOS shows all sockets to root only; one's own are seen process by process.
        pass
    found = []
    for process in psutil.process_iter():
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        found += [(process.pid, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN and c.laddr]
    return found


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return ""


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
