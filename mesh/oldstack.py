"""The older mlx-stack, whose home this is too: is it running now? It wants the same ports and the same memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mesh.home import Home

AGENT = Path("~/Library/LaunchAgents/com.mlx-stack.watchdog.plist")
# What its services' command lines hold; a pid file alone may name a process that took the number later.
_COMMANDS = ("vllm-mlx", "vllm_mlx", "litellm", "mlx-stack", "mlx_stack")


def running(home: Home) -> list[str]:
    """Its services that run now, as "name (pid N)"."""
    found = []
    for path in sorted(home.old_pids.glob("*.pid")):
        try:
            pid = int(path.read_text(encoding="utf-8").strip())
        except (OSError, ValueError):
            continue
        if pid > 0 and any(word in _command_line(pid) for word in _COMMANDS):
            found.append(f"{path.stem} (pid {pid})")
    return found


def agent_installed() -> bool:
    """Does its LaunchAgent start it again at each login?"""
    return sys.platform == "darwin" and AGENT.expanduser().exists()


def how_to_stop(services: list[str]) -> str:
    """Two sentences for people."""
    agent = ", and `mlx-stack uninstall` of that version so that it does not come back" if agent_installed() else ""
    return (
        f"the older mlx-stack runs here: {', '.join(services)}. Stop it with the older version's `mlx-stack down`"
        f"{agent}; then run `up` again"
    )


def _command_line(pid: int) -> str:
    """The command line of a living process, "" of any other. `ps` is on both systems."""
    try:
        os.kill(pid, 0)
        answer = subprocess.run(
            ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, OverflowError, subprocess.SubprocessError):
        return ""
    return answer.stdout
