"""Model directories: sizes, shapes, fingerprints, and every way a directory can be wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from node import headroom
from node.errors import NodeError, NodeErrorCode
from node.io import weights
from tests.node.models import model_directory, shard


def test_bytes_and_shape(tmp_path: Path) -> None:
    shape = weights.shape(model_directory(tmp_path, num_key_value_heads=2))
    assert shape == headroom.Shape(weight_bytes=3000, kv_layers=2, kv_heads=2, head_dim=8, context=2048)


@pytest.mark.parametrize(
    ("config", "per_token"),
    [
        ({}, 2 * 2 * 4 * 8 * 2),
        ({"head_dim": 16}, 2 * 2 * 4 * 16 * 2),
        ({"layer_types": ["sliding_attention", "full_attention"]}, 2 * 1 * 4 * 8 * 2),
        ({"full_attention_interval": 2}, 2 * 1 * 4 * 8 * 2),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 2 * 576 * 2),  # keys and values in one row, 2 layers
        ({"text_config": {"num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 4}}, 2 * 3 * 2 * 4 * 2),
        ({"num_kv_shared_layers": 1}, 2 * 1 * 4 * 8 * 2),
        ({"sliding_window": 64}, 2 * 2 * 4 * 8 * 2),  # without a pattern mlx-lm uses none
        ({"sliding_window": 64, "sliding_window_pattern": 2}, 2 * 1 * 4 * 8 * 2),
        ({"sliding_window": 64, "sliding_window_pattern": "LG"}, 2 * 1 * 4 * 8 * 2),
        ({"layer_types": ["linear_attention", "full_attention"]}, 2 * 1 * 4 * 8 * 2),
        ({"num_global_key_value_heads": 1, "global_head_dim": 32}, 2 * 2 * 1 * 32 * 2),
    ],
)
def test_kv_bytes_of_what_keeps_the_whole_text(tmp_path: Path, config: dict[str, Any], per_token: int) -> None:
    shape = weights.shape(model_directory(tmp_path, **config))
    assert headroom.kv_bytes(shape, 1001) - headroom.kv_bytes(shape, 1000) == per_token


@pytest.mark.parametrize(
    ("config", "window", "layers"),
    [
        ({"sliding_window": 64, "sliding_window_pattern": 6}, 64, 10),
        ({"sliding_window": 64, "sliding_window_pattern": "LLLG"}, 64, 9),
        ({"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 6}, 64, 6),
        ({"attention_chunk_size": 32, "layer_types": ["chunked_attention", "full_attention"] * 6}, 32, 6),
        ({"sliding_window": 64, "sliding_window_pattern": 6, "num_kv_shared_layers": 6}, 64, 5),
        ({"model_type": "cohere2"}, 4096, 9),
        ({"layer_types": ["full_attention"] * 12, "sliding_window": 64}, 0, 0),
    ],
)
def test_layers_with_a_window_keep_only_that(tmp_path: Path, config: dict[str, Any], window: int, layers: int) -> None:
    shape = weights.shape(model_directory(tmp_path, layers=12, **config))
    assert (shape.window, shape.window_token_bytes) == (window, 2 * layers * 4 * 8 * 2)


def test_a_gemma_that_says_little_of_its_text_part(tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", "num_hidden_layers": 12, "hidden_size": 2560}
    shape = weights.shape(model_directory(tmp_path, model_type="gemma3", text_config=text))
    assert (shape.kv_layers, shape.kv_heads, shape.head_dim, shape.window) == (2, 4, 256, 512)


def test_tied_embeddings_count_once(tmp_path: Path) -> None:
    directory = model_directory(tmp_path, tie_word_embeddings=True)
    shard(directory / "model-00003.safetensors", {"lm_head.weight": 700, "d": 1})
    assert weights.shape(directory).weight_bytes == 3001
    model_directory(tmp_path, tie_word_embeddings=False)
    assert weights.shape(directory).weight_bytes == 3701


@pytest.mark.parametrize(
    ("dtypes", "number_bytes"),
    [
        ({"a.k_proj.weight": "F32"}, 4),
        ({"a.k_proj.weight": "F16"}, 2),
        ({"a.k_proj.weight": "U32", "a.k_proj.scales": "F32", "a.norm.weight": "BF16"}, 4),
        ({"a.qkv.weight": "U32", "a.norm.weight": "F32"}, 4),
        ({"a.qkv.weight": "U32"}, 2),
    ],
)
def test_numbers_of_the_cache_are_as_wide_as_the_keys(
    tmp_path: Path, dtypes: dict[str, str], number_bytes: int
) -> None:
    directory = model_directory(tmp_path)
    header = {name: {"dtype": dtype, "shape": [0], "data_offsets": [0, 0]} for name, dtype in dtypes.items()}
    text = json.dumps(header).encode()
    for file in directory.glob("*.safetensors"):
        file.write_bytes(len(text).to_bytes(8, "little") + text)
    assert weights.shape(directory).number_bytes == number_bytes


def test_identity_tells_shapes_apart(tmp_path: Path) -> None:
    one, two = model_directory(tmp_path / "one"), model_directory(tmp_path / "two")
    assert weights.identity(one) == weights.identity(two)
    shard(two / "model-00002-of-00002.safetensors", {"c": 1501})
    assert weights.identity(one) != weights.identity(two)
    model_directory(tmp_path / "two", layers=3)
    assert len({weights.identity(one), weights.identity(two)}) == 2


def failure(directory: Path) -> str:
    with pytest.raises(NodeError) as error:
        weights.shape(directory)
    assert error.value.code is NodeErrorCode.MODEL_FAILED
    return error.value.message


DEEP = b'{"more": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"


@pytest.mark.parametrize("config", [b'{"layer_types": ["\xe4"]}', DEEP, b'{"head_dim": -8}'])
def test_a_config_of_any_bytes_is_said_to_be_broken(tmp_path: Path, config: bytes) -> None:
    """Nothing but a NodeError: this is read in a task of the daemon, which any other exception would end."""
    file = model_directory(tmp_path) / "config.json"
    file.write_bytes(config)
    assert str(file) in failure(tmp_path)


@pytest.mark.parametrize("header", [b'{"\xe4": {"data_offsets": [0, 4]}}', DEEP, b'{"a": {"data_offsets": [-4, 4]}}'])
def test_a_header_of_any_bytes_is_said_to_be_broken(tmp_path: Path, header: bytes) -> None:
    file = model_directory(tmp_path) / "model-00001-of-00002.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"data")
    assert str(file) in failure(tmp_path)


def test_broken_directories_name_the_file(tmp_path: Path) -> None:
    good = model_directory(tmp_path / "m")
    first = good / "model-00001-of-00002.safetensors"
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    assert f"{first} is incomplete" in failure(good)
    first.write_bytes(whole[:20])
    assert "ends inside its header" in failure(good)
    first.write_bytes(b"")
    assert "ends inside its header" in failure(good)
    first.write_bytes(b"\xff" * 100)
    assert "not a safetensors file" in failure(good)
    first.write_bytes((5).to_bytes(8, "little") + b"hello")
    assert "not that of safetensors" in failure(good)
    first.write_bytes(whole)
    (good / "config.json").write_text("{")
    assert "config.json" in failure(good)
    (good / "config.json").write_text('{"num_hidden_layers": "many"}')
    assert "num_hidden_layers" in failure(good)
    (good / "config.json").write_bytes(b" " * (8 * 2**20 + 1))
    assert "larger than" in failure(good)
    (good / "config.json").unlink()
    assert "cannot read" in failure(good)
    for file in good.glob("*.safetensors"):
        file.unlink()
    (good / "config.json").write_text("{}")
    assert "holds no model*.safetensors" in failure(good)


@pytest.mark.parametrize(
    "source", ["/no/such/dir", "./gone", "~/gone-too", "plainword", "not/in-any-cache", "a/b/c", "x/.."]
)
def test_a_source_that_is_not_here_is_named(source: str) -> None:
    with pytest.raises(NodeError) as error:
        weights.locate(source)
    assert source in error.value.message


def test_a_hub_id_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    model_directory(snapshot)
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert weights.locate("org/name") == snapshot


def test_equal_models_have_equal_fingerprints_wherever_they_are(tmp_path: Path) -> None:
    one = model_directory(tmp_path / "one")
    two = Path(shutil.copytree(one, tmp_path / "two"))
    (two / "README.md").write_text("not part of the model")
    assert weights.fingerprint(one) == weights.fingerprint(two)
    assert len(weights.fingerprint(one)) == 32


@pytest.mark.parametrize("change", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_what_shapes_an_answer_changes_the_fingerprint(tmp_path: Path, change: str) -> None:
    directory = model_directory(tmp_path)
    before = weights.fingerprint(directory)
    (directory / change).write_text('{"changed": 1}')
    assert weights.fingerprint(directory) != before


def test_flags_that_shape_an_answer_change_the_fingerprint(tmp_path: Path) -> None:
    directory = model_directory(tmp_path)
    plain = weights.fingerprint(directory)
    assert weights.fingerprint(directory, ("--prefill-step-size", "512", "--log-level=DEBUG")) == plain
    adapted = weights.fingerprint(directory, ("--adapter-path", "/a"))
    assert adapted == weights.fingerprint(directory, ("--log-level", "INFO", "--adapter-path=/a"))
    others = [("--adapter-path", "/b"), ("--chat-template", "/a"), ("--use-default-chat-template",)]
    assert len({plain, adapted, *(weights.fingerprint(directory, flags) for flags in others)}) == 5
    assert len(adapted) == 32


def test_a_changed_weight_of_the_same_size_changes_the_fingerprint(tmp_path: Path) -> None:
    directory = model_directory(tmp_path)
    before = weights.fingerprint(directory)
    file = directory / "model-00002-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(1, 1))
    assert weights.fingerprint(directory) != before


def test_large_shards_are_sampled_from_the_first_byte_to_the_last() -> None:
    start, end = 1000, 1000 + 100 * 2**20
    offsets = weights._offsets(start, end)
    assert len(offsets) == 64
    assert offsets[0] == start
    assert offsets[-1] == end - 64 * 2**10
    assert offsets == sorted(offsets)
    assert weights._offsets(0, 64 * 2**10 * 3) == [0, 65536, 131072]


def test_a_fingerprint_is_read_once_per_state_of_the_files(tmp_path: Path) -> None:
    directory = model_directory(tmp_path)
    weights.fingerprint(directory)
    before = weights._fingerprint.cache_info()
    weights.fingerprint(directory)
    after = weights._fingerprint.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
