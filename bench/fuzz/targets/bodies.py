"""Bodies of clients' requests: what the edge reads of them, and what the serving node makes of them for its worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from bench.fuzz.target import Run, Target, want
from bench.fuzz.trees import remade
from node.continuation import Continuation, continued
from node.errors import NodeError
from node.io.mlx_resume import NonsenseError, continuation_of
from node.openai import clean_request, plain_path, rename_request, runs_alone
from router.asked import CHAT, COMPLETIONS, form_field, keep_alive_s, read
from router.errors import Refusal, RouterError

_CHAT = {
    "model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 5, "n": 2,
    "keep_alive": "5m", "stream_options": {"include_usage": True}, "stop": ["a"], "seed": 1, "tools": [{"type": "f"}],
}  # fmt: skip
_PARTS = {"model": "m", "messages": [
    {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:,"}}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "name": "f", "content": "y", "tool_call_id": "1"},
]}  # fmt: skip
_FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\r\n--b--\r\n'
)
_GOES_ON = Continuation(id="c", created=1, tokens=(1, 2), blocks=1)


def _seeds() -> list[bytes]:
    whole = [json.dumps(body).encode() for body in (_CHAT, _PARTS, {"model": "m", "prompt": ["a", [1, 2], 3]})]
    return [
        *whole, _FORM, continued(whole[0], _GOES_ON), b'{"model":"m","messages":' + b"[" * 2000,
        b'{"model":"m","keep_alive":1e308,"prompt":""}', b'{"model":"m","prompt":"\\ud800"}',
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"\xff"}]}]}',
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":' + b"[" * 2000,
    ]  # fmt: skip


def _either(read_it: Callable[[], object]) -> str:
    """ "ok", or the code of the documented error."""
    try:
        read_it()
    except RouterError as error:
        found: Refusal | NodeError = error.refusal
    except NodeError as error:
        found = error
    else:
        return "ok"
    want(len(found.message) < 2000, "a message repeats what was sent")
    return found.code


@contextmanager
def _bodies() -> Iterator[Run]:
    def run(data: bytes) -> str:
        outcomes = [
            _either(lambda: read(CHAT, data, "application/json")),
            _either(lambda: read(COMPLETIONS, data, "application/json")),
            _either(lambda: read("embeddings", data, "application/json")),
            _either(lambda: read("audio/transcriptions", data, "multipart/form-data; boundary=b")),
            _either(lambda: _cleaned(data)),
            _either(lambda: json.loads(rename_request(data, model="m2"))),
        ]
        runs_alone(data)
        text = data[:200].decode("latin-1")
        outcomes.append(_either(lambda: keep_alive_s(text)))
        form_field(data, text, "model")
        want(not plain_path(text) or ".." not in text.split("/"), "a path leads elsewhere")
        return "+".join(outcomes)

    yield run


def _cleaned(data: bytes) -> None:
    """What a worker of ours gets is one JSON object that it understands as we did, and says what must be said."""
    found = clean_request(data, model="m2")
    body = json.loads(found)
    want(body["model"] == "m2" and body["stream"] is True, "what is forced is not there")
    try:
        continuation_of(body, streamed=True)
    except NonsenseError:
        return
    again = json.loads(continued(found, _GOES_ON))
    want(again["mesh_resume"] == msgspec.to_builtins(_GOES_ON) | {"tokens": [1, 2]}, "it does not go on as it was told")


TARGETS = (
    Target(
        name="bodies",
        about="router/asked.read, node/openai.clean_request and rename_request, node/io/mlx_resume.continuation_of",
        opened=_bodies,
        remake=lambda data, rng: remade(data, rng, json.loads, lambda value: json.dumps(value).encode()),
        seeds=_seeds,
        words=(b'"model"', b'"messages"', b'"content"', b'"role"', b'"prompt"', b'"stream"', b'"stop"', b'"seed"',
               b'"mesh_resume"', b'"tool_calls"', b'"keep_alive"', b"null", b"true", b"\\ud800", b"\\u0000", b"[" * 100,
               b"1e400", b'"n":', b"--b\r\n", b'name="model"', b"boundary=", b"1h30m", b"NaN", b"Infinity"),
    ),
)  # fmt: skip
