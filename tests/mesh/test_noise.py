"""mesh/noise.py: garbage is counted by sender and said once."""

from __future__ import annotations

from mesh.noise import Noise
from mesh.settings import NoiseSettings

S = NoiseSettings()


def test_a_few_are_chance_and_many_are_said_once_an_hour() -> None:
    noise = Noise()
    said = [noise.heard("10.0.0.9", "garbled", n * 0.1) for n in range(36_000)]
    assert [i for i, text in enumerate(said) if text] == [S.count_min - 1]
    assert said[S.count_min - 1].startswith("10.0.0.9 sends what is no message of a mesh")
    assert noise.heard("10.0.0.9", "garbled", 3602.0) != ""


def test_it_is_noted_while_it_goes_on() -> None:
    noise = Noise()
    for n in range(S.count_min):
        assert noise.notes(float(n)) == []
        noise.heard("10.0.0.9", "other_version", float(n))
    assert len(noise.notes(10.0)) == 1
    assert "another protocol" in noise.notes(10.0)[0]
    assert noise.notes(10.0 + S.quiet_s) == []
    noise.heard("10.0.0.9", "other_version", 20.0 + S.quiet_s)
    assert noise.notes(20.0 + S.quiet_s) == [], "it begins anew"


def test_senders_and_lines_are_bounded() -> None:
    noise = Noise()
    for n in range(5000):
        for _ in range(S.count_min):
            noise.heard(f"10.0.{n // 250}.{n % 250}", "garbled", 1.0)
    assert len(noise._senders) == S.senders_max
    notes = noise.notes(1.0)
    assert len(notes) == S.shown_max + 1
    assert notes[-1].startswith(f"and {S.senders_max - S.shown_max} more")


def test_each_reason_says_what_to_do() -> None:
    for code, word in (("no_hello", "who it is"), ("unknown_kind", "update mlx-stack here"), ("too_large", "defect")):
        noise = Noise()
        for _ in range(S.count_min):
            noise.heard("10.0.0.9", code, 1.0)
        assert word in noise.notes(1.0)[0]


def test_garbage_is_not_excused_by_what_comes_beside_it() -> None:
    noise = Noise()
    for _ in range(S.count_min):
        for code in ("other_version", "garbled", "unknown_kind"):
            noise.heard("10.0.0.9", code, 1.0)
    assert "no message of a mesh" in noise.notes(1.0)[0]
