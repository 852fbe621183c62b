"""Start at boot: every command in its order, and what a person is told. No job is made on this machine."""

from __future__ import annotations

import json
import os
import plistlib
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mesh import cli_install, job, oldstack
from mesh.errors import MeshError
from mesh.home import Home
from mesh.install import GONE_WITHIN_S, Installer, Launchd, Ran, Systemd, commands
from mesh.job import LABEL, UNIT
from tests.mesh.commands import run
from tests.mesh.jobs import ANN, BINARY, make

# As `launchctl print` says it on macOS, shortened.
PRINTED = f"""system/{LABEL} = {{
\tactive count = 1
\tpath = /Library/LaunchDaemons/{LABEL}.plist
\ttype = LaunchDaemon
\tstate = running

\tprogram = /opt/venv/bin/mlx-stack
\tpid = 4711
\truns = 3
\tlast exit code = 1
}}"""


class System:
    """launchd and systemd as far as commands see them; records every command."""

    def __init__(self, *loaded: str) -> None:
        self.ran: list[str] = []
        self.loaded = set(loaded)
        self.lingers = 0  # so many looks after a bootout the job is still there
        self.busy: list[int] = []  # codes of the next bootstraps that fail
        self.now = 0.0

    def run(self, argv: Sequence[str]) -> Ran:
        self.ran.append(" ".join(argv))
        match list(argv):
            case ["launchctl", "print", service]:
                if service not in self.loaded and self.lingers:
                    self.lingers -= 1
                    return Ran(0, PRINTED)
                return Ran(0, PRINTED) if service in self.loaded else Ran(113, "Could not find service")
            case ["launchctl", "bootout", service]:
                self.loaded.discard(service)
            case ["launchctl", "bootstrap", domain, _]:
                if self.busy:
                    return Ran(self.busy.pop(0), "Bootstrap failed: 5: Input/output error")
                self.loaded.add(f"{domain}/{LABEL}")
            case ["systemctl", *words]:
                return self._systemctl("user" if "--user" in words else "system", words)
            case _:
                pass
        return Ran(0)

    def _systemctl(self, manager: str, words: list[str]) -> Ran:
        if "enable" in words:
            self.loaded.add(manager)
        elif "disable" in words:
            self.loaded.discard(manager)
        if manager in self.loaded:
            return Ran(0, "LoadState=loaded\nMainPID=77\nExecMainStatus=0\nActiveState=active")
        return Ran(0, "LoadState=not-found\nMainPID=0\nExecMainStatus=0\nActiveState=inactive")

    def pause(self, seconds: float) -> None:
        self.now += seconds

    @property
    def launchd(self) -> Launchd:
        return Launchd(self.run, self.pause, lambda: self.now)

    @property
    def changes(self) -> list[str]:
        """All that was run but questions."""
        return [line for line in self.ran if " print " not in line and " show " not in line]


def given(_path: Path, _uid: int, _gid: int) -> None:
    pass


# The commands


def test_a_daemon_is_written_then_bootstrapped(tmp_path: Path) -> None:
    system, gifts = System(), list[tuple[str, int, int]]()
    installer = Installer(system.launchd, chown=lambda path, uid, gid: gifts.append((path.name, uid, gid)))
    made = make("daemon", tmp_path)
    installer.install(made)
    assert system.changes == [
        f"launchctl enable system/{LABEL}",
        f"launchctl bootstrap system {made.file}",
    ]
    assert made.file.read_bytes() == made.content
    assert made.file.stat().st_mode & 0o777 == 0o644
    assert gifts == [("home", 501, 20), ("logs", 501, 20), ("daemon.log", 501, 20)]
    state = installer.look(made)
    assert (state.installed, state.current, state.loaded, state.running) == (True, True, True, True)
    assert (state.pid, state.last_exit) == (4711, 1)


def test_installing_again_waits_until_the_old_job_has_left_and_its_label_is_free(tmp_path: Path) -> None:
    system = System(f"gui/501/{LABEL}")
    system.lingers, system.busy = 5, [5, 37, 5]
    made = make("agent", tmp_path)
    made.file.parent.mkdir(parents=True)
    made.file.write_text("an older version's")
    installer = Installer(system.launchd, given)
    assert not installer.look(made).current
    installer.install(made)
    assert system.changes == [
        f"launchctl bootout gui/501/{LABEL}",
        f"launchctl enable gui/501/{LABEL}",
        *[f"launchctl bootstrap gui/501 {made.file}"] * 4,
    ]
    assert system.now > 0
    assert installer.look(made).current


def test_a_job_that_does_not_leave_or_is_refused_is_said(tmp_path: Path) -> None:
    made, system = make("agent", tmp_path), System(f"gui/501/{LABEL}")
    system.lingers = 10**6
    with pytest.raises(MeshError, match="does not let"):
        Installer(system.launchd, given).install(made)
    assert system.now > GONE_WITHIN_S
    assert not made.file.exists()
    for codes in ([78], [5] * 10**3):
        system = System()
        system.busy = codes
        with pytest.raises(MeshError, match="Input/output error"):
            Installer(system.launchd, given).install(made)


def test_uninstalling_stops_the_job_and_leaves_everything_else(tmp_path: Path) -> None:
    system, made = System(), make("daemon", tmp_path)
    installer = Installer(system.launchd, given)
    installer.install(made)
    system.ran.clear()
    assert installer.uninstall(made)
    assert system.changes == [f"launchctl bootout system/{LABEL}"]
    assert not made.file.exists()
    assert made.home.daemon_log.exists()
    assert not installer.uninstall(made)


def test_a_systemd_unit_is_enabled_and_lingers(tmp_path: Path) -> None:
    system, made = System(), make("user", tmp_path)
    installer = Installer(Systemd(system.run), given)
    installer.install(made)
    assert system.changes == [
        "systemctl --user daemon-reload",
        f"systemctl --user enable --now {UNIT}",
        "loginctl enable-linger ann",
    ]
    assert (installer.look(made).running, installer.look(made).pid) == (True, 77)
    system.ran.clear()
    installer.install(made)
    assert system.changes[0] == f"systemctl --user disable --now {UNIT}"
    assert installer.uninstall(made)
    assert system.changes[-1] == f"systemctl --user disable --now {UNIT}"
    assert [line.split()[1] for line in map(" ".join, commands(make("system", tmp_path)))] == [
        "daemon-reload",
        "enable",
    ]


def test_without_a_session_bus_systemd_says_why(tmp_path: Path) -> None:
    refused = Systemd(lambda argv: Ran(1, "Failed to connect to bus: No medium found"))
    with pytest.raises(MeshError, match="Failed to connect to bus"):
        Installer(refused, given).install(make("user", tmp_path))


# The command line


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    """A Mac as the command line sees it: user ann, nobody's job yet."""
    system = System()
    folder = tmp_path / "mac"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    monkeypatch.setattr(job, "account", lambda: ANN)
    monkeypatch.setattr(job, "binary", lambda: BINARY)
    monkeypatch.setattr(cli_install, "RUN", system.run)
    monkeypatch.setattr(cli_install, "ROOT", folder)
    monkeypatch.setattr(cli_install, "ANSWERS_WITHIN_S", 0.0)
    monkeypatch.setattr(cli_install, "Launchd", lambda run: Launchd(run, system.pause, lambda: system.now))
    monkeypatch.setattr(
        oldstack, "agent", lambda _: folder / "Users/ann/Library/LaunchAgents/com.mlx-stack.watchdog.plist"
    )
    return system


def test_a_daemon_without_sudo_says_what_to_type(mac: System, home: Home) -> None:
    found = run("install")
    assert found.exit_code == 1
    assert f"`sudo MLX_STACK_HOME={home.root} {BINARY} install`" in found.stderr
    assert "install --agent" in found.stderr
    assert mac.changes == []


def test_an_agent_is_installed_with_a_warning_shown_and_removed(mac: System, home: Home) -> None:
    assert run("install", "--status").stdout == "Not installed. `mlx-stack install` starts this node at boot\n"
    found = run("install", "--agent")
    assert found.exit_code == 0, found.stderr
    assert "local network" in found.stderr
    assert "Installed as LaunchAgent" in found.stdout
    assert "runs (pid 4711)" in run("install", "--status").stdout
    status = json.loads(run("install", "--status", "--json").stdout)
    assert (status["installed"], status["running"], status["old_agent"]) == (True, True, None)
    assert status["jobs"][0]["kind"] == "agent"
    assert status["jobs"][0]["current"] is True
    removed = run("uninstall")
    assert removed.stdout.startswith("Removed ")
    assert run("uninstall").stdout == "Not installed\n"


def test_root_installs_a_daemon_in_the_place_of_an_agent(
    mac: System, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("install", "--agent").exit_code == 0
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cli_install, "Installer", lambda manager: Installer(manager, given))
    assert "the same without sudo" in run("install", "--agent").stderr
    mac.ran.clear()
    found = run("install", "--json")
    assert found.exit_code == 0, found.stderr
    assert mac.changes[0] == f"launchctl bootout gui/501/{LABEL}"
    assert mac.changes[-1].startswith("launchctl bootstrap system ")
    assert [state["kind"] for state in json.loads(found.stdout)["jobs"]] == ["daemon"]
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    assert "sudo" in run("uninstall").stderr
    assert "sudo" in run("install", "--agent").stderr  # the daemon must go first


def test_the_older_watchdogs_agent_is_named(mac: System, home: Home) -> None:
    old = oldstack.agent(Path("/Users/ann"))
    old.parent.mkdir(parents=True)
    old.write_text("<plist/>")
    said = run("install", "--status").stdout
    assert f"launchctl bootout gui/501/com.mlx-stack.watchdog; rm {old}" in said
    assert json.loads(run("install", "--status", "--json").stdout)["old_agent"] == str(old)
    assert "com.mlx-stack.watchdog" in run("install", "--agent").stderr
    assert old.exists()  # not ours to remove


def test_a_dry_run_prints_the_file_and_the_commands(mac: System, home: Home) -> None:
    found = run("install", "--dry-run")
    assert found.exit_code == 0
    assert "(as root)" in found.stdout
    assert "<key>UserName</key>" in found.stdout
    assert "launchctl bootstrap system" in found.stdout
    plan = json.loads(run("install", "--dry-run", "--json").stdout)
    assert plistlib.loads(plan["content"].encode())["Label"] == LABEL
    assert mac.ran == []
    assert run("install", "--system").exit_code == 2


def test_linux_installs_a_unit_of_the_user(mac: System, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    found = run("install")
    assert found.exit_code == 0, found.stderr
    assert "Installed as systemd user unit" in found.stdout
    assert run("install", "--agent").exit_code == 2
    assert "sudo" in run("install", "--system").stderr
