"""`make bench-mesh`: real daemons in network namespaces, and what a fault costs them.

Each part is one function that returns its rows. Besides those named here, every tests/lab/NAME_trials.py is one: its
`async def figures(trials)`. A part that breaks off leaves its rows without values: a bench reports, it does not fail.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from functools import partial

from bench import idle_mesh, mesh_faults, mesh_networks, mesh_soak, seals
from bench.report import ROOT, Figure, publish, within
from tests.lab.netlab import unavailable
from tests.lab.trials import SHAPES

WIFI = list(SHAPES)[1]
Part = Callable[[], Awaitable[list[Figure]]]


def parts(options: argparse.Namespace) -> dict[str, Part]:
    """By the name that `--only` takes."""
    found: dict[str, Part] = {
        "faults": partial(mesh_faults.figures, options.trials, options.minor_trials, options.networks),
        "soak": partial(mesh_soak.figures, options.soak_s, options.soak_network),
        "networks": partial(mesh_networks.figures, options.minor_trials),
        "idle": partial(idle_mesh.figures, options.idle_s),
        "seals": seals.figures,
    }
    for path in sorted((ROOT / "tests" / "lab").glob("*_trials.py")):
        if path.stem.startswith("test_"):
            continue
        module = importlib.import_module(f"tests.lab.{path.stem}")
        if hasattr(module, "figures"):
            found[path.stem.removesuffix("_trials")] = partial(module.figures, options.minor_trials)
    return found


async def run(found: dict[str, Part]) -> list[Figure]:
    """One part after the other."""
    figures: list[Figure] = []
    for name, part in found.items():
        began = time.monotonic()
        try:
            figures += await part()
        except Exception:  # noqa: BLE001 - one part must not take the figures of the others with it
            traceback.print_exc()
            figures.append(within(f"{name}: came to its end", None, "", None, None))
        print(f"{name}: {(time.monotonic() - began) / 60:.1f} min", flush=True)
    return figures


def main() -> None:
    """Runs everything; a figure that misses its goal is reported, no failure."""
    parser = argparse.ArgumentParser(prog="bench.mesh", description=__doc__)
    parser.add_argument(
        "--trials", type=int, default=2, help="of the coordinator killed, cut and frozen, on each network"
    )
    parser.add_argument("--minor-trials", type=int, default=1, help="of every other fault")
    parser.add_argument("--networks", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--soak-s", type=float, default=40.0, help="how long a busy mesh is watched for elections")
    parser.add_argument("--soak-network", choices=list(SHAPES), default=WIFI)
    parser.add_argument("--idle-s", type=float, default=10.0, help="how long idle meshes of 5 and of 16 are watched")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="these parts only")
    options = parser.parse_args()
    if why := unavailable():
        sys.exit(f"bench-mesh: {why}")
    found = parts(options)
    if unknown := set(options.only) - set(found):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    print(publish("mesh", asyncio.run(run({n: p for n, p in found.items() if not options.only or n in options.only}))))


if __name__ == "__main__":
    main()
