"""What is read of a body and of a form, and that junk in any shape is refused without repeating it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.asked import CHAT, COMPLETIONS, Asked, form_field, read
from router.errors import ErrorCode, RouterError
from router.prompt import Prompt

JSON = "application/json"


def body(**fields: Any) -> bytes:
    return msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields})


def read_but_prompt(path: str, body: bytes, content_type: str) -> Asked:
    """The prompt has tests of its own."""
    return msgspec.structs.replace(read(path, body, content_type), prompt=Prompt())


def test_what_placing_needs() -> None:
    assert read_but_prompt(CHAT, body(), JSON) == Asked(model="m")
    asked = read_but_prompt(CHAT, body(stream=True, stream_options={"include_usage": True}, max_tokens=7, n=2), JSON)
    assert asked == Asked(model="m", stream=True, include_usage=True, max_tokens=7, choices=2)


def test_null_means_not_said() -> None:
    nothing = body(stream=None, stream_options=None, max_tokens=None, n=None)
    assert read_but_prompt(CHAT, nothing, JSON) == Asked(model="m")


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {}}]}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}, {"role": "tool", "content": "4"}],
        [{"role": "assistant", "tool_calls": []}],
    ],
)
def test_messages_of_every_kind(messages: list[Any]) -> None:
    assert read(CHAT, body(messages=messages), JSON).model == "m"


@pytest.mark.parametrize("prompt", ["hi", "", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_prompts_of_every_kind(prompt: Any) -> None:
    assert read(COMPLETIONS, msgspec.json.encode({"model": "m", "prompt": prompt}), JSON).model == "m"


@given(junk=st.binary(max_size=60), path=st.sampled_from([CHAT, COMPLETIONS, "embeddings"]))
def test_junk_is_refused(junk: bytes, path: str) -> None:
    with pytest.raises(RouterError) as caught:  # no body without a model is understood
        read(path, junk, JSON)
    assert caught.value.refusal.code is ErrorCode.INVALID_REQUEST


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v, max_size=3)))
def test_a_refusal_never_repeats_the_clients_text(value: object) -> None:
    secret = "the launch code is 0000"
    for field in ("messages", "stream", "max_tokens", "n", "stream_options"):
        with pytest.raises(RouterError) as caught:
            read(CHAT, body(**{field: [secret, value]}), JSON)
        assert secret not in str(caught.value)
        assert (caught.value.refusal.param or "").startswith(field)


def form(*parts: tuple[str, bytes], boundary: bytes = b"xYz") -> bytes:
    text = b"".join(
        b"--" + boundary + b"\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + value + b"\r\n"
        for head, value in parts
    )
    return text + b"--" + boundary + b"--\r\n"


def test_a_field_of_a_form() -> None:
    sound = ('name="file"; filename="model"', b"\x00\r\n--not the mark\r\n\r\n" * 50)
    kind = "multipart/form-data; boundary=xYz"
    assert form_field(form(sound, ('name="model"', b"whisper")), kind, "model") == "whisper"
    assert form_field(form(("name=model", b"whisper"), sound), kind, "model") == "whisper"
    assert form_field(form(sound), kind, "model") is None
    assert form_field(form(sound), "multipart/form-data", "model") is None
    assert form_field(form(('name="model"', b"whisper"))[:-12], kind, "model") is None


@given(junk=st.binary(max_size=200))
def test_a_broken_form_has_no_field(junk: bytes) -> None:
    assert form_field(b"--xYz" + junk, 'multipart/form-data; boundary="xYz"', "model") in (None, "")


# keep_alive, as Ollama reads it (github.com/ollama/ollama, docs/api.md and docs/faq.md)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("300", 300.0),
        ('"300"', 300.0),
        ("0", 0.0),
        ('"0"', 0.0),
        ('"0s"', 0.0),
        ("0.5", 0.5),
        ('"5m"', 300.0),
        ('"24h"', 86_400.0),
        ('"1h30m"', 5400.0),
        ('"1.5h"', 5400.0),
        ('"500ms"', 0.5),
        ('"-5m"', float("inf")),
        ('"-1"', float("inf")),
        ("-1", float("inf")),
        ("-0.5", float("inf")),
        ("null", None),
    ],
)
def test_keep_alive(written: str, seconds: float | None) -> None:
    written_body = (
        b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "keep_alive": %s}' % written.encode()
    )
    assert read(CHAT, written_body, "application/json").keep_alive == seconds
    assert read("embeddings", written_body, "application/json").keep_alive == seconds


@pytest.mark.parametrize(
    "written", ["true", "{}", "[5]", '"5x"', '"m5"', '""', '"5 apples"', '"1h-5m"', '"nan"', '"inf"', f'"{"9h" * 40}"']
)
def test_a_keep_alive_that_says_nothing_is_refused(written: str) -> None:
    with pytest.raises(RouterError) as error:
        read("embeddings", b'{"model": "m", "keep_alive": %s}' % written.encode(), "application/json")
    assert error.value.refusal.param == "keep_alive"
