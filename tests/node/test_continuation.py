"""node/continuation.py: what it adds to a body is what a worker reads, whatever stood there."""

from __future__ import annotations

import json

import msgspec
import pytest

from node.continuation import RESUME_FIELD, Continuation, continued
from node.openai import Renamer, bare, clean_request

CUT = Continuation(id="chatcmpl-1", created=1700000000, tokens=(5, 7), blocks=2)


@pytest.mark.parametrize(
    "body", [b'{"model":"m","n":[{}]}', b'{"model": "m", "n": [{}]\n}\n', b'{"n":[{}],"model":"m"} ']
)
def test_the_continuation_stands_beside_the_clients_fields(body: bytes) -> None:
    found = json.loads(continued(body, CUT))
    assert msgspec.convert(found.pop(RESUME_FIELD), Continuation) == CUT
    assert found == json.loads(body)


def test_it_wins_over_a_field_that_the_client_sent() -> None:
    found = json.loads(continued(b'{"mesh_resume":{"id":"forged"},"model":"m"}', CUT))
    assert found[RESUME_FIELD]["id"] == CUT.id


def test_a_node_hands_it_to_its_worker_and_tokens_to_whoever_asked() -> None:
    cleaned = json.loads(clean_request(continued(b'{"model":"m","messages":[],"keep_alive":1}', CUT), model="x"))
    assert msgspec.convert(cleaned[RESUME_FIELD], Continuation) == CUT
    block = b'data: {"model": "m", "mesh_tokens": [5, 7], "choices": []}\n\n'
    assert bare(block) == block
    assert json.loads(Renamer("alias")(block)[6:]) == {"model": "alias", "mesh_tokens": [5, 7], "choices": []}
