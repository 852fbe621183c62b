"""However two runs cut the same answer into chunks, and wherever the first one broke off, the client gets it once."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from node.types import Usage
from router.assemble import Assembler
from router.seam import Seam, SeamError

texts = st.text(min_size=1, max_size=24)
# An answer: thinking, speaking, tool calls, and how it ended. Empty parts are left out.
answers = st.fixed_dictionaries(
    {
        "reasoning": st.text(max_size=24),
        "content": st.text(max_size=60),
        "tools": st.lists(st.tuples(st.sampled_from(["weather", "time"]), texts), max_size=3),
        "finish": st.sampled_from(["stop", "length", "tool_calls"]),
        "logprobs": st.booleans(),
    }
)


def _cut(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _block(run: str, choice: dict[str, Any]) -> bytes:
    body = {"id": run, "created": len(run), "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


@st.composite
def runs(draw: st.DrawFn, answer: dict[str, Any], run: str) -> list[bytes]:
    """The same answer in chunks of one's own: with a role first or everywhere, ids of one's own for the tools."""
    everywhere = draw(st.booleans())
    deltas: list[dict[str, Any]] = [] if everywhere else [{"role": "assistant", "content": ""}]
    for field in ("reasoning", "content"):
        for part in _cut(draw, answer[field]):
            delta: dict[str, Any] = {field: part}
            last = deltas[-1] if deltas else {}
            if field == "content" and "reasoning" in last and "content" not in last and draw(st.booleans()):
                last["content"] = part  # both in one chunk
            else:
                deltas.append(delta)
    for index, (name, arguments) in enumerate(answer["tools"]):
        for nth, part in enumerate(_cut(draw, arguments)):
            call: dict[str, Any] = {"index": index, "function": {"arguments": part}}
            if nth == 0:
                call |= {"id": f"{run}-{index}", "type": "function"}
                call["function"]["name"] = name
            deltas.append({"tool_calls": [call]})
    blocks = []
    apart = draw(st.booleans())
    role = {"role": "assistant"} if everywhere else {}
    for nth, delta in enumerate(deltas):
        finish = answer["finish"] if nth == len(deltas) - 1 and not apart else None
        choice: dict[str, Any] = {"index": 0, "delta": {**role, **delta}, "finish_reason": finish}
        if answer["logprobs"]:
            said = delta.get("content", "")
            choice["logprobs"] = {"content": [{"token": c} for c in said]}
        blocks.append(_block(run, choice))
    if apart:
        blocks.append(_block(run, {"index": 0, "delta": {}, "finish_reason": answer["finish"]}))
    return blocks


def assembled(blocks: list[bytes]) -> dict[str, Any]:
    assembler = Assembler(10**9)
    for block in blocks:
        assembler.feed(block)
    whole: dict[str, Any] = json.loads(assembler.answer(Usage()))
    message = whole["choices"][0]["message"]
    for field in ("reasoning", "content"):
        message[field] = message.get(field) or ""
    for call in message.get("tool_calls") or ():
        call["id"] = "id"
    return whole


@given(data=st.data())
def test_any_second_run_of_the_same_answer_joins_on_to_any_cut(data: st.DataObject) -> None:
    answer = data.draw(answers)
    first, second = data.draw(runs(answer, "first")), data.draw(runs(answer, "second"))
    cut = data.draw(st.integers(1, len(first)))
    seam = Seam(first[:cut])
    rest = [new for block in second if (new := seam.feed(block)) is not None]
    seam.end()
    assert assembled([*first[:cut], *rest]) == assembled(first)


@given(data=st.data(), text=st.text(min_size=2, max_size=40), at=st.integers(0, 39), wrong=st.characters())
def test_a_run_that_differs_before_the_cut_is_never_joined(data: st.DataObject, text: str, at: int, wrong: str) -> None:
    at %= len(text)
    if wrong == text[at]:
        wrong = chr(ord(wrong) ^ 1)
    plain: dict[str, Any] = {"reasoning": "", "tools": [], "finish": "stop", "logprobs": False}
    first = data.draw(runs({**plain, "content": text}, "first"))
    second = data.draw(runs({**plain, "content": text[:at] + wrong + text[at + 1 :]}, "second"))
    seam = Seam(first)
    try:
        for block in second:
            seam.feed(block)
        seam.end()
    except SeamError:
        return
    raise AssertionError("it was joined")
