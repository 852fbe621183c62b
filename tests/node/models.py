"""Model directories and specs of them, for tests that need weights of a known size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from node.io.engine import ModelSpec


def shard(file: Path, tensors: dict[str, int], fill: bytes = b"\1") -> None:
    """A safetensors file with these tensors, each of so many bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + fill * end)


def model_directory(
    directory: Path, *, layers: int = 2, heads: int = 4, head_dim: int = 8, context: int = 2048, **config: Any
) -> Path:
    """A model with 3000 bytes of weights."""
    directory.mkdir(parents=True, exist_ok=True)
    whole = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": heads * head_dim,
        "max_position_embeddings": context,
        **config,
    }
    (directory / "config.json").write_text(json.dumps(whole))
    (directory / "tokenizer.json").write_text("{}")
    shard(directory / "model-00001-of-00002.safetensors", {"a": 1000, "b": 500})
    shard(directory / "model-00002-of-00002.safetensors", {"c": 1500})
    return directory


def mlx_spec(folder: Path, name: str, **more: Any) -> ModelSpec:
    """A model whose budget is a bit over 1 GiB: 0.5 fixed and 0.5 x 1.1 of KV."""
    directory = model_directory(folder / name, layers=32, heads=8, head_dim=64, context=8192)
    return ModelSpec(name=name, path=str(directory), **more)
