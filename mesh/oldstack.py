"""The older mlx-stack, whose home this is too: is it running now? It wants the same ports and the same memory."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import subprocess
from pathlib import Path

from mesh.home import Home
from mesh.job import OLD_LABEL

GATEWAY_LIMIT_S = 2.0
# How its services are called, by path or as a module. A pid file alone may name a process that took the number later,
# and a model's path below ~/.mlx-stack names nobody.
_SERVICE = re.compile(r"(?:.*/)?(?:vllm-mlx|litellm)\Z|(?:vllm_mlx|litellm)(?:\.\w+)*\Z")
_WATCHDOG = re.compile(r"(?:.*/)?mlx-stack\Z|mlx_stack(?:\.\w+)*\Z")


def running(home: Home) -> dict[str, int]:
    """Its services that run now, by name, with their pid."""
    found = {}
    for path in [*sorted(home.old_pids.glob("*.pid")), home.root / "watchdog.pid"]:
        try:
            pid = int(path.read_text(encoding="utf-8").strip())
        except (OSError, ValueError):
            continue
        if pid > 0 and is_its(_command_line(pid)):
            found[path.stem] = pid
    return found


def gateway(port: int) -> bool:
    """Does a LiteLLM gateway, which is the older mlx-stack's, answer on this port? Asked in its own words: on a Mac
    only root may see whose port it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GATEWAY_LIMIT_S)
    try:
        connection.request("GET", "/health/liveliness")
        answer = connection.getresponse()
        return answer.status == 200 and b"alive" in answer.read(200).lower()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def agent(folder: Path) -> Path:
    """Its LaunchAgent in the home directory `folder`."""
    return folder / "Library" / "LaunchAgents" / f"{OLD_LABEL}.plist"


def agent_installed(folder: Path) -> bool:
    """Does its LaunchAgent start it again at each login?"""
    return agent(folder).exists()


def how_to_remove_agent(uid: int, folder: Path) -> str:
    """What to type, for people."""
    file = shlex.quote(str(agent(folder)))
    return (
        f"the older mlx-stack's LaunchAgent {OLD_LABEL} starts it at each login: "
        f"`launchctl bootout gui/{uid}/{OLD_LABEL}; rm {file}` removes it"
    )


def in_the_way(home: Home, port: int, uid: int, folder: Path) -> str:
    """What runs of it and how to stop that, in two sentences for people; "" when nothing does. `port` is the API's."""
    services = running(home)
    what = [f"{name} (pid {pid})" for name, pid in services.items()]
    if gateway(port):
        what.append(f"its gateway on port {port}")
    if not what:
        return ""
    stop = "the older version's `mlx-stack down`"
    if services:
        stop += f" or `kill {' '.join(map(str, services.values()))}`"
    again = f". Then, {how_to_remove_agent(uid, folder)}" if agent_installed(folder) else ""
    return f"the older mlx-stack runs here: {', '.join(what)}. Stop it with {stop}, then run `up` again{again}"


def is_its(command: str) -> bool:
    """Is this the command line of one of its services? Before the name may stand an interpreter with options."""
    words = command.split()
    first = words[:4]
    return any(_SERVICE.match(word) for word in first) or (
        "watch" in words and any(_WATCHDOG.match(word) for word in first)
    )


def _command_line(pid: int) -> str:
    """The command line of a living process, "" of any other. `ps` is on both systems; -ww: whole,
    however wide the window is."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # it lives
    except (OSError, OverflowError):
        return ""
    try:
        answer = subprocess.run(
            ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout
