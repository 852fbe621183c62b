"""Models of nodes that were lost a short while ago."""

from __future__ import annotations

from router.lately import Lately


def test_a_model_of_a_lost_node_is_remembered_for_a_while() -> None:
    lately = Lately(300.0, 8)
    lately.lost(("chat-1", "standard"), 10.0)
    assert lately.served("chat-1", 10.0)
    assert lately.served("standard", 309.9)
    assert not lately.served("standard", 310.0)
    assert not lately.served("other", 10.0)


def test_the_latest_loss_counts() -> None:
    lately = Lately(300.0, 8)
    lately.lost(("chat-1",), 0.0)
    lately.lost(("chat-1",), 200.0)
    assert lately.served("chat-1", 499.0)


def test_so_many_names_are_remembered_and_the_oldest_goes_first() -> None:
    lately = Lately(300.0, 2)
    lately.lost(("a", "b"), 0.0)
    lately.lost(("a",), 1.0)
    lately.lost(("c",), 2.0)
    assert [n for n in "abc" if lately.served(n, 2.0)] == ["a", "c"]
