"""The rows of `make bench-routing`: ratios to the best clairvoyant reference and to the best peer, and their goals.

"Best" is chosen anew for every scenario and every metric, so no one policy is compared with; gm = geometric mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product

from msgspec import Struct, structs

from bench.report import Figure, within
from bench.routing.clairvoyant import REFERENCES
from bench.routing.fleets import FLEETS
from bench.routing.peers import PEERS
from bench.routing.runs import OURS, Run
from router.replay.result import Result
from router.replay.shipped import Knows

METRICS: dict[str, Callable[[Result], float]] = {
    "TTFT mean": lambda r: r.ttft_s_mean,
    "TTFT p99": lambda r: r.ttft_s_p99,
    "e2e mean": lambda r: r.e2e_s_mean,
    "e2e p99": lambda r: r.e2e_s_p99,
}
LOADS = (0.3, 0.6, 0.85, 1.0)
LLM_D = "llm-d"
# metric -> (most gm on each fleet, most anywhere) against the best clairvoyant
CLAIRVOYANT_GOALS: dict[str, tuple[float | None, float | None]] = {
    "TTFT mean": (1.06, None),
    "TTFT p99": (1.05, 1.20),
    "e2e mean": (1.10, 1.15),
    "e2e p99": (None, None),
}
# (fleet, metric) -> the same against the best peer
PEER_GOALS: dict[tuple[str, str], tuple[float | None, float | None]] = {
    ("hetero4", "TTFT p99"): (0.50, 0.80),
    ("tiers", "TTFT p99"): (0.65, None),
    ("equal2", "TTFT p99"): (0.92, None),
}


class Matrix(Struct, frozen=True):
    """Which scenarios are looked at."""

    fleets: tuple[str, ...]
    traces: tuple[str, ...]
    loads: tuple[float, ...]
    calls: int
    cached: tuple[str, ...]  # of the traces, those whose prompts have beginnings in common
    seed: int = 1  # of what ours is told wrongly

    def scenarios(self, fleets: Iterable[str] | None = None) -> list[tuple[str, str, float]]:
        chosen = [f for f in self.fleets if fleets is None or f in fleets]
        return list(product(chosen, self.traces, self.loads))

    def run(self, scenario: tuple[str, str, float], policy: str = OURS) -> Run:
        fleet, trace, load = scenario
        return Run(fleet=fleet, trace=trace, load=load, policy=policy, calls=self.calls, seed=self.seed)


def main_runs(matrix: Matrix) -> list[Run]:
    return [matrix.run(s, p) for s in matrix.scenarios() for p in (*REFERENCES, *PEERS, OURS)]


def main_figures(matrix: Matrix, results: Mapping[Run, Result]) -> list[Figure]:
    """Show 1."""
    fleets = matrix.fleets
    clairvoyant = {(fleet, name): goals for fleet in fleets for name, goals in CLAIRVOYANT_GOALS.items()}
    rows = _against("best clairvoyant", REFERENCES, clairvoyant, matrix, results)
    rows += _against("best peer", PEERS, PEER_GOALS, matrix, results)
    rows += _agents(matrix, results)
    ours = [results[matrix.run(s)] for s in matrix.scenarios()]
    rows.append(within("requests refused", float(sum(r.refused for r in ours)), "", None, 0))
    rows.append(within("longest idle while work waits", max(r.idle_s for r in ours), "s", None, 60))
    return rows


def _against(
    rivals: str,
    policies: Iterable[str],
    goals: Mapping[tuple[str, str], tuple[float | None, float | None]],
    matrix: Matrix,
    results: Mapping[Run, Result],
) -> list[Figure]:
    """Each metric on each fleet, over the best of these policies."""
    rows: list[Figure] = []
    for fleet, (name, metric) in product(matrix.fleets, METRICS.items()):
        scenarios = matrix.scenarios([fleet])
        ratios = [metric(results[matrix.run(s)]) / _best(matrix, results, s, policies, metric) for s in scenarios]
        rows += _pair(f"{fleet}, {name} / {rivals}", ratios, scenarios, *goals.get((fleet, name), (None, None)))
    return rows


def _agents(matrix: Matrix, results: Mapping[Run, Result]) -> list[Figure]:
    """Closed-loop agents on a mixed fleet, where sticking to a prefix pays most."""
    scenarios = [s for s in matrix.scenarios(["hetero4"]) if "agent" in s[1]]
    ratios = [results[matrix.run(s)].ttft_s_mean / results[matrix.run(s, LLM_D)].ttft_s_mean for s in scenarios]
    return _pair("hetero4, agents, TTFT mean / llm-d's rule", ratios, scenarios, None, 1.0) if ratios else []


def _best(
    matrix: Matrix,
    results: Mapping[Run, Result],
    scenario: tuple[str, str, float],
    policies: Iterable[str],
    metric: Callable[[Result], float],
) -> float:
    return min(metric(results[matrix.run(scenario, policy)]) for policy in policies)


def _pair(
    name: str,
    ratios: Sequence[float],
    scenarios: Sequence[tuple[str, str, float]],
    gm_most: float | None,
    worst_most: float | None,
) -> list[Figure]:
    rows = [within(f"{name}, gm", gm(ratios), "x", None, gm_most)]
    if worst_most is not None:
        worst = max(range(len(ratios)), key=lambda n: ratios[n])
        _, trace, load = scenarios[worst]
        rows.append(within(f"{name}, worst ({trace}, {load:.0%})", ratios[worst], "x", None, worst_most))
    return rows


def gm(values: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


# Show 2: what it is told may be old or wrong, and a machine may slow down


STALE_S = 5.0
CACHE_FACTORS = (4.0, 0.25)
HALF_SPEED = ((0.4, 3, 0.5), (0.7, 3, 2.0))  # the fastest machine, between 40 and 70 % of the run
ROBUST_LOADS = (0.6, 0.85)


class Doubt(Struct, frozen=True):
    """One thing that ours is told late or wrongly, where that can matter, and what it may cost."""

    name: str
    knows: Knows
    scenarios: list[tuple[str, str, float]]
    most: float | None

    def run(self, matrix: Matrix, scenario: tuple[str, str, float]) -> Run:
        return structs.replace(matrix.run(scenario), knows=self.knows)


def _doubts(matrix: Matrix) -> list[Doubt]:
    some = [s for s in matrix.scenarios() if s[2] in ROBUST_LOADS]
    swapping = [s for s in some if any(len(m.models) > 1 for m in FLEETS[s[0]])]  # Elsewhere reports never change.
    cached = [s for s in some if s[1] in matrix.cached]
    doubts = [Doubt(f"reports {STALE_S:g} s old", Knows(report_age_s=STALE_S), swapping, 1.02)]
    doubts += [Doubt(f"prompt caches believed {f:g}x", Knows(cache_factor=f), cached, 1.05) for f in CACHE_FACTORS]
    doubts.append(Doubt("nothing said of evictable memory", Knows(evictable=False), swapping, None))
    return [d for d in doubts if d.scenarios]


def robust_runs(matrix: Matrix) -> list[Run]:
    runs = [run for d in _doubts(matrix) for s in d.scenarios for run in (matrix.run(s), d.run(matrix, s))]
    return runs + [run for s in _slow_scenarios(matrix) for run in _slow(matrix, s)]


def _slow_scenarios(matrix: Matrix) -> list[tuple[str, str, float]]:
    return [s for s in matrix.scenarios(["hetero4"]) if s[2] in ROBUST_LOADS]


def _slow(matrix: Matrix, scenario: tuple[str, str, float]) -> list[Run]:
    return [structs.replace(matrix.run(scenario, policy), slow=HALF_SPEED) for policy in (OURS, *REFERENCES)]


def robust_figures(matrix: Matrix, results: Mapping[Run, Result]) -> list[Figure]:
    """Show 2. Ratios to ours when all is well; at half speed, to the best clairvoyant, which knows it."""
    rows: list[Figure] = []
    for doubt, (name, metric) in product(_doubts(matrix), list(METRICS.items())[:3]):
        ratios = [metric(results[doubt.run(matrix, s)]) / metric(results[matrix.run(s)]) for s in doubt.scenarios]
        rows += _pair(f"{doubt.name}, {name} / told well", ratios, doubt.scenarios, doubt.most, None)
    slow = _slow_scenarios(matrix)
    for name, metric in list(METRICS.items())[:3] if slow else ():
        ratios = []
        for scenario in slow:
            ours, *references = _slow(matrix, scenario)
            ratios.append(metric(results[ours]) / min(metric(results[r]) for r in references))
        rows += _pair(f"hetero4, fastest at half speed, {name} / best clairvoyant", ratios, slow, 1.10, None)
    return rows
