"""What streams are cut in bench/exact.py: one question for each thing that a seam could break."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from bench.reciter import PLAIN, TEXTS, rendered
from bench.talk import Answer

MAX_TOKENS = 300
LAST_BLOCKS = 3  # a cut "right before" the end is this near to it
TAIL_BLOCKS = 2  # of a stream: the reason for its end, and its usage; after them nothing can be cut
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("weather", "search")
]
PROMPTS = (
    "Write a short story about a mouse.", "Count from one to twenty in words.", "What is the capital of France?",
    "Write a Python function that adds two numbers.", "Explain rain to a child.", "List five animals and their sounds.",
)  # fmt: skip


class Question(Struct, frozen=True):
    """`shows`: whether the undisturbed answer has what the question is there for."""

    name: str
    path: str
    body: dict[str, Any]
    shows: Callable[[Answer], bool] = lambda answer: bool(answer.text)
    near_end: bool = False  # its end is the point: half of its cuts come right before that

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    def cut_at(self, blocks: int, rng: random.Random) -> int:
        """After which block to cut a stream of so many; 0 for an answer in one piece."""
        if not self.stream:
            return 0
        last = max(1, blocks - TAIL_BLOCKS)
        first = max(1, last - LAST_BLOCKS) if self.near_end and rng.random() < 0.5 else 1
        return rng.randint(first, last)


def certain(model: str) -> list[Question]:
    """For the reciter at temperature 0: equal each time."""

    def chat(key: str, name: str = "", shows: Callable[[Answer], bool] | None = None, **body: Any) -> Question:
        whole = _body(model, stream=body.pop("stream", True), max_tokens=body.pop("max_tokens", MAX_TOKENS), **body)
        whole["messages"] = [{"role": "user", "content": key}]
        near = bool({"stop"} & set(body)) or whole["max_tokens"] < MAX_TOKENS or key in ("word", "tools")
        return Question(name or key, "chat", whole, shows or (lambda answer: _recites(answer, key)), near)

    def plain(prompt: str, name: str, shows: Callable[[Answer], bool], **body: Any) -> Question:
        whole = _body(model, stream=body.pop("stream", True), max_tokens=MAX_TOKENS, prompt=prompt, **body)
        return Question(name, "completions", whole, shows, "stop" in body)

    def ended(finish: str, without: str = "") -> Callable[[Answer], bool]:
        return lambda answer: answer.finish == finish and not (without and without in answer.text)

    tools: Any = {"tools": TOOLS, "shows": lambda answer: len(answer.tools) == 2 and answer.finish == "tool_calls"}
    thinks: Any = {"shows": lambda answer: "Let me see" in answer.reasoning and "**42**" in answer.text}
    lists: Any = {"shows": lambda answer: answer.text == PLAIN[1].lstrip(" ")}
    return [
        chat("unicode"),
        chat("code"),
        chat("spaces"),
        chat("story"),
        chat("think", **thinks),
        chat("tools", **tools),
        chat("word", "one token"),
        chat("story", "stop in many tokens", ended("stop", "STOP HERE"), stop=["STOP HERE"]),
        chat("code", "stop over lines", ended("stop", "class"), stop=["\n\n\nclass", "never said"]),
        chat("unicode", "stop at a character", ended("stop", "✓"), stop="✓"),
        chat("story", "length", ended("length"), max_tokens=40),
        chat("unicode", "length within a character", ended("length"), max_tokens=77),
        chat("think", "length within the reasoning", ended("length"), max_tokens=25),
        plain(PLAIN[0], "completion", **lists),
        plain(rendered("code"), "completion of code", lambda answer: "\t\tself.inner  =" in answer.text),
        plain(PLAIN[0], "completion with a stop", ended("stop", "that"), stop=["that is"]),
        chat("unicode", "unicode, in one piece", stream=False),
        chat("think", "think, in one piece", stream=False, **thinks),
        chat("tools", "tools, in one piece", stream=False, **tools),
        plain(PLAIN[0], "completion, in one piece", stream=False, **lists),
    ]


def _recites(answer: Answer, key: str) -> bool:
    """Upstream drops the first space of an answer."""
    text = TEXTS[key]
    return answer.text == text[text.startswith(" ") :] and answer.finish == "stop"


def batched(model: str, tokens: int) -> list[Question]:
    """For a real model that answers several at a time."""
    return [_asked(model, prompt, tokens, 0.0) for prompt in PROMPTS]


def drawn(model: str, tokens: int) -> list[Question]:
    """The same at temperature 0.8: no two answers are equal, but each has to be of one piece."""
    return [_asked(model, prompt, tokens, 0.8) for prompt in PROMPTS]


def _asked(model: str, prompt: str, tokens: int, temperature: float) -> Question:
    body = _body(model, stream=True, max_tokens=tokens, temperature=temperature)
    body["messages"] = [{"role": "user", "content": prompt}]
    return Question(f"{prompt} ({temperature:g})", "chat", body)


def _body(model: str, *, stream: bool, **more: Any) -> dict[str, Any]:
    body = {"model": model, "temperature": 0.0, "stream": stream, **more}
    return body | ({"stream_options": {"include_usage": True}} if stream else {})
