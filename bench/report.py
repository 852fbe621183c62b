"""What every bench hands back: a table for people and bench/out/NAME.json for programs (DESIGN section 2)."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from node.headroom import GIB
from node.io.probe import Probe

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "bench" / "out"
PACKAGES = ("mlx-stack-mesh", "mlx", "mlx-lm", "aiohttp", "msgspec")


class Figure(Struct, frozen=True):
    """One row. `value` None: it could not be had, and then it does not hold. `goal` is for people."""

    name: str
    value: float | None
    unit: str
    goal: str
    holds: bool


def within(name: str, value: float | None, unit: str, least: float | None, most: float | None) -> Figure:
    """A figure whose goal is a range; None leaves it open."""
    goal = " and ".join(f"{sign} {bound:g}" for sign, bound in ((">=", least), ("<=", most)) if bound is not None)
    holds = value is not None and (least is None or value >= least) and (most is None or value <= most)
    return Figure(name, None if value is None else round(value, 4), unit, goal, holds)


def below(name: str, value: float | None, unit: str, most: float) -> Figure:
    """A figure that has to stay below `most`."""
    holds = value is not None and value < most
    return Figure(name, None if value is None else round(value, 4), unit, f"< {most:g}", holds)


def publish(name: str, figures: Sequence[Figure]) -> Path:
    """Prints the table and writes bench/out/`name`.json."""
    show(name, figures)
    file = OUT / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(document(figures)), indent=2) + b"\n")
    return file


def show(name: str, figures: Sequence[Figure]) -> None:
    """Prints the table."""
    table = Table("figure", "value", "unit", "goal", "holds", title=f"bench {name}")
    for figure in figures:
        value = "-" if figure.value is None else f"{figure.value:g}"
        table.add_row(figure.name, value, figure.unit, figure.goal, "yes" if figure.holds else "NO")
    Console(width=None if Console().is_terminal else 140).print(table)


def document(figures: Sequence[Figure]) -> dict[str, object]:
    """What is written."""
    return {"figures": figures, "machine": machine(), "versions": versions(), "commit": commit()}


def machine() -> str:
    """One line that says what this ran on."""
    hardware = Probe().hardware()
    return f"{hardware.chip}, {hardware.memory_bytes / GIB:.0f} GiB, {platform.system()} {platform.machine()}"


def versions() -> dict[str, str]:
    """Of Python and of what the figures depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """The commit this ran on, with `+` when files differ from it; "" outside a repository."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()
