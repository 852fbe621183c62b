"""Every target, by name, in the order in which they are run."""

from __future__ import annotations

from bench.fuzz.target import Target
from bench.fuzz.targets import answers, bodies, fronts, home, peers, requests, workers

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (peers, requests, fronts, answers, workers, bodies, home)
    for target in module.TARGETS
}
