"""What the tests of models of a hub look for: in the cache, at the node, and in what its clients are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from mesh.answers import ModelDetails
from tests.server.daemons import START_S, Node, wait_for, words

Make = Callable[..., Node]
MIB = 2**20
WORDS: Any = {"prompt": "a b", "max_tokens": 3}


def cache(tmp_path: Path, name: str = "org/tiny") -> Path:
    return tmp_path / "hf" / "hub" / f"models--{name.replace('/', '--')}"


def downloads(node: Node) -> list[psutil.Process]:
    """Its processes that fetch something now."""
    return [p for p in node.children() if "node.io.download_worker" in words(p)]


def refusal(node: Node, name: str = "org/tiny") -> openai.APIStatusError:
    with node.openai() as client, pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model=name, **WORDS)
    assert caught.value.status_code == 503
    assert float(caught.value.response.headers["retry-after"]) > 0
    return caught.value


def answer(node: Node, name: str) -> str:
    with node.openai() as client:
        return client.completions.create(model=name, **WORDS).choices[0].text


def failed(node: Node, *parts: str, name: str = "org/tiny") -> str:
    """Its error, once it has failed with all of these words and the 503 says the same: between two tries, since what
    failed is tried again and again."""

    def told() -> str:
        found = shown(node, name)
        error = found.error or ""
        if found.state != "failed" or not all(part in error for part in parts):
            return ""
        return error if all(part in refusal(node, name).message for part in parts) else ""

    return str(wait_for(f"{name} has failed with {parts}", told, START_S))


def fetched(node: Node, share: float, name: str = "org/tiny") -> None:
    """Waits for so much of it."""
    wait_for(f"{share} of {name} is here", lambda: (shown(node, name).progress or 0.0) >= share)


def shown(node: Node, name: str) -> ModelDetails:
    """How the node shows a model; a node that has just started may not know it yet."""
    found = (m for m in node.client.models() if name in (m.name, *m.aliases))
    return next(found, ModelDetails(name=name))


def on_its_way(node: Node, name: str = "org/tiny") -> bool:
    return "MB/s" in (shown(node, name).error or "")
