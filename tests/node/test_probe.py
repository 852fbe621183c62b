"""Readings: macOS' parsers on what macOS printed, and this machine's own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from node.headroom import GIB
from node.io import probe
from node.io.probe import (
    Holder,
    Probe,
    birth_of_stat,
    footprint_of_command,
    footprint_of_rusage,
    variable_of_ps,
)
from node.types import Hardware, Pressure
from tests.mesh.waiting import until

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


def mac(**said: str) -> Probe:
    """A Mac whose commands, named by their last word, say this; every other command fails."""
    return Probe("Darwin", lambda argv: said.get(_key(argv), ""))


def _key(argv: Sequence[str]) -> str:
    return argv[-1].replace(".", "_").replace("-", "_") if argv[0] == "sysctl" else argv[0].rpartition("/")[2]


def test_a_macs_hardware() -> None:
    said = mac(hw_memsize="34359738368\n", machdep_cpu_brand_string="Apple M2 Pro\n", ioreg=recorded("ioreg_agx"))
    assert said.hardware() == Hardware(chip="Apple M2 Pro", memory_bytes=32 * GIB, gpu_cores=19, bandwidth=200.0)


def test_gpu_cores_of_the_profiler_when_ioreg_is_silent() -> None:
    said = mac(
        hw_memsize="1", machdep_cpu_brand_string="Apple M2 Ultra", system_profiler=recorded("system_profiler_displays")
    )
    assert said.hardware().gpu_cores == 20


def test_a_mac_that_tells_nothing() -> None:
    hardware = mac().hardware()
    assert (hardware.chip, hardware.gpu_cores, hardware.bandwidth) == ("unknown", 0, 0.0)
    assert hardware.memory_bytes > 0  # psutil knows
    assert mac().pressure() is Pressure.NORMAL


def test_used_pages() -> None:
    assert probe.used_of_vm_stat(recorded("vm_stat")) == 160_000 * 16384
    assert probe.used_of_vm_stat("vm_stat: unknown option") == 0
    assert mac(hw_memsize=str(16 * GIB), vm_stat=recorded("vm_stat")).free_bytes() == 16 * GIB - 160_000 * 16384


@pytest.mark.parametrize(("level", "pressure"), [("1\n", "normal"), ("2\n", "warn"), ("4\n", "critical")])
def test_pressure_level(level: str, pressure: str) -> None:
    assert mac(kern_memorystatus_vm_pressure_level=level).pressure() == pressure


def test_pressure_by_percentage_when_there_is_no_level() -> None:
    assert probe.free_percent_of_memory_pressure(recorded("memory_pressure")) == 47
    assert mac(memory_pressure=recorded("memory_pressure")).pressure() is Pressure.NORMAL
    assert mac(memory_pressure="System-wide memory free percentage: 7%").pressure() is Pressure.WARN
    assert mac(memory_pressure="System-wide memory free percentage: 4%").pressure() is Pressure.CRITICAL


def test_the_gpus_share() -> None:
    assert Probe("Darwin", lambda argv: "11453251584\n" if "-c" in argv else "").working_set_bytes() == 11453251584
    assert mac(iogpu_wired_limit_mb="114688\n", hw_memsize="1").working_set_bytes() == 112 * GIB
    by_size = {
        gib: mac(iogpu_wired_limit_mb="0\n", hw_memsize=str(gib * GIB)).working_set_bytes() / GIB
        for gib in (16, 48, 128)
    }
    assert 10.0 < by_size[16] <= 10.67
    assert 34.0 < by_size[48] <= 37.44
    assert 100.0 < by_size[128] <= 107.53
    assert Probe("Linux").working_set_bytes() == 0


def test_chip_of_a_linux_machine() -> None:
    assert probe.chip_of_cpuinfo(recorded("cpuinfo")) == "AMD EPYC 9R14"
    assert probe.chip_of_cpuinfo(recorded("cpuinfo_arm")) == ""
    hardware = Probe("Linux").hardware()
    assert hardware.chip != ""
    assert hardware.memory_bytes > GIB // 4


def test_this_machine() -> None:
    here = Probe()
    assert here.pressure() in Pressure
    assert here.free_bytes() > 0
    assert here.process_bytes(os.getpid()) > 2**20
    assert here.process_bytes(2**22 + 1) == 0


def test_who_holds_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        holder = Probe().port_holder(port)
        assert holder is not None
        assert holder.pid == os.getpid()
        assert holder.name != ""
    assert Probe().port_holder(port) is None


def test_who_holds_a_port_without_the_right_to_see_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(kind: str) -> list[object]:
        raise probe.psutil.AccessDenied

    monkeypatch.setattr(probe.psutil, "net_connections", denied)
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = Probe().port_holder(server.getsockname()[1])
    assert isinstance(found, Holder)
    assert found.pid == os.getpid()


def test_commands_that_fail_say_nothing() -> None:
    assert probe.run_command(["no-such-command-here"]) == ""
    assert probe.run_command(["false"]) == ""
    assert probe.run_command(["echo", "yes"]) == "yes\n"


# Processes


def test_a_macs_footprint_of_a_process() -> None:
    """struct rusage_info_v0: a UUID, then ten numbers, the eighth is the footprint."""
    numbers = [11, 12, 13, 14, 15, 16, 300_000_000, 253_937_248, 19, 20]
    raw = b"\xaa" * 16 + b"".join(n.to_bytes(8, "little") for n in numbers)
    assert len(raw) == 96
    assert footprint_of_rusage(raw) == 253_937_248
    assert footprint_of_command(recorded("footprint")) == 253_937_248
    assert footprint_of_command("footprint: Unable to find pid for process matching '999999'") == 0


def test_a_mac_without_the_kernels_answer_asks_the_command() -> None:
    asked: list[Sequence[str]] = []

    def run(argv: Sequence[str]) -> str:
        asked.append(argv)
        return recorded("footprint")

    mac = Probe("Darwin", run)
    if sys.platform != "darwin":
        assert mac.worker_bytes(os.getpid()) >= 253_937_248
        assert asked[0] == ["footprint", "--noCategories", "--format", "bytes", str(os.getpid())]


def test_a_variable_of_a_process_from_ps() -> None:
    text = recorded("ps_eww")
    assert variable_of_ps(text, "MLX_STACK_WORKER") == "c0ffee"
    assert variable_of_ps(text, "STACK_WORKER") == ""
    assert variable_of_ps("", "MLX_STACK_WORKER") == ""


@pytest.mark.parametrize(
    ("stat", "birth"),
    [
        ("12 (python3 -m x) S 1 12 12 0 -1 4194560 1 0 0 0 3 1 0 0 25 5 1 0 98765 1 2", "boot:98765"),
        ("12 (odd ) name) R 1 12 12 0 -1 4194560 1 0 0 0 3 1 0 0 25 5 1 0 98765 1 2", "boot:98765"),
        ("12 (python3) Z 1 12 12 0 -1 4194560 1 0 0 0 3 1 0 0 25 5 1 0 98765 1 2", ""),
        ("", ""),
        ("12 (cut) S 1 2", ""),
    ],
)
def test_a_process_is_known_by_its_birth(stat: str, birth: str) -> None:
    assert birth_of_stat(stat, "boot\n") == birth


async def test_processes_here() -> None:
    here = Probe()
    child = subprocess.Popen([sys.executable, "-c", "print('up', flush=True); x = b'x' * 50_000_000; input()"], **CHILD)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        born = here.birth(child.pid)
        assert born
        assert born == here.birth(child.pid) != here.birth(os.getpid())
        assert here.variable(child.pid, "MARK") == "yes"
        assert here.variable(child.pid, "OTHER") == ""
        assert child.pid in here.pids()
        await until(lambda: here.worker_bytes(child.pid) > 50_000_000)
        child.send_signal(signal.SIGSTOP)
        await until(lambda: here.frozen(child.pid))
        child.kill()
        await until(lambda: here.birth(child.pid) == "")
        assert not here.frozen(child.pid)
    finally:
        child.kill()
        child.communicate()
    assert (here.birth(child.pid), here.worker_bytes(child.pid), here.variable(child.pid, "MARK")) == ("", 0, "")


CHILD: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {**os.environ, "MARK": "yes"}}
