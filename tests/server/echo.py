"""A directory of the model that says what it is told (echo_model.py); its tokenizer knows reasoning and tools."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import mlx.core as mx
from tokenizers import Tokenizer

from tests.server import echo_model

TRUSTED = ("--trust-remote-code",)
TAGS = {"<repo_name>": "<think>", "<reponame>": "</think>", "<file_sep>": "<tool_call>", "<filename>": "</tool_call>"}
ROLES = {"asked": "user", "answered": "assistant"}
# It names <tool_call> and tool_call.name: by these mlx_lm knows that tool calls are JSON.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '<gh_stars>' + message.content }}"
    "{% for tool_call in message.tool_calls or [] %}{{ '<tool_call>' + tool_call.name + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<gh_stars>' }}"
    "{% if begins_thinking %}{{ '<think>' }}{% endif %}{% endif %}"
)
PROMPT = "<|im_start|>user<gh_stars>%s<|im_end|><|im_start|>assistant<gh_stars>"


Kind = Literal["bytes", "lines", "sentences"]


def build_echo(model: Path, target: Path, kind: Kind = "bytes") -> Path:
    """Makes it in `target`, with the tokenizer of `model` and TAGS in place of tokens that nobody says.

    mlx_lm has a way of its own to make text of each kind of tokenizer: of those that spell `bytes`, as `model`'s does,
    of SentencePiece's, and of any other, where it decodes whole `lines` anew at each token."""
    target.mkdir()
    shutil.copy(echo_model.__file__, target / "echo_model.py")
    mx.save_safetensors(str(target / "model.safetensors"), {"sharpness": mx.ones((1,))})
    tokenizer = (model / "tokenizer.json").read_text()
    for theirs, ours in TAGS.items():
        assert theirs in tokenizer
        tokenizer = tokenizer.replace(theirs, ours)
    tokenizer = _CHANGED[kind](tokenizer)
    (target / "tokenizer.json").write_text(tokenizer)
    known = Tokenizer.from_str(tokenizer)
    config = {"model_type": "echo", "model_file": "echo_model.py", "vocab_size": known.get_vocab_size()}
    heads = {name: len(known.encode(f"<|im_start|>{role}<gh_stars>").ids) for name, role in ROLES.items()}
    limits = {"eos_token_id": 2, "max_position_embeddings": 8192}
    (target / "config.json").write_text(json.dumps({**config, **heads, **limits}))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return target


def _lines(tokenizer: str) -> str:
    fields = json.loads(tokenizer)
    return json.dumps({**fields, "decoder": {"type": "Sequence", "decoders": [fields["decoder"]]}})


def _sentences(tokenizer: str) -> str:
    """A tokenizer of SentencePiece's kind with the same special tokens, few words, and bytes for all that it lacks."""
    fields = json.loads(tokenizer)
    special = [token["content"] for token in fields["added_tokens"]]
    letters = sorted({"▁", *string.ascii_letters, *string.punctuation, "\n", "\t", "ü"} - {"<"})
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "n"), ("an", "d"), ("▁", "a"), ("▁", "▁"), ("▁▁", "▁▁")]
    words = [*special, *(f"<0x{n:02X}>" for n in range(256)), *letters, *(left + right for left, right in merges)]
    known = {word: number for number, word in enumerate(words)}
    spell = {
        "type": "BPE",
        "vocab": known,
        "merges": merges,
        "byte_fallback": True,
        "fuse_unk": True,
        "unk_token": None,
    }
    spaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoders = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return json.dumps(
        {
            **fields,
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": spell,
        }
    )


_CHANGED: dict[Kind, Callable[[str], str]] = {"bytes": str, "lines": _lines, "sentences": _sentences}
