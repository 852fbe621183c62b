"""The lab for tests: a place for Macs, a model they can really run, and the tails of their logs when a test fails."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from demo.model import build_tiny, default_cache
from tests import secrecy
from tests.lab.macs import Mac
from tests.lab.netlab import Lab, unavailable

HERE = Path(__file__).parent
_macs: list[Mac] = []  # of the labs that are up now
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if HERE in item.path.parents]
    why = unavailable() or next((f"the lab needs {tool}" for tool in ("avahi-daemon", "avahi-browse", "unshare")
                                 if here and not shutil.which(tool)), None)  # fmt: skip
    for item in here:
        item.add_marker(pytest.mark.lab)
        if why:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed and HERE in item.path.parents:
        report.sections += [(f"{mac.name} said", mac.tail()) for mac in _macs]


@pytest.fixture(scope="session")
def model() -> Path:
    """A model whose answers take as long as one asks for: some hundred tokens a second, and it never stops itself."""
    return build_tiny(default_cache() / "tiny-lab", layers=12, seed=5)


class Place:
    """A lab and the folder of its Macs' homes."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder, self.macs = lab, folder, list[Mac]()

    def mac(self, number: int, *, kind: type[Mac] = Mac, **of: Any) -> Mac:
        """Mac `number`, from 1. Not started yet."""
        mac = kind(self.lab, f"mac{number}", self.folder, **of)
        self.macs.append(mac)
        _macs.append(mac)
        return mac


@contextmanager
def opened(nodes: int) -> Iterator[Place]:
    """A lab of its own, also beside another one; gone at the end, with its processes and files. In /tmp, because a unix
    socket's path holds 100 bytes."""
    name = f"t{os.getpid()}n{next(_numbers)}"
    with (
        tempfile.TemporaryDirectory(prefix="lab", dir="/tmp", ignore_cleanup_errors=True) as folder,
        Lab(nodes, name=name) as lab,
    ):
        place = Place(lab, Path(folder))
        try:
            yield place
        finally:
            for mac in place.macs:
                _macs.remove(mac)
            for mac in place.macs:  # those that still run have written most of what they will
                secrecy.check(mac.home, *([mac.process.pid] if mac.runs and mac.process is not None else []))


@pytest.fixture
def place() -> Iterator[Callable[[int], Place]]:
    """place(n): a lab of n Macs for one test."""
    with _places() as place:
        yield place


@pytest.fixture(scope="module")
def shared_place() -> Iterator[Callable[[int], Place]]:
    """The same for all tests of a module."""
    with _places() as place:
        yield place


@contextmanager
def _places() -> Iterator[Callable[[int], Place]]:
    with ExitStack() as stack:
        yield lambda nodes: stack.enter_context(opened(nodes))


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """figure(name, seconds): a measured time, for the report and for `pytest -s`. Nothing is asserted of it."""

    def note(name: str, seconds: float) -> None:
        record_property(name, round(seconds, 3))
        print(f"\n    {name}: {seconds:.3f} s", flush=True)

    return note
