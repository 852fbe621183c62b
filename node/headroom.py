"""Bytes: what a model takes, what this machine can give. Arithmetic only."""

from __future__ import annotations

from msgspec import Struct

GIB = 2**30
_FIXED_BYTES = GIB // 2  # Python, Metal and buffers of one worker
_OVERHEAD = 0.10  # activations and fragmentation, of weights and KV


class Shape(Struct, frozen=True, kw_only=True):
    """What memory needs to know of a model. `kv_layers` counts layers with a full cache only (not sliding windows)."""

    weight_bytes: int
    kv_layers: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    context: int = 0  # longest prompt plus answer, 0 = unknown


def kv_bytes_per_token(shape: Shape) -> int:
    """Keys and values of one token at 16 bit."""
    return 2 * shape.kv_layers * shape.kv_heads * shape.head_dim * 2


def model_bytes(shape: Shape, kv_tokens: int) -> int:
    """Bytes to reserve for a worker: weights, KV of `kv_tokens` tokens (at most its context), overhead, fixed part."""
    tokens = min(kv_tokens, shape.context) if shape.context else kv_tokens
    grows = shape.weight_bytes + kv_bytes_per_token(shape) * tokens
    return grows + int(grows * _OVERHEAD) + _FIXED_BYTES


def default_budget(memory_bytes: int, working_set_bytes: int = 0) -> int:
    """Bytes models may take: RAM less 20, 8 or 4 GB (>= 64, 24-63, < 24 GB), capped by the GPU's working set
    (0 = no such limit). Machines too small for that rule give a quarter of their RAM."""
    gib = memory_bytes / GIB
    rest = 20 if gib >= 64 else 8 if gib >= 24 else 4
    budget = max(memory_bytes - rest * GIB, memory_bytes // 4)
    return min(budget, working_set_bytes) if working_set_bytes else budget


def load_s(weight_bytes: int, disk_bytes_per_s: float, fixed_s: float) -> float:
    """Expected seconds from absent to ready: reading the weights, plus a part that does not depend on them."""
    return fixed_s + weight_bytes / disk_bytes_per_s


def gigabytes(size_bytes: float) -> str:
    """For people: `5.2 GB` (2^30 bytes, as Macs count memory)."""
    return f"{size_bytes / GIB:.1f} GB" if size_bytes >= GIB / 20 else f"{size_bytes / 2**20:.1f} MB"
