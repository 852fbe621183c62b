"""Three fleets with published speeds of 4-bit models, and what is asked of them. Sources: docs/bench.md."""

from __future__ import annotations

from msgspec import structs

from router.replay.machines import LOAD_BASE_S, LOAD_GB_S, Machine, Served

GB = {"8b": 4.6, "32b": 18.0, "70b": 40.0}
KV = {"8b": 131e3, "32b": 262e3, "70b": 328e3}  # bytes per token, fp16


def mac(
    name: str,
    chip: str,
    bandwidth: float,
    memory_gb: int,
    cache_gb: float,
    speeds: dict[str, tuple[float, float]],
    slots: int = 8,
) -> Machine:
    """`speeds`: model -> tokens/s it reads and one stream writes; the first is its own, others it can swap in."""
    models = tuple(
        Served(
            name=m,
            size_bytes=round(GB[m] * 1e9),
            prefill_tps=read,
            step_s=1.0 / write,
            context_s=KV[m] / (bandwidth * 1e9),
            cache_tokens=int(cache_gb * 1e9 / KV[m]),
            load_s=LOAD_BASE_S + GB[m] / LOAD_GB_S,
            own=m == next(iter(speeds)),
        )
        for m, (read, write) in speeds.items()
    )
    memory = int(memory_gb * 1e9)
    return Machine(name=name, models=models, chip=chip, bandwidth=bandwidth, memory_bytes=memory, slots=slots)


def m4_pro(name: str) -> Machine:
    return mac(name, "Apple M4 Pro", 273, 24, 10, {"8b": (450, 49)})


FLEETS: dict[str, tuple[Machine, ...]] = {
    "equal2": (m4_pro("M4 Pro a"), m4_pro("M4 Pro b")),
    "hetero4": (
        mac("M4 16GB", "Apple M4", 120, 16, 4, {"8b": (225, 23)}, slots=4),
        m4_pro("M4 Pro 24GB"),
        mac("M4 Max 64GB", "Apple M4 Max", 546, 64, 30, {"8b": (850, 84)}),
        mac("M3 Ultra 96GB", "Apple M3 Ultra", 819, 96, 50, {"8b": (1400, 115)}),
    ),
    "tiers": (
        m4_pro("M4 Pro a"),
        m4_pro("M4 Pro b"),
        mac("M4 Pro 64GB", "Apple M4 Pro", 273, 64, 24, {"32b": (112, 12.5), "8b": (450, 49)}),
        # No such product: two M4 Max assumed.
        mac("Studio 192GB", "Apple M4 Ultra", 1092, 192, 90, {"70b": (175, 18), "32b": (370, 38), "8b": (1500, 130)}),
    ),
}
MIX: dict[str, dict[str, float]] = {
    "equal2": {"8b": 1.0},
    "hetero4": {"8b": 1.0},
    "tiers": {"8b": 0.70, "32b": 0.20, "70b": 0.10},
}


def by_sequences(machines: tuple[Machine, ...], count: int) -> tuple[Machine, ...]:
    """The same with prompt caches bounded by whole sequences, as mlx_lm does by default (10)."""
    return tuple(structs.replace(machine, cache_seqs=count) for machine in machines)
