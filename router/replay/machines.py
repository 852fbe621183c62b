"""What a machine can do, for replays: its models with their speeds and sizes, and how its model server is set.

Speeds are tokens and seconds of the machine, not what anyone believes of them. Where none was measured they follow from
memory bandwidth, as the scheduler's own prior does (docs/scoring.md).
"""

from __future__ import annotations

from msgspec import Struct

GB = 1e9
PREFILL_PER_READ = 7.6  # tokens/s for each time the weights can be read in a second,
DECODE_PER_READ = 0.8  # and of one stream's answer
LOAD_BASE_S = 1.0  # to build a model, besides reading its weights
LOAD_GB_S = 3.0


class Served(Struct, frozen=True, kw_only=True):
    """One model on one machine. `step_s`: one decode step of one stream; `context_s` more for each token of context of
    every stream; `cache_tokens` that its prompt cache holds; `load_s` from absent to ready; `own`: it stands in that
    machine's stack file, so others send requests for it there too."""

    name: str
    size_bytes: int
    prefill_tps: float
    step_s: float
    context_s: float = 0.0
    cache_tokens: int = 50_000
    load_s: float = 0.0
    own: bool = True


class Machine(Struct, frozen=True, kw_only=True):
    """One Mac. The first of `models`, its `home` model, is in memory at the start.

    `resident`: all of them are in memory together, a process each, and share the GPU; else one at a time. `cache_seqs`
    bounds the prompt cache by whole sequences instead of tokens; 0: it does not.
    """

    name: str
    models: tuple[Served, ...]
    chip: str = "unknown"
    bandwidth: float = 0.0
    memory_bytes: int = 0
    slots: int = 8
    rtt_s: float = 0.002
    resident: bool = False
    cache_seqs: int = 0
    # How mlx_lm.server is set (version 0.32: its defaults)
    prompts: int = 8  # read side by side,
    chunk_tokens: int = 2048  # so many tokens of each at a time,
    padded: bool = True  # as if all were as long as the longest
    begin_s: float = 0.03  # each chunk costs besides
    context_scale: float = 30_000.0  # tokens of context that double the price of reading one more

    @property
    def home(self) -> Served:
        return self.models[0]

    def serves(self, name: str) -> Served | None:
        """The model of that name, or None."""
        return next((m for m in self.models if m.name == name), None)


def served(
    name: str,
    size_bytes: int,
    *,
    bandwidth: float,
    prefill_tps: float | None = None,
    decode_tps: float | None = None,
    kv_bytes: float = 0.0,
    cache_bytes: float = 0.0,
    load_s: float | None = None,
) -> Served:
    """A model as a machine of `bandwidth` GB/s runs it; speeds that are not given follow from that and the weights.
    `kv_bytes` of one token of context; 0: a rule of thumb from the weights."""
    reads_per_s = max(bandwidth, 1.0) / max(size_bytes / GB, 0.05)
    kv_bytes = kv_bytes or kv_bytes_of(size_bytes)
    return Served(
        name=name,
        size_bytes=size_bytes,
        prefill_tps=prefill_tps or PREFILL_PER_READ * reads_per_s,
        step_s=1 / (decode_tps or DECODE_PER_READ * reads_per_s),
        context_s=kv_bytes / (max(bandwidth, 1.0) * GB),
        cache_tokens=max(1, int(cache_bytes / kv_bytes)),
        load_s=LOAD_BASE_S + size_bytes / GB / LOAD_GB_S if load_s is None else load_s,
    )


def kv_bytes_of(size_bytes: int) -> float:
    """Bytes that one token of context takes: 131 kB for 8B models of 4.6 GB, 328 kB for 70B of 40 GB, and between."""
    return 131e3 * float(max(size_bytes / GB / 4.6, 0.05) ** 0.42)
