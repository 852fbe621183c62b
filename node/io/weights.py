"""Reads a model directory: its bytes, its shape, its fingerprint. Headers and samples only, never whole weights.

All functions block on the disk: call them in a thread. They raise NodeError(MODEL_FAILED) that names the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from node.errors import NodeError, NodeErrorCode
from node.headroom import Shape
from node.io.flags import value_of

_JSON_LIMIT = 8 * 2**20  # config.json
_HEADER_LIMIT = 100 * 2**20  # safetensors' own limit
_HASHED_LIMIT = 64 * 2**20  # a tokenizer file
_SAMPLES, _SAMPLE_BYTES = 64, 64 * 2**10  # DESIGN section 8
_ALONGSIDE = (  # what shapes an answer besides the weights; files that are absent count as absent
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_SHAPING = ("--adapter-path", "--chat-template", "--chat-template-args", "--use-default-chat-template")

_SAID_CHARS = 300  # of what is wrong in a file: its own words come back in that
_FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
_MEANT: dict[str, dict[str, int]] = {
    "gemma3": {"num_attention_heads": 8, "num_key_value_heads": 4},  # for its text_config, before that one's own
    "gemma3_text": {"sliding_window": 512, "sliding_window_pattern": 6, "head_dim": 256, "num_key_value_heads": 1},
    "cohere2": {"sliding_window": 4096, "sliding_window_pattern": 4},
}

Signature: TypeAlias = tuple[tuple[str, int, int, int], ...]  # of each file: path, inode, size, mtime in ns


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # all that decoding a damaged file raises
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class _Tensor(msgspec.Struct):
    data_offsets: tuple[_Count, _Count]
    dtype: str = ""


class _Config(msgspec.Struct):
    """What sizes need of config.json; absent or null means unknown."""

    model_type: str | None = None
    tie_word_embeddings: bool | None = None
    num_hidden_layers: _Count | None = None
    num_attention_heads: _Count | None = None
    num_key_value_heads: _Count | None = None
    hidden_size: _Count | None = None
    head_dim: _Count | None = None
    max_position_embeddings: _Count | None = None
    layer_types: list[str] | None = None
    full_attention_interval: _Count | None = None
    sliding_window: _Count | None = None
    sliding_window_pattern: _Count | str | None = None  # every so many layers one is full; or "LLLG"
    attention_chunk_size: _Count | None = None
    num_kv_shared_layers: _Count | None = None  # the last ones, which keep nothing of their own
    global_head_dim: _Count | None = None  # of the full layers, where they differ
    num_global_key_value_heads: _Count | None = None
    kv_lora_rank: _Count | None = None
    qk_rope_head_dim: _Count | None = None
    text_config: _Config | None = None


def locate(source: str) -> Path:
    """The directory of a model: a path, or a hub id whose files are in the hub's cache."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if source.startswith(("/", ".", "~")) or source.count("/") != 1:
        raise _failed(f"no such directory: {source}")
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - 0.3 s that only hub ids cost
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415 - as above

    try:
        cached = try_to_load_from_cache(source, "config.json")
    except HFValidationError:
        cached = None
    if not isinstance(cached, str):
        raise _failed(f"{source} is neither a directory nor in the Hugging Face cache of this Mac")
    return Path(cached).parent


def shape(directory: Path) -> Shape:
    """Bytes and cache shape of the model in `directory`."""
    whole = _config(directory / "config.json")
    config = whole.text_config or whole
    for kind in (whole.model_type, config.model_type):
        _complete(config, _MEANT.get(kind or "", {}))
    tensors = [tensor for file in _shards(directory) for tensor in _tensors(file).items()]
    tied = config.tie_word_embeddings if config.tie_word_embeddings is not None else whole.tie_word_embeddings
    full, windowed = _layers(config)
    heads = config.num_attention_heads or 0
    head_dim = config.head_dim or ((config.hidden_size or 0) // heads if heads else 0)
    kv_heads = config.num_key_value_heads or heads
    number_bytes = _number_bytes(dict(tensors))
    window_token_bytes = 2 * windowed * kv_heads * head_dim * number_bytes
    if config.kv_lora_rank:  # Latent attention keeps one compressed row instead of keys and values.
        kv_heads, head_dim = 1, (config.kv_lora_rank + (config.qk_rope_head_dim or 0) + 1) // 2
    return Shape(
        weight_bytes=sum(_size(t) for name, t in tensors if not (tied and name.startswith("lm_head."))),
        kv_layers=full,
        kv_heads=config.num_global_key_value_heads or kv_heads,
        head_dim=config.global_head_dim or head_dim,
        number_bytes=number_bytes,
        window=(config.sliding_window or config.attention_chunk_size or 0) if windowed else 0,
        window_token_bytes=window_token_bytes,
        context=config.max_position_embeddings or 0,
    )


def identity(directory: Path) -> str:
    """32 hex digits that tell models of different size apart: of config.json and the headers of the weights. Not
    their content, so it takes milliseconds."""
    digest = hashlib.blake2b(_read(directory / "config.json", _JSON_LIMIT), digest_size=16)
    for file in _shards(directory):
        digest.update(_header(file))
    return digest.hexdigest()


def fingerprint(directory: Path, flags: Sequence[str] = ()) -> str:
    """32 hex digits: equal for models that answer alike. Computed again only when a file changed. `flags` are the
    user's own for mlx_lm.server: with an adapter or another chat template the same files answer otherwise."""
    files = _fingerprint(_signature(directory))
    given = {flag.partition("=")[0] for flag in flags}
    shaping = [(name, value_of(flags, name)) for name in _SHAPING if name in given]
    return hashlib.blake2b(repr((files, shaping)).encode(), digest_size=16).hexdigest() if shaping else files


def _signature(directory: Path) -> Signature:
    files = [f for f in (directory / name for name in _ALONGSIDE) if f.is_file()] + _shards(directory)
    stats = [(f, f.stat()) for f in files]
    return tuple((str(f), s.st_ino, s.st_size, s.st_mtime_ns) for f, s in stats)


@lru_cache(maxsize=256)
def _fingerprint(signature: Signature) -> str:
    digest = hashlib.blake2b(digest_size=16)

    def feed(data: bytes) -> None:
        digest.update(len(data).to_bytes(8, "big") + data)  # Framed, so that parts cannot run into each other.

    for name, _, size, _ in signature:
        file = Path(name)
        feed(file.name.encode())
        if file.suffix != ".safetensors":
            feed(_read(file, _HASHED_LIMIT))
            continue
        header = _header(file)
        feed(header)
        with file.open("rb") as data:
            for offset in _offsets(8 + len(header), size):
                data.seek(offset)
                feed(data.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _offsets(start: int, end: int) -> list[int]:
    """Where the samples of a shard begin: evenly from its first data byte to its last block; all of it if small."""
    if end - start <= _SAMPLES * _SAMPLE_BYTES:
        return list(range(start, end, _SAMPLE_BYTES))
    last = end - _SAMPLE_BYTES
    return [start + (last - start) * i // (_SAMPLES - 1) for i in range(_SAMPLES)]


def _shards(directory: Path) -> list[Path]:
    """The weight files as mlx-lm picks them."""
    shards = sorted(directory.glob("model*.safetensors"))
    if not shards:
        raise _failed(f"{directory} holds no model*.safetensors")
    return shards


def _tensors(file: Path) -> dict[str, _Tensor]:
    """All tensors of one shard, checked against the file's length."""
    header = _header(file)
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        tensors = {
            name: msgspec.json.decode(raw, type=_Tensor) for name, raw in entries.items() if name != "__metadata__"
        }
    except _UNREADABLE as error:
        raise _failed(f"{file}: its header is not that of safetensors ({str(error)[:_SAID_CHARS]})") from error
    expected = 8 + len(header) + max((t.data_offsets[1] for t in tensors.values()), default=0)
    if file.stat().st_size < expected:
        raise _failed(f"{file} is incomplete: {file.stat().st_size} of {expected} bytes (download it again)")
    return tensors


def _size(tensor: _Tensor) -> int:
    return max(0, tensor.data_offsets[1] - tensor.data_offsets[0])


def _number_bytes(tensors: Mapping[str, _Tensor]) -> int:
    """Bytes of one number of the cache: what the keys are computed in, which quantised weights say in their scales."""
    for wanted in ("k_proj.scales", "k_proj.weight", "norm.weight"):
        found = [t.dtype for name, t in tensors.items() if name.endswith(wanted)]
        if found and found[0] in _FLOATS:
            return _FLOATS[found[0]]
    return _FLOATS["BF16"]


def _header(file: Path) -> bytes:
    """The JSON header of a safetensors file: eight bytes of length, little endian, then that much."""
    try:
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            if length > _HEADER_LIMIT:
                raise _failed(f"{file} is not a safetensors file")
            header = data.read(length)
    except OSError as error:
        raise _failed(f"cannot read {file}: {error.strerror}") from error
    if length == 0 or len(header) < length:
        raise _failed(f"{file} is incomplete: it ends inside its header (download it again)")
    return header


def _config(file: Path) -> _Config:
    try:
        return msgspec.json.decode(_read(file, _JSON_LIMIT), type=_Config, strict=False)
    except _UNREADABLE as error:
        raise _failed(f"{file}: {str(error)[:_SAID_CHARS]}") from error


def _complete(config: _Config, meant: Mapping[str, int]) -> None:
    """Fills in what a kind of model means by leaving it out (defaults of mlx_lm.models)."""
    for name, value in meant.items():
        if getattr(config, name) is None:
            setattr(config, name, value)


def _layers(config: _Config) -> tuple[int, int]:
    """How many layers keep the whole text, and how many a sliding window of it. State-space layers keep a fixed, small
    size and count as neither."""
    layers = config.num_hidden_layers or 0
    own = max(0, layers - (config.num_kv_shared_layers or 0))
    if config.layer_types:
        kinds = config.layer_types[:own] if layers else config.layer_types
        full = sum(kind in ("full_attention", "attention") for kind in kinds)
        return full, sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
    if config.full_attention_interval:
        return own // config.full_attention_interval, 0
    pattern = config.sliding_window_pattern
    if not config.sliding_window or not pattern:
        return own, 0  # A window without a pattern is one that mlx-lm does not use.
    if isinstance(pattern, str):
        windowed = sum(pattern[layer % len(pattern)] == "L" for layer in range(own))
    else:
        windowed = own - own // pattern
    return own - windowed, windowed


def _read(file: Path, limit: int) -> bytes:
    try:
        with file.open("rb") as data:
            content = data.read(limit + 1)
    except OSError as error:
        raise _failed(f"cannot read {file}: {error.strerror}") from error
    if len(content) > limit:
        raise _failed(f"{file} is larger than {limit} bytes")
    return content


def _failed(message: str) -> NodeError:
    return NodeError(NodeErrorCode.MODEL_FAILED, message)
