"""Chips by name: what Apple says of their memory, and what a newer one is taken for."""

from __future__ import annotations

import re

from node.headroom import GIB
from node.types import Hardware

# GB/s by chip and least number of GPU cores (chips sold with two memory widths), Apple's figures.
_BANDWIDTH: dict[str, tuple[tuple[int, float], ...]] = {
    "M1": ((0, 68.25),),
    "M1 Pro": ((0, 200.0),),
    "M1 Max": ((0, 400.0),),
    "M1 Ultra": ((0, 800.0),),
    "M2": ((0, 100.0),),
    "M2 Pro": ((0, 200.0),),
    "M2 Max": ((0, 400.0),),
    "M2 Ultra": ((0, 800.0),),
    "M3": ((0, 100.0),),
    "M3 Pro": ((0, 150.0),),
    "M3 Max": ((0, 300.0), (40, 400.0)),
    "M3 Ultra": ((0, 819.0),),
    "M4": ((0, 120.0),),
    "M4 Pro": ((0, 273.0),),
    "M4 Max": ((0, 410.0), (40, 546.0)),
}
# For a chip newer than the table: GiB up to which, GB/s.
_BANDWIDTH_BY_MEMORY = ((8, 68.0), (16, 100.0), (32, 200.0), (64, 400.0), (128, 546.0))
_NARROW_MAX = ("M3 Max", "M4 Max")  # sold with 36 GB only with the smaller GPU,
_NARROW_GIB = 36
_WIDE_CORES = 40  # and with more memory mostly with this one
_WRITTEN = re.compile(r"\b(m\d+)(?:\s+(pro|max|ultra))?\b[\s,]*(\d+)\s*gi?b\b", re.IGNORECASE)


def bandwidth(chip: str, memory_bytes: int, gpu_cores: int) -> float:
    """GB/s of memory of an Apple chip, from the table or estimated by memory; 0 for any other chip."""
    if not chip.startswith("Apple "):
        return 0.0
    widths = _BANDWIDTH.get(chip.removeprefix("Apple ").strip())
    if widths:
        return max(gbs for cores, gbs in widths if gpu_cores >= cores)
    return next((gbs for gib, gbs in _BANDWIDTH_BY_MEMORY if memory_bytes <= gib * GIB), 800.0)


def parse(written: str) -> Hardware:
    """A machine as people write it, "M4 Max 64GB" or "Mac mini M4 16 GB". Raises ValueError with what it must be."""
    found = _WRITTEN.search(written)
    if found is None:
        raise ValueError('a chip and its memory, like "M4 Max 64GB"')
    kind = found[1].upper() + (f" {found[2].capitalize()}" if found[2] else "")
    gib = int(found[3])
    cores = 0 if kind in _NARROW_MAX and gib <= _NARROW_GIB else _WIDE_CORES
    chip = f"Apple {kind}"
    return Hardware(chip=chip, memory_bytes=gib * GIB, bandwidth=bandwidth(chip, gib * GIB, cores))
