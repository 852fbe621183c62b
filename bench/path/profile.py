"""Where a daemon's time goes while it is asked as fast as it answers: bench/out/path-profile.txt.

py-spy says in which Python functions, perf in which C functions and system calls. Either may be missing; then the text
says so.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bench.report import OUT

LINES = 40
RATE = 500
MAIN = "MainThread"


def profiled(pid: int, seconds: float) -> str:
    """The text, of one process."""
    return f"{_python(pid, seconds)}\n\n{_native(pid, seconds)}\n"


def written(text: str, name: str = "path-profile.txt") -> Path:
    """Into bench/out."""
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / name
    file.write_text(text, encoding="utf-8")
    return file


def _python(pid: int, seconds: float) -> str:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return "py-spy is not installed: pip install py-spy"
    with tempfile.TemporaryDirectory(prefix="mlx-p-") as folder:
        raw = Path(folder) / "raw"
        words = ["record", "--pid", str(pid), "--duration", f"{seconds:.0f}", "--rate", str(RATE), "--threads"]
        told = subprocess.run(
            [program, *words, "--format", "raw", "--output", str(raw)], capture_output=True, text=True, check=False
        )
        if not raw.exists():
            return f"py-spy failed: {told.stderr[-500:]}"
        return summary(raw.read_text(encoding="utf-8"))


def summary(stacks: str) -> str:
    """Of collapsed stacks ("thread (1);a;b 12"): functions by the share of samples they are at the top of, and anywhere
    in. Of the main thread only: others wait, which py-spy does not always see. What a C function takes is its caller's.
    """
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    total = 0
    for line in stacks.splitlines():
        frames, _, times = line.rpartition(" ")
        thread, *functions = frames.split(";")
        if not (times.isdigit() and functions and thread.endswith(MAIN)):
            continue
        functions = [f"{function.rpartition(':')[0] or function})" for function in functions]
        total += int(times)
        own[functions[-1]] += int(times)
        for function in set(functions):
            within[function] += int(times)
    parts = [f"py-spy, {total} samples of the main thread"]
    for title, counted in (("itself", own), ("with what it calls", within)):
        parts.append(f"\n% of samples, {title}")
        parts += [f"{100 * n / max(1, total):6.1f}  {function}" for function, n in counted.most_common(LINES)]
    return "\n".join(parts)


def _native(pid: int, seconds: float) -> str:
    program = shutil.which("perf")
    if program is None:
        return "perf is not installed: apt-get install -y linux-perf"
    with tempfile.TemporaryDirectory(prefix="mlx-p-") as folder:
        data = str(Path(folder) / "data")
        words = ["record", "--quiet", "--pid", str(pid), "--output", data, "--", "sleep", f"{seconds:.0f}"]
        told = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        if told.returncode:
            return f"perf failed: {told.stderr[-500:]}"
        words = ["report", "--stdio", "--input", data, "--sort", "dso,symbol", "--percent-limit", "0.5"]
        said = subprocess.run([program, *words], capture_output=True, text=True, check=False).stdout
    lines = [line.rstrip() for line in said.splitlines() if line.strip() and not line.startswith("#")]
    return "\n".join(["perf", *lines[: 2 * LINES]])
