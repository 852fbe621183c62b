"""Runs inputs one by one and judges each: what it raised, what it took of the processor, whether it came to an end."""

from __future__ import annotations

import hashlib
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType, TracebackType

from msgspec import Struct

from bench.fuzz.target import Run

CPU_LIMIT_S = 1.0  # of one input; they are a few KiB
BURST_BYTES = 256 * 2**20  # by which one input may make the process larger than it ever was
HANG_S = 10.0  # of processor time; then it is broken off
FINDINGS_MAX = 50
_ROOT = Path(__file__).resolve().parents[2]


class HangError(BaseException):
    """An input that does not come to an end. No Exception, so that no `except Exception` takes it for its own."""


class Finding(Struct, frozen=True):
    """One defect, by the first input that showed it."""

    kind: str  # "crash", "hang", "slow" or "memory"
    where: str  # the innermost line of our code
    what: str
    data: bytes
    trace: str


class Judge:
    """Counts and collects. `folder` gets the input of each finding as a file. Only in a process's main thread."""

    def __init__(self, run: Run, folder: Path | None = None) -> None:
        self._run, self._folder = run, folder
        self.runs = 0
        self.findings: dict[tuple[str, str], Finding] = {}
        self.outcomes: dict[str, int] = {}
        signal.signal(signal.SIGPROF, _broken_off)

    def __call__(self, data: bytes) -> str:
        """What came of it in a word; "" when that was a finding."""
        self.runs += 1
        began, peak = time.process_time(), _peak_bytes()
        signal.setitimer(signal.ITIMER_PROF, HANG_S)
        try:
            outcome = self._run(data)
        except HangError as error:
            return self._found("hang", error, data)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            return self._found("crash", error, data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        took_s = time.process_time() - began
        if (grown := _peak_bytes() - peak) > BURST_BYTES:
            return self._add(Finding("memory", "", f"{grown >> 20} MiB for {len(data)} bytes", data, ""))
        if took_s > CPU_LIMIT_S and self._again(data) > CPU_LIMIT_S:
            return self._add(Finding("slow", "", f"{took_s:.1f} s for {len(data)} bytes", data, ""))
        if outcome not in self.outcomes and len(self.outcomes) < 1000:
            self.outcomes[outcome] = 0
        if outcome in self.outcomes:
            self.outcomes[outcome] += 1
        return outcome

    def _again(self, data: bytes) -> float:
        """The first run of anything imports, compiles and fills caches."""
        began = time.process_time()
        self._run(data)
        return time.process_time() - began

    def _found(self, kind: str, error: BaseException, data: bytes) -> str:
        where = _place(error.__traceback__)
        what = f"{type(error).__name__}: {error}"[:500]
        return self._add(Finding(kind, where, what, data, "".join(traceback.format_exception(error))[-4000:]))

    def _add(self, finding: Finding) -> str:
        key = finding.kind, finding.where or finding.what[:20]
        if key not in self.findings and len(self.findings) < FINDINGS_MAX:
            self.findings[key] = finding
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
                name = f"{finding.kind}-{hashlib.sha256(finding.data).hexdigest()[:12]}"
                (self._folder / name).write_bytes(finding.data)
                (self._folder / f"{name}.txt").write_text(f"{finding.what}\n{finding.where}\n\n{finding.trace}")
        return ""


def _peak_bytes() -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _broken_off(_number: int, _frame: FrameType | None) -> None:
    raise HangError(f"no end after {HANG_S:g} s of processor time")


def _place(trace: TracebackType | None) -> str:
    """file:line of the innermost frame in our packages, "?" when none is."""
    found = "?"
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.is_relative_to(_ROOT) and "bench/fuzz" not in str(file):
            found = f"{file.relative_to(_ROOT)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
