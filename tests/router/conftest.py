"""The edge that most tests of it work with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.router.fakes import FAST, Rig, rigged


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with rigged(FAST) as (rig, _):
        yield rig
