"""Child processes and the guard, with small shell and Python children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench import ports
from node.io.process import GUARD, TOKEN_VARIABLE, Child, child_environment, free_port
from tests.mesh.waiting import until

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


async def spawned(log: Path, *argv: str) -> Child:
    return await Child.spawn(argv, env=child_environment("mine", {}), log=log, tail_bytes=1000)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_wanted_port_is_given_if_it_is_free() -> None:
    port = ports.free_port()
    assert free_port(port) == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert free_port(port) not in {0, port}


async def test_output_goes_to_the_log_and_its_end_into_the_diagnosis(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.log"
    log.parent.mkdir()
    log.write_text("an earlier run: out of memory\n")
    child = await spawned(log, sys.executable, "-c", "raise OSError('[Errno 98] Address already in use')")
    said = await child.exited()
    assert "its port is taken" in said
    assert "exit code 1" in said
    assert log.read_text().startswith("an earlier run")
    assert "earlier" not in child.tail()


async def test_a_rotated_log_still_gives_its_end(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("x" * 5000)
    child = await spawned(log, sys.executable, "-c", "print('last words')")
    os.truncate(log, 0)
    await child.exited()
    assert child.exit_code == 0
    assert len(child.tail()) < 5000


async def test_children_carry_the_token(tmp_path: Path) -> None:
    child = await spawned(tmp_path / "x.log", sys.executable, "-c", f"import os; print(os.environ['{TOKEN_VARIABLE}'])")
    await child.exited()
    assert child.tail() == "mine\n"


async def test_a_nice_child_gives_way_to_us(tmp_path: Path) -> None:
    argv, env = (sys.executable, "-c", "input()"), child_environment("mine", {})
    child = await Child.spawn(argv, env=env, log=tmp_path / "x.log", tail_bytes=1000, nice=3)
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == min(ours + 3, 19)
    await child.stop(5.0)


async def test_what_ignores_a_polite_end_is_killed_after_the_grace(tmp_path: Path) -> None:
    child = await spawned(tmp_path / "x.log", sys.executable, "-c", STUBBORN)
    await until(lambda: "up" in child.tail())
    await child.stop(0.2)
    assert child.exit_code == -signal.SIGKILL
    assert gone(child.pid)
    await child.stop(0.2)


async def test_the_whole_group_goes_with_its_leader(tmp_path: Path) -> None:
    child = await spawned(tmp_path / "x.log", "/bin/sh", "-c", "sleep 600 & echo $!; wait")
    await until(lambda: "\n" in child.tail())
    grandchild = int(child.tail())
    await child.stop(2.0)
    await until(lambda: gone(grandchild))


async def test_a_leader_that_ends_by_itself_leaves_nobody_behind(tmp_path: Path) -> None:
    child = await spawned(tmp_path / "x.log", "/bin/sh", "-c", "sleep 600 & echo $!")
    assert await child.exited()
    grandchild = int(child.tail())
    await until(lambda: gone(grandchild))


async def test_a_missing_program_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await spawned(tmp_path / "x.log", "/nowhere/program")


async def test_the_guard_becomes_the_command(tmp_path: Path) -> None:
    guarded = (sys.executable, "-I", "-S", str(GUARD))
    child = await spawned(tmp_path / "x.log", *guarded, "/bin/sh", "-c", "echo $$; exit 7")
    said = await child.exited()
    assert int(child.tail()) == child.pid
    assert "exit code 7" in said
    missing = await spawned(tmp_path / "y.log", *guarded, "/nowhere/program")
    assert "cannot run /nowhere/program" in await missing.exited()


@pytest.mark.parametrize("script", ["echo $$; exec sleep 600", "trap '' TERM; echo $$; while :; do sleep 0.2; done"])
async def test_a_guarded_command_ends_with_its_parent(tmp_path: Path, script: str) -> None:
    parent = (
        "import os, subprocess, sys\n"
        "pipe = subprocess.PIPE\n"
        "child = subprocess.Popen(sys.argv[1:], stdin=pipe, stdout=pipe, start_new_session=True)\n"
        "print(child.stdout.readline().decode(), end='', flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    argv = [sys.executable, "-c", parent, sys.executable, "-I", "-S", str(GUARD), "/bin/sh", "-c", script]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    await until(lambda: gone(pid))
