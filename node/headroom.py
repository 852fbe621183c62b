"""Bytes: what a model takes, what this machine can give. Arithmetic only."""

from __future__ import annotations

from msgspec import Struct

GIB = 2**30
_PROCESS_BYTES = GIB // 4  # Python, its libraries, Metal
_WORKING_BYTES = GIB // 4  # activations of one prefill step, and freed buffers that the worker may keep
_WEIGHT_OVERHEAD = 0.03  # rounding to pages: weights are read once and stay where they are
_OVERHEAD = 0.10  # fragmentation and rounding of KV, which grows and goes
_CACHE_SHARE = 16  # one model's prompt cache may take this part of the budget


class Shape(Struct, frozen=True, kw_only=True):
    """What memory needs to know of a model: `kv_layers` keep keys and values of the whole text, `kv_heads` heads of
    `head_dim` numbers each; layers with a sliding window keep its last `window` tokens."""

    weight_bytes: int
    kv_layers: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    number_bytes: int = 2  # of one number of the cache: 4 when the model computes in float32
    window: int = 0
    window_token_bytes: int = 0  # of one token in all layers with a window together
    context: int = 0  # longest prompt plus answer, 0 = unknown


class Taken(Struct, frozen=True):
    """What workers of a model were measured to take: `base_bytes` right after a load, `peak_bytes` ever since."""

    base_bytes: int
    peak_bytes: int = 0


def kv_bytes(shape: Shape, tokens: int) -> int:
    """Keys and values of one text of so many tokens."""
    full = 2 * shape.kv_layers * shape.kv_heads * shape.head_dim * shape.number_bytes
    return full * tokens + shape.window_token_bytes * min(tokens, shape.window)


def cache_bytes(shape: Shape, *, budget_bytes: int, kv_tokens: int, least: int, most: int) -> int:
    """Bytes that a worker's keys and values may take, those it keeps for later prompts included.

    A sixteenth of the budget, from `least` to `most`; no more than the weights, since a small model reads a prompt
    again soon; but room for one text of `kv_tokens` tokens (at most its context) in any case.
    """
    share = min(most, max(least, budget_bytes // _CACHE_SHARE))
    tokens = min(kv_tokens, shape.context) if shape.context else kv_tokens
    return max(min(share, max(least, shape.weight_bytes)), kv_bytes(shape, tokens))


def model_bytes(shape: Shape, cache: int, taken: Taken | None = None) -> int:
    """Bytes to reserve for a worker whose keys and values take at most `cache`: by its weights, until it is known
    what its workers take; then by that, and never less than they have taken."""
    grows = cache + int(cache * _OVERHEAD) + _WORKING_BYTES
    if taken is None:
        return shape.weight_bytes + int(shape.weight_bytes * _WEIGHT_OVERHEAD) + _PROCESS_BYTES + grows
    return max(taken.base_bytes + grows, taken.peak_bytes)


def default_budget(memory_bytes: int, working_set_bytes: int = 0) -> int:
    """Bytes models may take: RAM less 20, 8 or 4 GB (>= 64, 24-63, < 24 GB), capped by the GPU's working set
    (0 = no such limit). Machines too small for that rule give a quarter of their RAM."""
    gib = memory_bytes / GIB
    rest = 20 if gib >= 64 else 8 if gib >= 24 else 4
    budget = max(memory_bytes - rest * GIB, memory_bytes // 4)
    return min(budget, working_set_bytes) if working_set_bytes else budget


def default_idle_s(memory_bytes: int) -> float:
    """Seconds an unused model is kept: 10, 5 or 3 minutes (>= 64, 24-63, < 24 GB)."""
    gib = memory_bytes / GIB
    return 600.0 if gib >= 64 else 300.0 if gib >= 24 else 180.0


def load_s(weight_bytes: int, disk_bytes_per_s: float, fixed_s: float) -> float:
    """Expected seconds from absent to ready: reading the weights, plus a part that does not depend on them."""
    return fixed_s + weight_bytes / disk_bytes_per_s


def gigabytes(size_bytes: float) -> str:
    """For people: `5.2 GB` (2^30 bytes, as Macs count memory)."""
    return f"{size_bytes / GIB:.1f} GB" if size_bytes >= GIB / 20 else f"{size_bytes / 2**20:.1f} MB"
