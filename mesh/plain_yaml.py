"""YAML as settings are written in it: what a few lines say over and over by `*alias` is refused before anybody looks
at all of it (nine lines of nine aliases each are 400 million values)."""

from __future__ import annotations

from typing import Any

import yaml

VALUES_MAX = 20_000  # of one file, each as often as it is said
SHOWN_CHARS = 200


def load(text: str) -> Any:
    """What `text` says. Raises yaml.YAMLError, and ValueError and RecursionError as PyYAML does (a date 2026-99-99,
    nesting without end)."""
    found = yaml.safe_load(text)
    said, count = [found], 0
    while said:
        value = said.pop()
        count += 1
        if count > VALUES_MAX:
            raise yaml.YAMLError(f"more than {VALUES_MAX} values, or one that holds itself")
        if isinstance(value, dict):
            said += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            said += value
    return found


def shortly(value: object) -> str:
    """As Python writes it, for a message: cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
