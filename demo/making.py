"""How the demo models are made: the chat model from its GGUF file, the tiny one from random numbers (demo/model.py says
when)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TINY_VOCABULARY = 4096  # the chat tokenizer's first tokens; a cut after any merge is a whole BPE again
SPECIAL_TOKENS = 17  # ids 0..16 of SmolLM2: <|endoftext|>, <|im_start|>, <|im_end|>, ...

Metadata = Mapping[str, Any]

# GGUF's names, longest first, and mlx-lm's.
NAMES = (
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
)


def convert(gguf: Path, work: Path) -> None:
    """Writes the model of this GGUF file, and its tokenizer, into `work`."""
    loaded: Any = mx.load(str(gguf), return_metadata=True)
    arrays, metadata = loaded
    config = _config(metadata)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for name, array in arrays.items():
        rotary = next((count for part, count in heads.items() if f".{part}." in name), None)
        value = _rotary_halves(array, rotary) if rotary else array
        # In half precision MLX's CPU backend takes minutes for an answer; the packed 4-bit weights stay as they are.
        weights[_renamed(name)] = value.astype(mx.float32) if value.dtype == mx.float16 else value
    config["quantization"] = _quantization(weights)
    mx.save_safetensors(str(work / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write_tokenizer(metadata, work)
    _write_json(work / "config.json", config)


def _renamed(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    for ours, theirs in NAMES:
        if ours in name:
            return name.replace(ours, theirs).replace("blk.", "model.layers.")
    raise ValueError(f"the GGUF file holds an unknown tensor: {name}")


def _rotary_halves(array: Any, heads: int) -> Any:
    """GGUF stores each head's rows as rotary pairs (0, half, 1, half + 1, ...); MLX wants first half, second half."""
    rows, columns = array.shape
    half = rows // heads // 2
    return array.reshape(heads, half, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(metadata: Metadata) -> dict[str, Any]:
    def number(key: str) -> int:
        return int(metadata[key].item())

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": number("llama.embedding_length"),
        "intermediate_size": number("llama.feed_forward_length"),
        "num_hidden_layers": number("llama.block_count"),
        "num_attention_heads": number("llama.attention.head_count"),
        "num_key_value_heads": number("llama.attention.head_count_kv"),
        "max_position_embeddings": number("llama.context_length"),
        "rope_theta": float(metadata["llama.rope.freq_base"].item()),
        "rms_norm_eps": float(metadata["llama.attention.layer_norm_rms_epsilon"].item()),
        "vocab_size": number("llama.vocab_size"),
        "tie_word_embeddings": True,
        "bos_token_id": number("tokenizer.ggml.bos_token_id"),
        "eos_token_id": number("tokenizer.ggml.eos_token_id"),
    }


def _quantization(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Q4_1 is 4 bits in groups of 32, Q8_0 (the embeddings here) 8 bits: packed words over groups are the bits."""
    bits = {
        name.removesuffix(".scales"): weights[name.replace(".scales", ".weight")].shape[1] // scales.shape[1]
        for name, scales in weights.items()
        if name.endswith(".scales")
    }
    others = {layer: {"group_size": 32, "bits": count} for layer, count in bits.items() if count != 4}
    return {"group_size": 32, "bits": 4, **others}


def _write_tokenizer(metadata: Metadata, work: Path) -> None:
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]  # 3: a control token
    _save_tokenizer(work, tokens, merges, special, metadata["tokenizer.chat_template"])


def _save_tokenizer(work: Path, tokens: list[str], merges: list[str], special: list[str], chat_template: str) -> None:
    """A byte-level BPE that takes digits one by one (GGUF calls this pre-tokenizer `smollm`)."""
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(work / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[1],
        "eos_token": tokens[2],
        "pad_token": tokens[2],
        "unk_token": tokens[0],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
    }
    _write_json(work / "tokenizer_config.json", settings)


def cut_tokenizer(chat: Path, work: Path) -> list[int]:
    """Writes the first TINY_VOCABULARY tokens as a tokenizer of their own; returns the ids that are plain words."""
    whole = json.loads((chat / "tokenizer.json").read_text())["model"]
    settings = json.loads((chat / "tokenizer_config.json").read_text())
    tokens = [token for token, number in sorted(whole["vocab"].items(), key=lambda p: p[1])][:TINY_VOCABULARY]
    known = set(tokens)
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in whole["merges"]]
    merges = [f"{left} {right}" for left, right in pairs if {left, right, left + right} <= known]
    _save_tokenizer(work, tokens, merges, tokens[:SPECIAL_TOKENS], settings["chat_template"])
    return [
        n for n, token in enumerate(tokens) if token.startswith("Ġ") and token[1:].isascii() and token[1:].isalpha()
    ]


def random_llama(work: Path, layers: int, width: int, seed: int, words: list[int]) -> None:
    """Random weights; its output rows other than `words` are zero, so that it says words and never stops."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "vocab_size": TINY_VOCABULARY,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    mx.random.seed(seed)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    said = mx.zeros((TINY_VOCABULARY, 1))
    said[mx.array(words)] = 1.0
    weights = dict(tree_flatten(model.parameters()))
    weights = {name: mx.random.normal(w.shape) * 0.2 if w.ndim == 2 else w for name, w in weights.items()}
    weights["lm_head.weight"] = weights["lm_head.weight"] * said
    mx.save_safetensors(str(work / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write_json(work / "config.json", config)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
