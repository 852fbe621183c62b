"""An answer that broke off goes on elsewhere: what the next worker must know, and how it travels.

A worker that can continue (`Resume.CONTINUE`) names in each chunk of a stream the tokens made since the chunk before,
in the field `mesh_tokens`. Who has the chunks therefore has all it takes: given the same request with `mesh_resume`,
a worker with the same weights runs those tokens through its text machine again, sends none of the chunks that were
sent, and generates from there. So the chunks that follow fit without a seam, whatever state the text was in.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

TOKENS_FIELD = "mesh_tokens"  # in a chunk: the ids generated since the chunk before
RESUME_FIELD = "mesh_resume"  # in a request: a Continuation
TOKENS_HEADER = "X-Mesh-Tokens"  # asks a worker to name them; any value


class Continuation(Struct, frozen=True, kw_only=True):
    """What was sent of an answer. `blocks` is the number of `data:` blocks that the client has, the same worker's text
    machine makes the same ones again from `tokens`; `id` and `created` are those of the answer's chunks."""

    id: str
    created: int
    tokens: tuple[int, ...]
    blocks: int


def continued(body: bytes, continuation: Continuation) -> bytes:
    """`body`, a JSON object, with `mesh_resume`; last, so that it wins over a field of that name the client sent."""
    field = msgspec.json.encode({RESUME_FIELD: continuation})[1:]
    return body.rstrip().removesuffix(b"}") + b"," + field
