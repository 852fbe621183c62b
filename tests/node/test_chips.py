"""What a chip's name says of its memory."""

from __future__ import annotations

import pytest

from node import chips
from node.headroom import GIB


@pytest.mark.parametrize(
    ("chip", "memory_gib", "cores", "gbs"),
    [
        ("Apple M1", 8, 7, 68.25),
        ("Apple M1 Ultra", 64, 48, 800.0),
        ("Apple M3 Pro", 18, 14, 150.0),
        ("Apple M3 Max", 36, 30, 300.0),
        ("Apple M3 Max", 64, 40, 400.0),
        ("Apple M4 Max", 36, 32, 410.0),
        ("Apple M4 Max", 128, 40, 546.0),
        ("Apple M9", 8, 10, 68.0),
        ("Apple M9 Max", 96, 40, 546.0),
        ("Apple M9 Ultra", 512, 80, 800.0),
        ("AMD EPYC 9R14", 64, 0, 0.0),
    ],
)
def test_bandwidth(chip: str, memory_gib: int, cores: int, gbs: float) -> None:
    assert chips.bandwidth(chip, memory_gib * GIB, cores) == gbs


@pytest.mark.parametrize(
    ("written", "chip", "memory_gib", "gbs"),
    [
        ("M4 Max 64GB", "Apple M4 Max", 64, 546.0),
        ("m4 max, 36 gb", "Apple M4 Max", 36, 410.0),
        ("Mac mini M4 16GB", "Apple M4", 16, 120.0),
        ("Apple M3 Ultra 96GB", "Apple M3 Ultra", 96, 819.0),
        ("Mac Studio M9 Ultra 512 GiB", "Apple M9 Ultra", 512, 800.0),
    ],
)
def test_a_machine_as_people_write_it(written: str, chip: str, memory_gib: int, gbs: float) -> None:
    machine = chips.parse(written)
    assert (machine.chip, machine.memory_bytes, machine.bandwidth) == (chip, memory_gib * GIB, gbs)


@pytest.mark.parametrize("written", ["", "M4 Max", "64GB", "RTX 4090 24GB", "M4Max64GB"])
def test_what_names_no_machine(written: str) -> None:
    with pytest.raises(ValueError, match="like"):
        chips.parse(written)
