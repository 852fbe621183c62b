"""Settings of an election that contradict each other."""

from __future__ import annotations

import pytest

from election.settings import ElectionSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"heartbeat_s": 0.4},
        {"cap_s": 0.3},
        {"far_floor_s": 9.0},
        {"lag_s": 0.05},
        {"asks": 0},
        {"byes": 0},
        {"peers_max": 0},
    ],
)
def test_contradicting_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"need|at least"):
        ElectionSettings(**wrong)
