"""Runs a command that must not outlive the daemon: `python guard.py ARGV...` becomes ARGV, keeping the pid.

stdin is a pipe the daemon holds open. A small twin stays behind in the same process group: when the pipe closes,
however the daemon died, it ends the group; when the command is gone it goes too. Works on macOS, where a child
cannot ask the kernel to be told of its parent's death. Standard library only: it starts in some ten milliseconds.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from typing import NoReturn

GRACE_S = 5.0
LOOK_S = 1.0
END_LOOK_S = 0.1  # only its own parent would be told of its end, and that is gone


def watch(group: int) -> None:
    """Waits for the end of stdin or of the command (our parent), then ends what is left of the group."""
    for quiet in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(quiet, signal.SIG_IGN)
    while os.getppid() == group:
        if select.select([0], [], [], LOOK_S)[0] and not os.read(0, 1024):
            break
    if os.getppid() == group:
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while os.getppid() == group and time.monotonic() < deadline:
            time.sleep(END_LOOK_S)
    os.killpg(group, signal.SIGKILL)  # the twin as well


def main() -> NoReturn:
    """Forks the twin and becomes the command."""
    pid = os.getpid()
    if os.getpgrp() != pid:
        os.setpgid(0, 0)  # run by hand: without a group of its own the twin would end the shell's
    if os.fork() == 0:
        watch(pid)
        os._exit(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - argv is a list; a shell is what we do not want
    except OSError as error:
        print(f"cannot run {sys.argv[1]}: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201 - as a shell says it
        os._exit(127)


if __name__ == "__main__":
    main()
