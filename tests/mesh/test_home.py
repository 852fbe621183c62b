"""The home folder: who may run there, and where its socket is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.home import SOCKET_PATH_BYTES_MAX, Home, HomeError, PidFile

HOLDER = """
import sys
from pathlib import Path
from mesh.home import Home
home = Home(Path(sys.argv[1]))
lock = home.lock()
home.write_pid(home.socket)
print("held", flush=True)
sys.stdin.read()
"""


def test_the_environment_names_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLX_STACK_HOME", str(tmp_path / "x"))
    assert Home.of_environment().root == tmp_path / "x"
    monkeypatch.delenv("MLX_STACK_HOME")
    assert Home.of_environment().root == Path.home() / ".mlx-stack"


def test_one_process_holds_a_home_and_its_end_frees_it(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert home.running() is None
    command = [sys.executable, "-c", HOLDER, str(home.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert home.running() == PidFile(holder.pid, home.root / "daemon.sock")
        with pytest.raises(HomeError, match=f"pid {holder.pid}") as refused:
            home.lock()
        assert refused.value.pid == holder.pid
        holder.kill()
        holder.wait()
    assert home.read_pid() is not None  # the file outlives a kill; it proves nothing
    assert home.running() is None
    with home.lock():
        assert home.locked()
    assert not home.locked()


def test_looking_does_not_keep_a_daemon_from_starting(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for _ in range(50):
        assert not home.locked()
        home.lock().release()


def test_a_long_path_moves_the_socket_to_a_private_folder(tmp_path: Path) -> None:
    home = Home(tmp_path / ("long-" * 20))
    home.create()
    path = home.prepare_socket()
    assert len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX
    assert path.parent.stat().st_mode & 0o077 == 0
    home.write_pid(path)
    assert home.running_socket() == path
    assert Home(tmp_path / ("other" * 20)).socket != path
    path.parent.rmdir()


def test_a_short_path_keeps_the_socket_at_home_and_a_left_over_is_removed(tmp_path: Path) -> None:
    home = Home(Path("/tmp") / f"h{os.getpid()}")
    home.create()
    try:
        (home.root / "daemon.sock").write_text("left over")
        assert home.prepare_socket() == home.root / "daemon.sock"
        assert not (home.root / "daemon.sock").exists()
    finally:
        subprocess.run(["rm", "-r", str(home.root)], check=True)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(HomeError, match="MLX_STACK_HOME"):
        Home(tmp_path / "home").lock()


@pytest.mark.parametrize("content", ["", "x\ny\n", "12"])
def test_a_strange_pid_file_is_nobody(tmp_path: Path, content: str) -> None:
    home = Home(tmp_path)
    home.pid_file.write_text(content)
    assert home.read_pid() is None
    assert home.running_socket() == home.socket


def test_what_the_daemon_writes_is_no_business_of_other_users(tmp_path: Path) -> None:
    made = Home(tmp_path / "new")
    made.create()
    assert made.root.stat().st_mode & 0o777 == 0o700
    old = Home(tmp_path / "old")
    for folder in (old.root, old.models, old.logs):
        folder.mkdir(mode=0o755)
    old.create()
    modes = [folder.stat().st_mode & 0o777 for folder in (old.root, old.models, old.logs, old.node, old.mesh)]
    assert modes == [0o755, 0o755, 0o700, 0o700, 0o700], "a home that somebody made keeps its mode"
