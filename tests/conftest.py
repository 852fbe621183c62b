"""For the whole suite: no example of a property is judged by the time that it takes, which is the machine's affair."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("mesh", settings.default, deadline=None)
settings.load_profile("mesh")
