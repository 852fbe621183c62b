"""Models with random weights, one of each shape that takes memory in another way; some ten megabytes each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import gemma3_text, llama

from demo.making import TINY_VOCABULARY
from demo.model import build_tiny

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "vocab_size": TINY_VOCABULARY,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_FEW_HEADS = {"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 32}
_GEMMA = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 12,
    "intermediate_size": 1024,
    "sliding_window": 256,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 64,
    "tie_word_embeddings": True,
}
# What differs from _LLAMA, the type of the numbers, and bits of a quantised one.
SHAPES: dict[str, tuple[dict[str, Any], str, int]] = {
    "dense fp16": ({"num_hidden_layers": 4}, "float16", 0),
    "4-bit": ({"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16}, "float32", 4),
    "tied embeddings": ({"vocab_size": 40_000, "tie_word_embeddings": True}, "float32", 0),
    "GQA": (_FEW_HEADS, "float32", 0),
    "sliding window": (_GEMMA, "float32", 0),
}


def build(shape: str, target: Path, cache: Path) -> Path:
    """The model of that shape in `target`; its tokenizer is the tiny demo model's, built below `cache`."""
    changes, number, bits = SHAPES[shape]
    config = {**_LLAMA, **changes}
    library: Any = gemma3_text if config["model_type"] == "gemma3_text" else llama
    mx.random.seed(0)
    model = library.Model(library.ModelArgs.from_dict(config))
    dtype = getattr(mx, number)
    known = (mx.arange(config["vocab_size"]) < TINY_VOCABULARY)[:, None]
    weights = {
        name: _random(name, weight.shape, known).astype(dtype)
        for name, weight in tree_flatten(model.parameters())
        if not (config["tie_word_embeddings"] and name.startswith("lm_head."))
    }
    if bits:
        model.load_weights(list(weights.items()), strict=False)
        nn.quantize(model, group_size=64, bits=bits)
        weights = dict(tree_flatten(model.parameters()))
        config["quantization"] = {"group_size": 64, "bits": bits}
    target.mkdir(parents=True)
    mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "mlx"})
    (target / "config.json").write_text(json.dumps(config))
    tiny = build_tiny(cache / "tiny-a", seed=1, cache=cache)
    for file in tiny.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, target)
    return target


def _random(name: str, shape: tuple[int, ...], known: Any) -> Any:
    """Random numbers; rows of the vocabulary that the tokenizer does not have are zero, so that it never says them."""
    if len(shape) < 2:
        return mx.ones(shape)
    drawn = mx.random.normal(shape) * 0.05
    return drawn * known if name.startswith(("lm_head.", "model.embed_tokens.")) else drawn
