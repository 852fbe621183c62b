"""A directory of the model that says what it is told (echo_model.py); its tokenizer knows reasoning and tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

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


def build_echo(model: Path, target: Path, *, plain_decoder: bool = True) -> Path:
    """Makes it in `target`, with the tokenizer of `model` and TAGS in place of tokens that nobody says.

    Without `plain_decoder` its decoder is one that mlx_lm does not know: it decodes whole lines anew at each token."""
    target.mkdir()
    shutil.copy(echo_model.__file__, target / "echo_model.py")
    mx.save_safetensors(str(target / "model.safetensors"), {"sharpness": mx.ones((1,))})
    tokenizer = (model / "tokenizer.json").read_text()
    for theirs, ours in TAGS.items():
        assert theirs in tokenizer
        tokenizer = tokenizer.replace(theirs, ours)
    if not plain_decoder:
        fields = json.loads(tokenizer)
        fields["decoder"] = {"type": "Sequence", "decoders": [fields["decoder"]]}
        tokenizer = json.dumps(fields)
    (target / "tokenizer.json").write_text(tokenizer)
    known = Tokenizer.from_str(tokenizer)
    config = {"model_type": "echo", "model_file": "echo_model.py", "vocab_size": known.get_vocab_size()}
    heads = {name: len(known.encode(f"<|im_start|>{role}<gh_stars>").ids) for name, role in ROLES.items()}
    limits = {"eos_token_id": 2, "max_position_embeddings": 8192}
    (target / "config.json").write_text(json.dumps({**config, **heads, **limits}))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return target
