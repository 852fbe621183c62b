"""More models than memory, with real workers: one goes for the other, keep_alive, idle unload, pins."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError

from tests.server.daemons import START_S, Node, tier, wait_for

pytestmark = pytest.mark.server

ONE_OF_TWO = "1100MB"  # a tiny model takes 0.8 GB by its estimate, most of it Python and Metal


def ask(node: Node, model: str, **body: Any) -> str:
    answer = node.openai(timeout=START_S).chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Say something."}], max_tokens=8, extra_body=body
    )
    assert answer.model == model
    return answer.choices[0].message.content or ""


def state(node: Node, model: str) -> str | None:
    """None while the stack file has not been carried out yet."""
    return next((m.state for m in node.client.models() if m.name == model), None)


def one_ready(node: Node, *tiers: dict[str, Any]) -> Node:
    """Started, with memory for one of its models, which has been loaded."""
    node.stack(tiers)
    node.start()
    wait_for("one model is loaded", lambda: any(m.state == "ready" for m in node.client.models()), START_S)
    return node


def test_two_models_take_turns_in_memory_for_one(
    node: Callable[..., Node], tiny_model: Path, other_tiny_model: Path
) -> None:
    ada = one_ready(
        node("ada", memory_budget=ONE_OF_TWO, request_gap=0),
        tier(tiny_model),
        tier(other_tiny_model),
    )
    first, second = tiny_model.name, other_tiny_model.name
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda name: ask(ada, name), [first, second] * 4))
    assert all(answers)
    assert len(ada.workers()) <= 1
    memory = ada.own().memory
    assert memory.used_bytes <= memory.budget_bytes


def test_keep_alive_zero_unloads_after_the_answer(node: Callable[..., Node], tiny_model: Path) -> None:
    ada = one_ready(node("ada"), tier(tiny_model))
    assert ask(ada, tiny_model.name, keep_alive="5m")
    wait_for("it is ready for more", lambda: state(ada, tiny_model.name) == "ready")
    assert ask(ada, tiny_model.name, keep_alive=0)
    wait_for("it is unloaded", lambda: state(ada, tiny_model.name) == "absent")
    wait_for("its process is gone", lambda: not ada.workers())
    assert ask(ada, tiny_model.name)  # A cold start.
    with pytest.raises(APIStatusError) as error:
        ask(ada, tiny_model.name, keep_alive="soon")
    assert error.value.status_code == 400


def test_an_unused_model_is_unloaded_and_one_that_is_kept_is_not(
    node: Callable[..., Node], tiny_model: Path, other_tiny_model: Path
) -> None:
    ada = node("ada", idle_timeout="3s")
    ada.stack([tier(tiny_model), tier(other_tiny_model, keep_alive=-1)])
    ada.start()
    wait_for("the kept one is loaded", lambda: state(ada, other_tiny_model.name) == "ready", START_S)
    wait_for("the other is unloaded", lambda: state(ada, tiny_model.name) == "absent", START_S)
    assert state(ada, other_tiny_model.name) == "ready"
    ada.configure(idle_timeout="1h")  # At once, while it runs.
    wait_for(
        "the new time counts",
        lambda: ask(ada, tiny_model.name) and (ada.model(tiny_model.name).unloads_in_s or 0.0) > 60.0,
    )
    assert ada.model(other_tiny_model.name).unloads_in_s is None


def test_a_pinned_model_stays_and_who_waits_is_told_why(
    node: Callable[..., Node], tiny_model: Path, other_tiny_model: Path
) -> None:
    ada = one_ready(
        node("ada", memory_budget=ONE_OF_TWO, request_gap=0, idle_timeout="1s"),
        tier(tiny_model, pinned=True),
        tier(other_tiny_model),
    )
    pinned, other = tiny_model.name, other_tiny_model.name
    wait_for("the pinned one is loaded", lambda: state(ada, pinned) == "ready")
    with pytest.raises(APIStatusError) as error:
        ask(ada, other)
    assert error.value.status_code == 503
    assert "does not fit" in str(error.value) or "pinned" in str(error.value)
    assert ask(ada, pinned, keep_alive=0)
    assert state(ada, pinned) in ("ready", "busy")
    assert state(ada, other) == "absent"


def test_who_is_in_the_way_is_shown_while_a_request_is_held(
    node: Callable[..., Node], tiny_model: Path, other_tiny_model: Path
) -> None:
    ada = one_ready(
        node("ada", memory_budget=ONE_OF_TWO, request_gap="120s", idle_timeout=-1),
        tier(tiny_model, pinned=False),
        tier(other_tiny_model),
    )
    loaded = next(m.name for m in ada.client.models() if m.state == "ready")
    other = other_tiny_model.name if loaded == tiny_model.name else tiny_model.name
    assert ask(ada, loaded)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(ask, ada, other)
        wait_for("it says who is in its way", lambda: loaded in ada.model(other).waits_for)
        shown = ada.cli("models").stdout + ada.cli("mesh", "status").stdout
        assert shown.count(f"{loaded} ") >= 2
        assert "used less than 120 s ago" in shown
        assert ask(ada, loaded)  # Who is in memory is not stalled.
        ada.configure(**{"request-gap": 0})  # A setting that counts at once: now it may go.
        assert held.result(timeout=START_S)
