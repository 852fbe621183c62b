"""What many runs showed: counted, and as the figures of bench/out/sim.json (docs/bench.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

from bench.report import Figure, within
from tests.sim import rail_runs, runs
from tests.sim.broken import Caught

AnyResult: TypeAlias = runs.Result | rail_runs.RailResult
Violation: TypeAlias = dict[str, str]
# Seconds at most, from the goals of the lab (real daemons), and 2 s for the rest.
GOALS_S = {
    ("wired", "bye"): 0.1, ("wired", "kill"): 0.1, ("wired", "cut"): 0.6, ("wired", "stall"): 0.6,
    ("wired", "sleep"): 0.6, ("wired", "mute"): 0.6, ("bad", "cut"): 1.5, ("bad", "stall"): 1.5,
    ("bad", "kill"): 1.5, ("bad", "bye"): 1.5,
}  # fmt: skip
HOURS_PER_MINUTE = 40.0


@dataclass(frozen=True)
class Job:
    """Runs of one kind: `seeds` of them from `first` on."""

    kind: str  # chaos | fault | quiet | rail | broken
    first: int
    seeds: int
    net: str = ""
    fault: str = ""
    nodes: int = 0
    hours: float = 0.0

    def command(self, seed: int) -> str:
        """What replays one of them."""
        more = {
            "chaos": f" --nodes {self.nodes}" if self.nodes else "",
            "fault": f" --fault {self.fault} --net {self.net}",
            "rail": " --rail",
        }.get(self.kind, f" --net {self.net} --nodes {self.nodes} --quiet-hours {self.hours}")
        return f"python -m tests.sim --seed {seed}{more}"


@dataclass
class Summary:
    """What many runs showed."""

    agreed_s: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    takeovers: dict[tuple[str, str], int] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    simulated_s: dict[str, float] = field(default_factory=dict)
    core_s: dict[str, float] = field(default_factory=dict)
    rail: list[rail_runs.RailResult] = field(default_factory=list)
    caught: list[Caught] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)

    def add(self, job: Job, results: list[AnyResult], violations: list[Violation], core_s: float) -> None:
        kind = job.kind
        self.violations.extend(violations)
        self.seeds[kind] = self.seeds.get(kind, 0) + job.seeds
        self.core_s[kind] = self.core_s.get(kind, 0.0) + core_s
        self.simulated_s[kind] = self.simulated_s.get(kind, 0.0) + sum(r.simulated_s for r in results)
        self.rail += [r for r in results if isinstance(r, rail_runs.RailResult)]
        found = [r for r in results if isinstance(r, runs.Result)]
        if found:
            key = (job.net, job.fault) if kind == "fault" else ("", kind)
            self.agreed_s.setdefault(key, []).extend(r.agreed_s for r in found)
            self.takeovers[key] = max([self.takeovers.get(key, 0), *(r.takeovers for r in found)])

    def figures(self, minutes: float) -> list[Figure]:
        return [
            Figure("minutes of wall time", round(minutes, 1), "min", "", True),
            within("violations", len(self.violations), "", None, 0),
            *self._election(),
            *(
                Figure(f"rule broken: {c.rule} (caught by {c.by or 'nobody'})", c.seeds, "seeds", "caught", bool(c.by))
                for c in self.caught
            ),
            *self._rail(),
        ]

    def _election(self) -> list[Figure]:
        if not any(kind in self.seeds for kind in ("chaos", "fault", "quiet")):
            return []
        hours = {k: self.simulated_s.get(k, 0.0) / 3600 for k in ("chaos", "fault", "quiet")}
        core_minutes = sum(self.core_s.get(k, 0.0) for k in hours) / 60
        speed = sum(hours.values()) / core_minutes if core_minutes else None
        rows = [
            within("election: chaos seeds", self.seeds.get("chaos", 0), "seeds", 1, None),
            within("election: chaos", round(hours["chaos"], 1), "simulated h", None, None),
            within("election: single faults", self.seeds.get("fault", 0), "runs", 1, None),
            within("election: quiet", round(hours["quiet"], 1), "simulated h", None, None),
            within("election: simulated per core", speed, "h/min", HOURS_PER_MINUTE, None),
        ]
        chaos_s = self.agreed_s.get(("", "chaos"))
        rows += _three("election: agreed after chaos", chaos_s, runs.FAR_AGREE_S) if chaos_s else []
        for (net, fault), times in sorted(self.agreed_s.items()):
            if net:
                name = f"election: agreed after {runs.FAULT_WORDS[fault]}, {runs.NET_WORDS[net]}"
                rows += _three(name, times, GOALS_S.get((net, fault), runs.AGREE_S))
                rows.append(within(f"{name}: takeovers", self.takeovers[net, fault], "at most", None, 1))
        return rows

    def _rail(self) -> list[Figure]:
        if "rail" not in self.seeds:
            return []
        requests, answered = sum(r.requests for r in self.rail), sum(r.answered for r in self.rail)
        longest_s = round(max((r.longest_wait_s for r in self.rail), default=0.0), 1)
        return [
            within("rail: seeds", self.seeds["rail"], "seeds", 1, None),
            within("rail: simulated", round(self.simulated_s["rail"] / 3600, 1), "h", None, None),
            Figure("rail: requests", requests, "", "", True),
            Figure("rail: answered", answered, "", "", True),
            Figure("rail: loads", sum(r.loads for r in self.rail), "", "", True),
            Figure("rail: evictions", sum(r.evictions for r in self.rail), "", "", True),
            Figure("rail: longest wait", longest_s, "s", "", True),
        ]


def _three(name: str, seconds: list[float], most_s: float) -> list[Figure]:
    """Nearest-rank p50 and p99, and the largest; the goal is for all of them."""
    ordered = sorted(seconds)
    values = [("p50", 0.5), ("p99", 0.99), ("max", 1.0)]
    ranks = [(word, ordered[max(0, math.ceil(q * len(ordered)) - 1)]) for word, q in values]
    return [within(f"{name}: {word}", 1000 * value, "ms", None, 1000 * most_s) for word, value in ranks]
