"""Why a model server ended or would not start: one sentence from its exit code and the end of its output."""

from __future__ import annotations

import re
import signal

PORT_TAKEN = "its port is taken"

# First match wins: causes that produce other causes' words as a consequence come first.
_KINDS = {
    "out of memory": (
        r"Insufficient Memory|out of memory|OutOfMemory|MemoryError|bad_alloc",
        r"(Cannot|Unable to|Attempting to) allocate|\[metal::malloc\]",
    ),
    PORT_TAKEN: (r"[Aa]ddress already in use|EADDRINUSE|port \d+ is (already )?in use",),
    "the model is not downloaded": (
        r"LocalEntryNotFound|OfflineMode|offline mode|outgoing traffic|Repository Not Found|HFValidationError",
        r"Cannot find an appropriate cached snapshot",
    ),
    "this kind of model is not supported": (r"Model type .* not supported|No module named 'mlx_lm\.models",),
    "bad weights": (
        r"\[load_safetensors\]|[Ss]afetensors|\[read\]|Unable to read",
        r"(Missing|Received) \d+ parameters|Expected shape",
    ),
    "its tokenizer is missing or broken": (r"[Tt]okenizer",),
    "a Python package is missing": (r"No module named|ModuleNotFoundError",),
    "a file is missing": (r"config\.json|No such file or directory|FileNotFoundError|cannot run ",),
}
_CAUSES = {  # of our own sentences, here and in node/io/{worker,mlx,command,watch,weights}.py and node/lifecycle.py
    cause: re.compile(pattern)
    for cause, pattern in {
        "hang": r"it hangs|a probe failed|has not answered \d+ questions|generation thread died",
        "oom": r"out of memory",
        "port_taken": PORT_TAKEN,
        "not_found": r"not downloaded|there is no |is no model directory|no such directory|a file is missing|neither a",
        "bad_weights": r"bad weights|tokenizer is missing|is incomplete|is broken|not a safetensors|holds no model",
        "start_timeout": r"not ready (after|within)",
        "killed": r"ended by SIG(KILL|TERM|INT|HUP)",
    }.items()
}
_PATTERNS = {said: re.compile("|".join(parts)) for said, parts in _KINDS.items()}
_TELLING = re.compile(
    r"^(?:mlx_worker: |(?:\w+\.)*\w*(?:Error|Exception|NotFound)\b.*:|.*terminating due to|cannot run )"
)
_ROUTINE = re.compile(  # mlx_lm's log of its work, and Python's warnings, which are two lines each
    r"^\d{4}-\d\d-\d\d [\d:,.]+ - (?:INFO|DEBUG) - |^[\d.:a-f]+ - - \[|^\S+:\d+: \w*Warning: |^\s*warnings\.warn\("
)
_LINE_CHARS = 400


def diagnose(exit_code: int | None, tail: str) -> str:
    """The sentence. `exit_code` as asyncio gives it (negative: a signal), None while the process still runs;
    `tail` is the end of its output, empty when there was none."""
    line = _telling_line(tail, killed=exit_code == -signal.SIGKILL)
    said = _kind(line) or _kind(_about(tail))
    cause = f"{said} ({line})" if said and line else said or line
    end = _ending(exit_code)
    return "; ".join(part for part in (cause, end) if part) or "no reason given"


def cause_of(why: str) -> str:
    """ModelFact.cause of a failed model, from the sentence that says why it failed."""
    return next((cause for cause, pattern in _CAUSES.items() if pattern.search(why)), "crash")


def _kind(text: str) -> str:
    return next((said for said, pattern in _PATTERNS.items() if pattern.search(text)), "")


def _about(tail: str) -> str:
    """The part of the output that can hold the reason: the last traceback, or the last lines."""
    start = tail.rfind("Traceback (most recent call last)")
    return tail[start:] if start >= 0 else "\n".join(tail.splitlines()[-15:])


def _telling_line(tail: str, *, killed: bool) -> str:
    """The last line that names an error, else the last one that is not routine: who is killed has no last words."""
    lines = [line.strip() for line in tail.splitlines() if line.strip() and not _ROUTINE.match(line)]
    telling = next(
        (line for line in reversed(lines) if _TELLING.match(line)), lines[-1] if lines and not killed else ""
    )
    return telling.removeprefix("mlx_worker: ")[:_LINE_CHARS]


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return ""
    if exit_code < 0:
        name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else str(-exit_code)
        hint = ", by a person or by the system for want of memory" if exit_code == -signal.SIGKILL else ""
        return f"ended by {name}{hint}"
    return f"exit code {exit_code}"
