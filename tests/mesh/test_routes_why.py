"""`mesh routes --why` of requests as real daemons recorded them (tests/recorded/why), and the documents that show it.

docs/scoring.md holds what is printed: where both part, `python -m tests.mesh.test_routes_why` writes it anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from mesh import render, render_routes
from mesh.answers import Route

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "scoring.md"
RECORDED = ROOT / "tests" / "recorded" / "why"
SHOWN = ("waited", "cached", "loaded", "refused")


def recorded(kind: str) -> Route:
    return msgspec.json.decode((RECORDED / f"{kind}.json").read_bytes(), type=Route)


def printed(kind: str) -> str:
    return render.plain(render_routes.why(recorded(kind), {}))


def block(kind: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- why: {kind} -->\n```\n)(.*?)(```\n)", re.DOTALL)


@pytest.mark.parametrize("kind", SHOWN)
def test_the_document_shows_what_is_printed(kind: str) -> None:
    [(_, text, _)] = block(kind).findall(DOCUMENT.read_text(encoding="utf-8"))
    assert text == printed(kind)


@pytest.mark.parametrize("kind", [*SHOWN, "late"])
def test_terms_add_up_as_printed(kind: str) -> None:
    """Each is rounded to a thousandth of a second."""
    sections = re.findall(r"^[\w~]+: ([\d.]+) s\n((?:  .*\n?)+)", printed(kind), re.MULTILINE)
    decision = recorded(kind).decision
    assert decision is not None
    assert len(sections) == sum(c.total_s is not None for c in decision.candidates)
    for total, lines in sections:
        seconds = [float(line.split()[0]) for line in lines.splitlines()]
        assert len(seconds) == 8
        assert sum(seconds) == pytest.approx(float(total), abs=0.005)


def test_one_that_waited_says_for_what_and_what_decided() -> None:
    text = printed("waited")
    assert re.search(r"It waited [\d.]+ s\. When it came, its best place was studio: its only slot is taken", text)
    assert "What decided is wait, until it can begin:\n    0 s on mini" in text


def test_one_placed_for_its_cache_says_how_much_of_it_is_there() -> None:
    assert re.search(
        r"What decided is prefill, .*\n    [\d.]+ s on mini \(704 of 780 tokens are in its", printed("cached")
    )


def test_one_that_caused_a_load_says_so() -> None:
    assert "It had to wait for its model there: not in memory there, loading takes about" in printed("loaded")


def test_one_refused_says_why_of_each_node() -> None:
    text = printed("refused")
    assert "Why it was refused\n  Its client was told: no node can serve 'coder' now" in text
    assert text.count(" could not: ") == 3
    late = printed("late")
    assert "Its client was told: waited 2.4 s for a free slot on studio, mini" in late
    assert "What it would have cost by then is below." in late


if __name__ == "__main__":
    document = DOCUMENT.read_text(encoding="utf-8")
    for shown in SHOWN:
        [(head, old, end)] = block(shown).findall(document)
        document = document.replace(head + old + end, head + printed(shown) + end)
    DOCUMENT.write_text(document, encoding="utf-8")
