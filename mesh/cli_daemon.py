"""`mlx-stack up`, `down` and `status`: the daemon's life as seen from outside."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import click
import msgspec

from mesh import answers, config, oldstack, render, stack
from mesh.cli_base import Command, as_json, client, home, warn
from mesh.client import MeshClient, MeshClientError
from mesh.home import Home, PidFile
from mesh.job import written_for
from node.io.engine import ModelSpec

LOOK_EVERY_S = 0.2
ANSWER_WITHIN_S = 30.0  # from the start of the daemon until its admin socket answers
READY_WITHIN_S = 600.0  # all models; a large one may take minutes from a slow disk
IDLE_LOOKS = 10  # so many looks with nothing loading: what is still absent stays so until it is asked for
STOP_WITHIN_S = 90.0  # drain included; then SIGTERM, then SIGKILL
TERMINATE_WITHIN_S = 10.0
KILLED_WITHIN_S = 2.5  # longer only when the kernel holds it
GONE_LOOK_EVERY_S = 0.05  # at the lock of a daemon that ends: the kernel tells nobody when it is free

RunDaemon = Callable[[Home, tuple[str, ...]], int]


@click.command(cls=Command)
@click.option("--foreground", is_flag=True, help="Be the daemon: one process, until Ctrl-C.")
@click.option("--dry-run", is_flag=True, help="Say what would run, start nothing.")
@click.option("--tier", "tiers", multiple=True, metavar="T", help="Only this tier; may be repeated.")
@click.pass_obj
def up(run_daemon: RunDaemon, foreground: bool, dry_run: bool, tiers: tuple[str, ...]) -> None:
    """Start this node and its models. Without models it still passes requests on."""
    place = home()
    settings = config.load(place)
    found = stack.load(place, settings, tiers=tiers)
    if dry_run:
        render.show(_plan(place, settings, found))
        return
    running = place.running()
    if running is not None and not foreground:
        _already(running)
        return
    uid, folder = os.getuid(), Path.home()
    if old := oldstack.in_the_way(place, settings.port, uid, folder):
        raise click.ClickException(old)
    if oldstack.agent_installed(folder):
        warn(oldstack.how_to_remove_agent(uid, folder))
    if foreground:
        sys.exit(run_daemon(place, tiers))
    place.create()
    since = place.daemon_log.stat().st_size if place.daemon_log.exists() else 0
    process = _spawn(place, tiers)
    daemon = _await_answer(place, process, since)
    if daemon is not None:
        _await_models(daemon, process, found)


def _already(running: PidFile) -> None:
    click.echo(f"Already running (pid {running.pid}). `mlx-stack status` shows more")


def _plan(place: Home, settings: config.Config, found: stack.Stack) -> list[render.Block]:
    """What `up` would do."""
    rows = []
    for tier, name in found.tiers.items():
        spec = next(s for s in found.specs if s.name == name)
        rows.append((tier, name, spec.engine, spec.problem or _runs(spec)))
    page: list[render.Block] = [f"home {place.root}, API on port {settings.port}, peers on port {settings.peer_port}"]
    page.append(
        render.Table(("TIER", "MODEL", "ENGINE", "RUNS"), tuple(rows)) if rows else "No models: requests are passed on."
    )
    return [*page, *(f"Note: {text}" for text in (*settings.warnings, *found.warnings))]


def _runs(spec: ModelSpec) -> str:
    if spec.engine == "external":
        return f"already runs at {spec.url}"
    if spec.hub:
        return f"is downloaded first, from {spec.hub}"
    port = str(spec.port) if spec.port else "PORT"
    words = spec.command or ("mlx_lm.server", "--model", "{model}", "--host", "127.0.0.1", "--port", "{port}")
    filled = [word.replace("{model}", spec.path).replace("{port}", port) for word in (*words, *spec.extra_args)]
    return shlex.join(_masked(filled))


def _masked(words: Sequence[str]) -> list[str]:
    """A command line without its secrets: what follows `--api-key` and the like, or its `=`."""
    result: list[str] = []
    hide = False
    for word in words:
        option, equals, _ = word.partition("=")
        secret = option.startswith("-") and any(
            part in option.lower() for part in ("key", "token", "secret", "password")
        )
        result.append("***" if hide else f"{option}=***" if secret and equals else word)
        hide = secret and not equals and not hide
    return result


def _spawn(place: Home, tiers: Sequence[str]) -> subprocess.Popen[bytes]:
    """The daemon as a process of its own session; what it prints goes to logs/daemon.log."""
    argv = [sys.executable, "-m", "mesh.cli", "up", "--foreground", *(word for t in tiers for word in ("--tier", t))]
    environment = {**os.environ, "MLX_STACK_HOME": str(place.root)}
    source = Path(__file__).resolve().parent.parent  # -m looks in the working folder first: nobody else's `mesh` there
    try:
        with place.daemon_log.open("ab") as log:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
                cwd=source,
            )
    except OSError as error:
        raise click.ClickException(f"the daemon cannot be started: {error}") from error


def _await_answer(place: Home, process: subprocess.Popen[bytes], since: int) -> MeshClient | None:
    """The client of the new daemon. None: another one was faster. Exits 1 with its last words if it ended."""
    patience = time.monotonic() + ANSWER_WITHIN_S
    while time.monotonic() < patience:
        ended = process.poll() is not None
        running = place.running()
        if running is not None and running.pid != process.pid and ended:
            _already(running)
            return None
        if ended:
            raise click.ClickException(
                f"the daemon did not start (exit code {process.returncode}){_last_words(place, since)}"
            )
        if running is not None and running.pid == process.pid:
            daemon = client()
            with suppress(MeshClientError):
                daemon.status()
                return daemon
        time.sleep(LOOK_EVERY_S)
    said = _last_words(place, since)
    raise click.ClickException(f"pid {process.pid} runs but did not answer within {ANSWER_WITHIN_S:.0f} s{said}")


def _last_words(place: Home, since: int, lines: int = 8) -> str:
    """What daemon.log holds beyond `since` bytes: its last lines, those of our own log as people read them."""
    try:
        with place.daemon_log.open("rb") as log:
            log.seek(since if since <= place.daemon_log.stat().st_size else 0)
            said = log.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        said = []
    return "".join(f"\n  {_message(line)}" for line in said) or f"; {place.daemon_log} says nothing of it"


def _message(line: str) -> str:
    try:
        return str(msgspec.json.decode(line)["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return line


def _await_models(daemon: MeshClient, process: subprocess.Popen[bytes], found: stack.Stack) -> None:
    """Follows the models until each is up, has failed or is being downloaded (which may take hours); exits 1 if none
    of those there are came up or is on its way."""
    states: dict[str, answers.ModelDetails] = {}
    patience, idle = time.monotonic() + READY_WITHIN_S, 0
    while found.tiers:
        if process.poll() is not None:
            raise click.ClickException(
                f"the daemon ended (exit code {process.returncode}): see `mlx-stack logs daemon`"
            )
        with suppress(MeshClientError):  # one slow answer; the process is watched above
            now = {model.name: model for model in daemon.models()}
            for name, model in now.items():
                if name not in states or states[name].state != model.state:
                    click.echo(f"{name}: {model.state}", err=True)
            states = now
        waiting = [m for m in states.values() if m.state in ("absent", "loading")]
        working = [m for m in waiting if m.state != "absent"]
        idle = 0 if working or not states else idle + 1
        if (states and not waiting) or idle >= IDLE_LOOKS or time.monotonic() > patience:
            break
        time.sleep(LOOK_EVERY_S)
    rows = [(tier, *_result(states.get(name)), name) for tier, name in found.tiers.items()]
    page: list[render.Block] = []
    if rows:
        page.append(
            render.Table(("TIER", "STATE", "MODEL"), tuple((tier, state, name) for tier, state, _, name in rows))
        )
        page += [f"{tier}: {why}" for tier, _, why, _ in rows if why]
    with suppress(MeshClientError):
        status = daemon.status()
        page.append(f"Up (pid {status.pid}): {status.url or f'http://localhost:{status.port}/v1'}")
        page += [f"Note: {text}" for text in (status.message, *status.warnings) if text]
    if not rows:
        page.append("No models here: requests are passed on. `mlx-stack models add DIRECTORY` adds one.")
    render.show(page)
    coming = any(m.state == "downloading" for m in states.values())
    if rows and not coming and not any(row[1] == "healthy" for row in rows):
        sys.exit(1)


def _result(model: answers.Model | None) -> tuple[str, str]:
    """(state, why) of one tier as `up` reports it."""
    match model.state if model else "":
        case "ready" | "busy":
            return "healthy", ""
        case "failed":
            return "failed", (model and model.error) or "-"
        case "loading":
            return "skipped", f"not ready after {READY_WITHIN_S:.0f} s; it goes on loading"
        case "downloading":
            return "skipped", f"{model and model.error}; `mlx-stack models` shows how far it is"
        case "absent":
            return "skipped", "does not fit beside the others now; it is loaded when asked for"
    return "skipped", "the node does not list it"


@click.command(cls=Command)
def down() -> None:
    """Stop this node: requests in flight end, the mesh hears goodbye, the models are unloaded."""
    place = home()
    pid = stop_daemon(place)
    click.echo(f"Stopped (pid {pid})" if pid is not None else "Nothing to stop")
    if pid is not None and (file := written_for(place, Path.home())):
        warn(f"{file} starts it again: `mlx-stack uninstall` ends that")


def stop_daemon(place: Home) -> int | None:
    """Ends the daemon of this home, by force if need be; its pid, None when none runs."""
    running = place.running()
    if running is None:
        return None
    try:
        MeshClient.of(place).stop()
    except MeshClientError:
        _signal(running.pid, signal.SIGTERM)  # it does not answer; its signal handler may
    for wait_s, then in (
        (STOP_WITHIN_S, signal.SIGTERM),
        (TERMINATE_WITHIN_S, signal.SIGKILL),
        (KILLED_WITHIN_S, None),
    ):
        if _released(place, wait_s):
            return running.pid
        if then is not None:
            warn(f"pid {running.pid} still runs after {wait_s:.0f} s: {then.name}")
            _signal(running.pid, then)
    raise click.ClickException(f"pid {running.pid} does not end; the system holds it. Restart the machine")


def _released(place: Home, wait_s: float) -> bool:
    """Is the home free within `wait_s`? Its lock goes with the process, whoever has to bury that."""
    patience = time.monotonic() + wait_s
    while place.locked():
        if time.monotonic() > patience:
            return False
        time.sleep(GONE_LOOK_EVERY_S)
    return True


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@click.command(cls=Command)
@as_json
def status(as_json: bool) -> None:
    """This node: its models, memory and mesh."""
    found = client().status()
    if as_json:
        render.show_json(found)
    else:
        render.show(render.status(found))
