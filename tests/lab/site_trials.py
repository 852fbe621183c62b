"""Two sites joined by `mesh add` over a slow line: it is cut, and comes back. What each site's clients see, and how
long it takes. For the tests and for bench/mesh.py."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from demo.model import build_tiny, default_cache
from tests.lab.macs import Asker, Mac, Said, agreed, wait_until
from tests.lab.sites import SiteLab

DELAY_MS = 40.0
VOID_S = 0.25
ENOUGH = 5  # answers of each site before, while and after the line is cut
_numbers = count(1)


@dataclass(frozen=True)
class Trial:
    """Seconds, and requests by site: `answered` and `failed` over the whole trial, `slowest_s` of those begun before
    the line came back. `late_s`: the lab's own line was so late."""

    split_s: float  # from the cut until each site has its own coordinator and says so
    joined_s: float  # from the line's return until all are one mesh
    answered: tuple[int, int]
    failed: tuple[tuple[str, ...], tuple[str, ...]]
    slowest_s: tuple[float, float]
    alone: tuple[bool, bool]  # said by the first Mac of each site while the line was cut
    late_s: float

    @property
    def void(self) -> bool:
        """Nothing is proven: so late a line is another one. Between sites patience begins at 1.5 s."""
        return self.late_s > VOID_S


class Sites:
    """The Macs of two sites, not started; the first of them is told of the second site's first by `join`."""

    def __init__(self, lab: SiteLab, folder: Path, model: Path, *, priorities: Sequence[int] = ()) -> None:
        self.lab, self.model = lab, model.name
        self.macs = [
            Mac(lab, name, folder, model=model, mesh_priority=priority)
            for name, priority in zip(
                (*lab.sites[0], *lab.sites[1]), [*priorities, *[100] * len(lab.nodes)], strict=False
            )
        ]
        self.at = tuple([mac for mac in self.macs if lab.site_of(mac.name) == site] for site in (0, 1))

    def start(self) -> None:
        for mac in self.macs:
            mac.start()
        for site in self.at:
            wait_until(partial(agreed, site), "each site is a mesh")

    def join(self) -> float:
        """An invite of the first site's first Mac, used on the second's; returns the seconds until all agree."""
        first, second = self.at[0][0], self.at[1][0]
        token = first.client.invite()["token"]
        at = time.monotonic()
        second.client.add(f"{first.ip}:4000", token)
        wait_until(lambda: agreed(self.macs), "the two sites are one mesh")
        return time.monotonic() - at

    def trial(self) -> Trial:
        """Cuts the line under the requests of both sites' own clients, and mends it. Raises AssertionError when
        something does not happen at all."""
        wait_until(lambda: agreed(self.macs), "one mesh at first")
        processes = [mac.process for mac in self.macs]
        began = time.monotonic()
        with ExitStack() as stack:
            clients = [
                stack.enter_context(Asker(self.lab, macs[0].name, "http://localhost:4000/v1", self.model, workers=2))
                for macs in self.at
            ]
            for client in clients:
                client.go()
            self._answers(clients, began)
            cut_at = self.lab.cut_line()
            wait_until(self._split, "each site has a coordinator of its own")
            split_s = time.monotonic() - cut_at
            self._answers(clients, time.monotonic())
            single = [site[0] for site in self.at if len(site) == 1]
            wait_until(lambda: all(mac.said().mesh.alone for mac in single), "who is alone says so")
            alone = (self.at[0][0].said().mesh.alone, self.at[1][0].said().mesh.alone)
            mended_at = self.lab.mend_line()
            wait_until(lambda: agreed(self.macs), "one mesh again")
            joined_s = time.monotonic() - mended_at
            self._answers(clients, time.monotonic())
            said = [client.end() for client in clients]
        assert [mac.process for mac in self.macs] == processes
        assert all(mac.runs for mac in self.macs)
        one, two = said
        return Trial(
            split_s,
            joined_s,
            (len(one), len(two)),
            (_failures(one), _failures(two)),
            (_slowest(one, mended_at), _slowest(two, mended_at)),
            alone,
            self.lab.late_s(began),
        )

    def _split(self) -> bool:
        return all(agreed(site) for site in self.at)

    @staticmethod
    def _answers(clients: Sequence[Asker], since: float) -> None:
        """Each site answers requests that began after `since`."""

        def answered() -> bool:
            return all(sum(s.start > since for s in client.answered()) >= ENOUGH for client in clients)

        wait_until(answered, "each site's clients are answered")


def _failures(said: Sequence[Said]) -> tuple[str, ...]:
    return tuple(s.error for s in said if s.error)


def _slowest(said: Sequence[Said], until: float) -> float:
    return max((s.end - s.start for s in said if s.start < until), default=0.0)


@contextmanager
def two_sites(
    first: int, second: int, *, delay_ms: float = DELAY_MS, priorities: Sequence[int] = ()
) -> Iterator[Sites]:
    """A lab of its own with `first` and `second` Macs, all with one model; gone at the end."""
    model = build_tiny(default_cache() / "tiny-lab", layers=12, seed=5)
    name = f"s{os.getpid()}n{next(_numbers)}"
    with (
        tempfile.TemporaryDirectory(prefix="lab", dir="/tmp", ignore_cleanup_errors=True) as folder,
        SiteLab(first, second, name=name, delay_ms=delay_ms) as lab,
    ):
        yield Sites(lab, Path(folder), model, priorities=priorities)
