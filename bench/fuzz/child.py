"""One target in this process: `python -m bench.fuzz.child --target NAME --seconds N --folder OUT [--guided]`.

libFuzzer ends the process by itself, so how it stands is written to OUT/status.json every second.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from random import Random

import psutil

_STATUS_EVERY_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true")
    args = parser.parse_args()
    if args.guided:
        import atheris  # noqa: PLC0415 - only where it is installed

        instrumented = atheris.instrument_imports(include=["node", "mesh", "router", "election"])
    else:
        instrumented = nullcontext()
    with instrumented:
        from bench.fuzz.judge import Judge  # noqa: PLC0415 - what is imported before is not seen by atheris
        from bench.fuzz.loop import by_mutation, corpus_of  # noqa: PLC0415 - as above
        from bench.fuzz.mutate import Mutator  # noqa: PLC0415 - as above
        from bench.fuzz.targets import TARGETS  # noqa: PLC0415 - as above
    target = TARGETS[args.target]
    process = psutil.Process()
    with target.opened() as run:
        judge = Judge(run, args.folder)
        seeds = corpus_of(target)
        for data in seeds:
            judge(data)
        start = process.memory_info().rss
        last = 0.0

        def tell(corpus: int) -> None:
            findings = [
                {"kind": f.kind, "where": f.where, "what": f.what, "data": repr(f.data[:2000])}
                for f in judge.findings.values()
            ]
            grown = process.memory_info().rss - start
            status = {
                "runs": judge.runs,
                "corpus": corpus,
                "findings": findings,
                "rss_start": start,
                "rss_grown": grown,
            }
            draft = args.folder / "status.draft"
            draft.write_text(json.dumps(status))
            draft.replace(args.folder / "status.json")

        if not args.guided:
            tell(len(by_mutation(target, judge, args.seconds, Random(args.seed))))
            return
        corpus = args.folder / "corpus"
        corpus.mkdir(exist_ok=True)
        for place, data in enumerate(seeds):
            (corpus / f"seed-{place:04}").write_bytes(data)
        words = args.folder / "words"
        words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words))

        def one(data: bytes) -> None:
            nonlocal last
            judge(data)
            if time.monotonic() - last > _STATUS_EVERY_S:
                last = time.monotonic()
                tell(sum(1 for _ in corpus.iterdir()))

        options = [f"-max_total_time={int(args.seconds)}", f"-max_len={target.size_max}", f"-dict={words}",
                   "-rss_limit_mb=4096", "-timeout=60", f"-seed={args.seed}", "-len_control=20"]  # fmt: skip
        rng, mutator = Random(args.seed), Mutator(target, Random(args.seed))

        def other(data: bytes, size_max: int, _seed: int) -> bytes:
            made = mutator.remade(data) if rng.random() < 0.5 else None
            if made is None or len(made) > size_max:
                made = atheris.Mutate(data, size_max)
            return made

        how = {} if target.remake is None else {"custom_mutator": other}
        atheris.Setup([sys.argv[0], *options, str(corpus)], one, **how)
        tell(len(seeds))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
