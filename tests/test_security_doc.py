"""Each claim of docs/security*.md names a test that shows it, and those tests exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("security*.md"))
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
CLAIM = re.compile(r"^\| (?!who|claim|---|other nodes)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page: Path) -> None:
    named = NAMED.findall(page.read_text(encoding="utf-8"))
    assert named
    for file, test in named:
        assert (ROOT / file).exists(), file
        assert re.search(rf"def {test}\(", (ROOT / file).read_text(encoding="utf-8")), f"{file}::{test}"


def test_every_claim_about_clients_names_one() -> None:
    for line in (ROOT / "docs" / "security.md").read_text(encoding="utf-8").splitlines():
        if CLAIM.match(line):
            assert NAMED.search(line), line
