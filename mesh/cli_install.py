"""`mlx-stack install` and `uninstall`: this node at boot, by launchd or systemd."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from mesh import job as jobs
from mesh import oldstack, render
from mesh.cli_base import Command, as_json, warn
from mesh.cli_daemon import stop_daemon
from mesh.client import MeshClient, MeshClientError
from mesh.errors import MeshError
from mesh.install import Installer, Launchd, Run, State, Systemd, commands, run_command
from mesh.job import Job, Kind

ANSWERS_WITHIN_S = 30.0
LOOK_EVERY_S = 0.2
RUN: Run = run_command
ROOT = Path("/")
_WORDS: dict[str, str] = {
    "daemon": "LaunchDaemon",
    "agent": "LaunchAgent",
    "system": "systemd system unit",
    "user": "systemd user unit",
}
_AGENT_WARNING = (
    "a LaunchAgent starts at login, not at boot, and macOS 15 and later must allow it the local network "
    "(System Settings, Privacy & Security): until then this node finds no other"
)


@click.command(cls=Command)
@click.option("--agent", is_flag=True, help="macOS: a LaunchAgent, without sudo; runs while you are logged in.")
@click.option("--system", is_flag=True, help="Linux: a unit of the system, with sudo, instead of one of the user.")
@click.option("--dry-run", is_flag=True, help="Print the file and the commands, change nothing.")
@click.option("--status", "look", is_flag=True, help="Say whether it is installed and runs.")
@as_json
def install(*, agent: bool, system: bool, dry_run: bool, look: bool, as_json: bool) -> None:
    """Start this node at boot, and again whenever it ends. Installing again replaces the job."""
    if look:
        _show_status(as_json)
        return
    job = _job(_kind(agent, system), command=jobs.binary())
    if dry_run:
        _show_plan(job, as_json)
        return
    if job.needs_root and os.geteuid() != 0:
        raise _needs_root(job, "install", *(["--system"] if job.kind == "system" else []))
    if job.kind == "agent" and os.geteuid() == 0:
        raise MeshError("root", "a LaunchAgent belongs to the user who logs in", hint="the same without sudo")
    _remove_others(job)
    installer = _installer()
    if not installer.look(job).running and (pid := stop_daemon(job.home)) is not None:
        click.echo(f"Stopped the node that ran by hand (pid {pid})", err=True)
    for text in _warnings(job):
        warn(text)
    installer.install(job)
    _await_answer(job)
    if as_json:
        render.show_json(_status())
    else:
        click.echo(f"Installed as {_WORDS[job.kind]}: {job.file}")
        click.echo(_runs(installer.look(job)))


@click.command(cls=Command)
@as_json
def uninstall(as_json: bool) -> None:
    """Start this node at boot no longer, and stop it now. Models, settings and logs stay."""
    installer, removed = _installer(), []
    for job in _known():
        state = installer.look(job)
        if not (state.installed or state.loaded):
            continue
        if job.needs_root and os.geteuid() != 0:
            raise _needs_root(job, "uninstall")
        installer.uninstall(job)
        removed.append(str(job.file))
    if as_json:
        render.show_json({"removed": removed})
    else:
        click.echo("\n".join(f"Removed {file}" for file in removed) or "Not installed")


def _kind(agent: bool, system: bool) -> Kind:
    if sys.platform == "darwin":
        if system:
            raise click.UsageError("--system is for Linux; on macOS a job of the system is the default")
        return "agent" if agent else "daemon"
    if agent:
        raise click.UsageError("--agent is for macOS; on Linux a unit of the user is the default")
    return "system" if system or os.geteuid() == 0 else "user"


def _kinds() -> tuple[Kind, ...]:
    return ("daemon", "agent") if sys.platform == "darwin" else ("system", "user")


def _job(kind: Kind, command: Path) -> Job:
    who = jobs.account()
    return jobs.job(kind, who, who.home, command, root=ROOT)


def _known() -> list[Job]:
    """Every job this node could have on this system."""
    try:
        command = jobs.binary()
    except MeshError:
        command = Path("mlx-stack")  # gone or moved: its job can still be found and removed
    return [_job(kind, command) for kind in _kinds()]


def _installer() -> Installer:
    return Installer(Launchd(RUN) if sys.platform == "darwin" else Systemd(RUN))


def _needs_root(job: Job, *words: str) -> MeshError:
    """Says what to type, whole: sudo has another PATH and passes no variables on."""
    command = jobs.binary() if words[0] == "install" else Path(sys.argv[0]).absolute()
    where = [] if job.home.root == job.account.default_root else [f"MLX_STACK_HOME={job.home.root}"]
    typed = shlex.join(["sudo", *where, str(command), *words])
    instead = ", or `mlx-stack install --agent`, which needs none" if words == ("install",) else ""
    return MeshError("needs_root", f"a {_WORDS[job.kind]} needs an administrator", hint=f"type `{typed}`{instead}")


def _remove_others(job: Job) -> None:
    """Two jobs of one node would fight for its home."""
    installer = _installer()
    for other in _known():
        state = installer.look(other)
        if other.kind == job.kind or not (state.installed or state.loaded):
            continue
        if other.needs_root and os.geteuid() != 0:
            raise _needs_root(other, "uninstall")
        if other.kind == "user":  # root cannot speak to another user's systemd
            hint = f"`mlx-stack uninstall` as {other.account.name}, without sudo"
            raise MeshError("installed", f"{other.file} starts this node already", hint=hint)
        installer.uninstall(other)


def _warnings(job: Job) -> list[str]:
    found = []
    if job.kind == "agent":
        found.append(_AGENT_WARNING)
    if job.needs_root and job.account.uid == 0:
        found.append("the node will run as root: install with sudo from your own account, and it runs as you")
    stray = sorted(v for v in os.environ if v.startswith("MLX_STACK_") and v != "MLX_STACK_HOME")
    if stray:
        found.append(f"not passed on to the job: {', '.join(stray)}. `mlx-stack config set` keeps settings")
    if oldstack.agent_installed(job.account.folder):
        found.append(oldstack.how_to_remove_agent(job.account.uid, job.account.folder))
    return found


def _await_answer(job: Job) -> None:
    patience = time.monotonic() + ANSWERS_WITHIN_S
    while time.monotonic() < patience:
        try:
            MeshClient.of(job.home).status()
        except MeshClientError:
            time.sleep(LOOK_EVERY_S)
        else:
            return
    warn(f"it does not answer after {ANSWERS_WITHIN_S:.0f} s; `mlx-stack logs daemon` may say why")


def _status() -> dict[str, object]:
    installer = _installer()
    states = [installer.look(job) for job in _known()]
    who = jobs.account()
    return {
        "installed": any(state.installed for state in states),
        "running": any(state.running for state in states),
        "jobs": [state for state in states if state.installed or state.loaded],
        "old_agent": str(oldstack.agent(who.folder)) if oldstack.agent_installed(who.folder) else None,
    }


def _show_status(as_json: bool) -> None:
    found = _status()
    if as_json:
        render.show_json(found)
        return
    states = found["jobs"]
    assert isinstance(states, Sequence)
    for state in states:
        click.echo(f"Installed as {_WORDS[state.kind]}: {state.file}")
        click.echo(_runs(state))
        if state.installed and not state.current:
            click.echo("Its file is not what `mlx-stack install` would write now: install again to renew it")
    if not states:
        click.echo("Not installed. `mlx-stack install` starts this node at boot")
    if found["old_agent"]:
        click.echo(f"Note: {oldstack.how_to_remove_agent(jobs.account().uid, jobs.account().folder)}")


def _runs(state: State) -> str:
    if state.running:
        return f"It runs (pid {state.pid})"
    last = f"; its last exit code was {state.last_exit}" if state.last_exit is not None else ""
    return f"It does not run now{last}. `mlx-stack logs daemon` may say why" if state.loaded else "It is not started"


def _show_plan(job: Job, as_json: bool) -> None:
    typed = commands(job)
    content = job.content.decode()
    if as_json:
        render.show_json({"kind": job.kind, "file": str(job.file), "content": content, "commands": typed})
        return
    root = " (as root)" if job.needs_root else ""
    page = [f"would write {job.file}{root}:", "", content.rstrip(), "", f"and run{root}:"]
    render.show([*page, *(f"  {shlex.join(argv)}" for argv in typed), *(f"Note: {t}" for t in _warnings(job))])
