"""Networks that change under a mesh, block multicast, or lie between two sites: how long until it is one mesh again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from statistics import median

from bench.report import Figure, below, within
from tests.lab.network_trials import (
    address_changes,
    coordinator_sleeps,
    interface_added,
    interface_flaps,
    joined_by_hand,
    link_flaps,
    macs_of,
    sleepers_of,
)
from tests.lab.site_trials import Trial, two_sites

HEALED_S, SITES_S, NODES = 3.0, 10.0, 5  # issue 4: Shows 5, 4 and 7
VOID_MOST = 2  # further trials of two sites when the lab's line was late


def _link(_: int) -> float:
    with macs_of(NODES) as macs:
        return link_flaps(macs)


def _interface(_: int) -> float:
    with macs_of(NODES) as macs:
        return interface_flaps(macs)


def _address(number: int) -> float:
    with macs_of(NODES) as macs:
        return address_changes(macs, f"{macs[0].lab.subnet}.0.{100 + number}")


def _added(_: int) -> float:
    with macs_of(NODES, started=False) as macs:
        return interface_added(macs)


def _by_hand(_: int) -> float:
    with macs_of(NODES, started=False) as macs:
        return joined_by_hand(macs).seconds


def _sleep(_: int) -> float:
    with sleepers_of(3) as macs:
        night = coordinator_sleeps(macs)
    assert all(len(who) == 1 for who in night.terms.values()), f"two coordinators of one term: {night.terms}"
    return night.seconds


KINDS: Mapping[str, tuple[Callable[[int], float], float | None]] = {
    "network, link flap: whole again": (_link, HEALED_S),
    "network, interface off and on: whole again": (_interface, HEALED_S),
    "network, address changed (DHCP): whole again": (_address, HEALED_S),
    "network, interface added: whole": (_added, HEALED_S),
    "multicast blocked, one `mesh add`: all five are one mesh": (_by_hand, None),
    "coordinator slept for an hour: one mesh again": (_sleep, HEALED_S),
}


async def figures(trials: int) -> list[Figure]:
    """So many of each, on a new mesh each time."""
    found = []
    for name, (trial, goal) in KINDS.items():
        seconds, missed = [], 0
        for number in range(trials):
            try:
                seconds.append(await asyncio.to_thread(trial, number))
                print(f"{name}: {seconds[-1]:.3f} s", flush=True)
            except AssertionError as error:
                missed += 1
                print(f"{name}: NOT: {error}", flush=True)
        found += _times(name, seconds if not missed else [], goal)
    return found + await asyncio.to_thread(_sites, trials)


def _times(name: str, seconds: list[float], goal: float | None) -> list[Figure]:
    found = []
    for word, value in (("median", median(seconds)), ("max", max(seconds))) if seconds else _NOTHING:
        row = f"{name}, {word}"
        found.append(below(row, value, "s", goal) if goal else within(row, value, "s", None, None))
    return found


_NOTHING: tuple[tuple[str, float | None], ...] = (("median", None), ("max", None))


def _sites(trials: int) -> list[Figure]:
    """Two sites of two Macs, 40 ms apart: the line is cut and comes back, again and again."""
    done: list[Trial] = []
    void = 0
    try:
        with two_sites(2, 2) as sites:
            sites.start()
            sites.join()
            while len(done) < trials and void <= VOID_MOST * trials:
                trial = sites.trial()
                print(f"two sites: {trial}", flush=True)
                void += trial.void
                done += [] if trial.void else [trial]
    except AssertionError as error:
        print(f"two sites: NOT: {error}", flush=True)
        done = []
    failed = sum(len(site) for trial in done for site in trial.failed) if done else None
    answered = sum(sum(trial.answered) for trial in done) if done else None
    return [
        *_times("two sites, line cut: each rules itself", [trial.split_s for trial in done], None),
        *_times("two sites, line back: one mesh", [trial.joined_s for trial in done], SITES_S),
        within("two sites: requests failed", failed, "requests", None, 0),
        within("two sites: requests answered", answered, "requests", 1, None),
        within("two sites: trials that count", len(done), "trials", trials, None),
        within("two sites: trials that are void: the lab's line was late", void, "trials", None, None),
    ]
