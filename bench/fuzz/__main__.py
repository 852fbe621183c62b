"""`make fuzz ARGS="--minutes 60 --target NAME"`: every target in a process of its own, one after the other.

Each gets its share of the time. Guided by the code's coverage where atheris is installed (Linux:
`pip install '.[fuzz]'`), else inputs are mutated without it. Prints a line per target; what failed and a summary are
written below bench/out/fuzz. Exit status 1 when there was a defect.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from bench.fuzz.targets import TARGETS

LIVE = "live"  # a real daemon, over sockets
_ROOT = Path(__file__).resolve().parents[2]
_OUT = _ROOT / "bench" / "out" / "fuzz"
_LATE_S = 120.0  # a process that has not ended by then hangs where no signal reaches it
_RSS_GROWN_MAX = 400 * 2**20  # libFuzzer keeps its corpus in memory


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="in all (60)")
    parser.add_argument("--target", action="append", choices=[*TARGETS, LIVE], help="only this one; may be repeated")
    parser.add_argument("--plain", action="store_true", help="without atheris, though it is installed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=_OUT)
    args = parser.parse_args()
    names = args.target or [*TARGETS, LIVE]
    guided = not args.plain and importlib.util.find_spec("atheris") is not None
    if not guided and not args.plain:
        print("atheris is not installed: inputs are not guided by coverage (pip install '.[fuzz]' on Linux)")
    seconds = args.minutes * 60 / len(names)
    print(
        f"{'target':<11}{'inputs':>12}{'per s':>9}{'corpus':>8}{'defects':>9}{'hangs':>7}"
        f"{'RSS start':>11}{'RSS grown':>11}"
    )
    rows = [_one(name, seconds, args.out, guided=guided, seed=args.seed) for name in names]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "fuzz.json").write_text(json.dumps(rows, indent=1))
    found = [finding for row in rows for finding in row["findings"]]
    for finding in found:
        print(
            f"\n{finding['kind']} in {finding['target']} at {finding['where']}: {finding['what']}\n  {finding['data']}"
        )
    print(f"\n{sum(row['runs'] for row in rows)} inputs in {args.minutes:g} min, {len(found)} defects")
    return 1 if found else 0


def _one(name: str, seconds: float, out: Path, *, guided: bool, seed: int) -> dict[str, Any]:
    """Runs it and prints its line."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    status = folder / "status.json"
    status.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.fuzz.live" if name == LIVE else "bench.fuzz.child"]
    command += ["--target", name, "--seconds", str(seconds), "--folder", str(folder), "--seed", str(seed)]
    began = time.monotonic()
    with (folder / "printed").open("wb") as printed:
        process = subprocess.Popen([*command, *["--guided"] * guided], stdout=printed, stderr=printed, cwd=_ROOT)
        try:
            code = process.wait(seconds + _LATE_S)
        except subprocess.TimeoutExpired:
            _end(process)
            code = -1
    row: dict[str, Any] = json.loads(status.read_text()) if status.exists() else {"runs": 0, "findings": []}
    row |= {"target": name, "seconds": round(time.monotonic() - began, 1), "guided": guided}
    if code != 0:
        last = (folder / "printed").read_text(errors="replace")[-1500:]
        row["findings"].append({"kind": "died", "where": "", "what": f"status {code}: {last}", "data": ""})
    grown = row.get("rss_grown", 0)
    if grown > _RSS_GROWN_MAX:
        row["findings"].append({"kind": "memory", "where": "", "what": f"grew by {grown} bytes", "data": ""})
    for finding in row["findings"]:
        finding["target"] = name
    hangs = sum(finding["kind"] in ("hang", "slow") for finding in row["findings"])
    print(
        f"{name:<11}{row['runs']:>12}{row['runs'] / seconds:>9.0f}{row.get('corpus', 0):>8}"
        f"{len(row['findings']) - hangs:>9}{hangs:>7}{row.get('rss_start', 0) >> 20:>7} MiB{grown >> 20:>7} MiB",
        flush=True,
    )
    return row


def _end(process: subprocess.Popen[bytes]) -> None:
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
