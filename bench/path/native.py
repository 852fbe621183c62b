"""The loader and the fake engine, which are C: Python could not keep up with what they measure. Compiled when first
asked for, again when their source changes."""

from __future__ import annotations

import platform
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

from bench.report import ROOT

HERE = Path(__file__).parent
BUILT = ROOT / ".cache" / "bench-path"
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")


def missing(*tools: str) -> str:
    """What this machine lacks for the bench, as a sentence that says how to get it; "" when nothing is missing."""
    if platform.system() != "Linux":
        return "its loader and engine use epoll and its figures /proc: it runs on Linux only"
    absent = [tool for tool in tools if tool_path(tool) is None]
    return f"not found: {', '.join(absent)}. On Debian: apt-get install -y {' '.join(absent)}" if absent else ""


def tool_path(tool: str) -> str | None:
    """Servers live in a folder that not every user's PATH has."""
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/usr/local/sbin")


def built(name: str) -> Path:
    """The program of `name`.c. Raises RuntimeError with what the compiler said."""
    source = HERE / f"{name}.c"
    mark = sha256(source.read_bytes() + (HERE / "common.h").read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:12]
    program = BUILT / f"{name}-{mark}"
    if not program.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_name(f"{program.name}.{id(program)}")
        told = subprocess.run(
            ["gcc", *FLAGS, "-o", str(unfinished), str(source)], capture_output=True, text=True, check=False
        )
        if told.returncode:
            raise RuntimeError(f"gcc does not compile {source.name}: {told.stderr[-2000:]}")
        unfinished.replace(program)
    return program
