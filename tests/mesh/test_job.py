"""mesh/job.py: the file that starts a node at boot, for whom it runs, and what."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mesh import job
from mesh.errors import MeshError
from mesh.home import Home
from mesh.job import LABEL, UNIT, Account
from tests.mesh.jobs import BINARY, make


def test_the_plist_of_a_daemon_has_the_keys_that_keep_a_node_alive(tmp_path: Path) -> None:
    made = make("daemon", tmp_path, Home(Path("/Users/ann/.mlx-stack")))
    assert made.file == tmp_path / "Library/LaunchDaemons" / f"{LABEL}.plist"
    assert made.service == f"system/{LABEL}"
    keys = plistlib.loads(made.content)
    assert keys["Label"] == "com.mlx-stack.node"
    assert keys["ProgramArguments"] == [str(BINARY), "up", "--foreground"]
    assert keys["UserName"] == "ann"  # never root
    assert (keys["RunAtLoad"], keys["KeepAlive"], keys["ProcessType"]) == (True, True, "Interactive")
    assert keys["ThrottleInterval"] >= 1
    assert keys["ExitTimeOut"] > 30 + 10 + 5  # drain, workers, connections
    assert keys["SoftResourceLimits"]["NumberOfFiles"] >= 8192
    variables = keys["EnvironmentVariables"]
    assert variables["HOME"] == "/Users/ann"
    assert variables["PATH"].split(":")[0] == "/opt/venv/bin"
    assert {"/opt/homebrew/bin", "/usr/bin", "/bin"} <= set(variables["PATH"].split(":"))
    assert "MLX_STACK_HOME" not in variables
    assert keys["StandardErrorPath"] == keys["StandardOutPath"] == "/Users/ann/.mlx-stack/logs/daemon.log"


def test_the_plist_of_an_agent_names_no_user_and_a_home_of_ones_own_is_passed_on(tmp_path: Path) -> None:
    made = make("agent", tmp_path, Home(Path("/Volumes/big/stack")), HF_HOME="/Volumes/big/hf", HF_TOKEN="hf_secret")
    assert made.file == tmp_path / "Users/ann/Library/LaunchAgents" / f"{LABEL}.plist"
    assert made.service == f"gui/501/{LABEL}"
    assert not made.needs_root
    keys = plistlib.loads(made.content)
    assert "UserName" not in keys
    assert keys["EnvironmentVariables"]["MLX_STACK_HOME"] == "/Volumes/big/stack"
    assert keys["EnvironmentVariables"]["HF_HOME"] == "/Volumes/big/hf"
    assert b"secret" not in made.content  # everybody can read it


def section(text: str, name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.partition(f"[{name}]\n")[2].partition("\n[")[0].splitlines():
        key, equals, value = line.partition("=")
        if equals:
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_restarts_and_survives_a_worker_that_the_kernel_kills(tmp_path: Path) -> None:
    user, system = make("user", tmp_path, Home(Path("/home/50%"))), make("system", tmp_path)
    assert user.file == tmp_path / "Users/ann/.config/systemd/user/mlx-stack.service"
    assert system.file == tmp_path / "etc/systemd/system/mlx-stack.service"
    service = section(user.content.decode(), "Service")
    assert service["ExecStart"] == [f'"{BINARY}" "up" "--foreground"']
    assert service["Restart"] == ["always"]
    assert service["KillMode"] == ["mixed"]
    assert service["OOMPolicy"] == ["continue"]
    assert int(service["TimeoutStopSec"][0]) > 45
    assert '"MLX_STACK_HOME=/home/50%%"' in service["Environment"]
    assert "User" not in service
    assert section(user.content.decode(), "Install")["WantedBy"] == ["default.target"]
    assert section(system.content.decode(), "Service")["User"] == ["ann"]
    assert section(system.content.decode(), "Install")["WantedBy"] == ["multi-user.target"]
    assert section(system.content.decode(), "Unit")["StartLimitIntervalSec"] == ["0"]  # never given up


# Another program's opinion, where there is that program; what a node relies on is checked above, on every machine.
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on this machine")
def test_systemd_itself_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    who = Account("root", 0, 0, Path("/root"))
    binary = tmp_path / "with space 5%" / "mlx-stack"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    made = job.job("system", who, Home(tmp_path / "home"), binary, environment={}, root=tmp_path)
    made.file.parent.mkdir(parents=True)
    made.file.write_bytes(made.content)
    checked = subprocess.run(["systemd-analyze", "verify", made.file], capture_output=True, text=True, check=False)
    if "Failed to initialize manager" in checked.stderr:
        pytest.skip("systemd-analyze cannot start here, as in a bare container")
    assert UNIT not in checked.stderr
    assert checked.returncode == 0, checked.stderr


def test_whoever_used_sudo_is_whom_the_node_runs_as(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert job.account({"SUDO_UID": "1"}).uid == 1
    assert job.account({}).uid == 0
    with pytest.raises(MeshError, match="no account"):
        job.account({"SUDO_UID": "3999999999"})


def test_the_job_runs_the_command_beside_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MeshError, match="pip install"):
        job.binary("mlx-stack")

    def put(name: str) -> None:
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)

    put("mlx-stack-mesh")
    assert job.binary("pytest") == tmp_path / "mlx-stack-mesh"
    put("mlx-stack")
    assert job.binary("pytest") == tmp_path / "mlx-stack"
    assert job.binary("/usr/bin/mlx-stack-mesh") == tmp_path / "mlx-stack-mesh"


def test_an_installed_job_of_this_home_is_found(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert job.written_for(home, tmp_path) is None
    made = job.job("agent", Account("a", 1, 1, tmp_path), home, BINARY, environment={})
    made.file.parent.mkdir(parents=True)
    made.file.write_bytes(made.content)
    assert job.written_for(home, tmp_path) == made.file
    assert job.written_for(Home(tmp_path / "other"), tmp_path) is None
