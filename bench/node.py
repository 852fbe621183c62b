"""`make bench-node`: what model servers take against what is reserved for them, a node under chaos, an idle node.

For memory each model runs in a real worker of this machine and reads one long prompt, whose keys and values it keeps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

from msgspec import Struct

from bench import chaos, idle, shapes
from bench.report import Figure, publish, within
from demo.model import build_chat, build_tiny, default_cache
from node.headroom import Taken, kv_bytes, model_bytes
from node.io import weights
from node.io.engine import ModelSpec
from node.io.flow import gathered
from node.io.mlx import MlxEngine
from node.io.probe import Probe
from node.io.registry import Registry
from node.openai import usage_of
from node.settings import EngineSettings

MIB = 2**20
CHAT = "SmolLM2-135M-Instruct"
PROMPT_TOKENS = 1000
LOOKS, LOOK_EVERY_S = 5, 0.2  # at the memory of a worker: long enough for the system to take back what is free
SLOW_TOKENS = 200  # without a GPU
SLOW = ("dense fp16", "4-bit", CHAT)  # there half precision and packed weights are read at some ten tokens a second


class Weighed(Struct, frozen=True):
    """Bytes of one worker: right after its start, and after it has read `tokens` tokens."""

    base: int
    full: int
    tokens: int


async def weigh(engine: MlxEngine, directory: Path, tokens: int) -> Weighed:
    """Runs the model once. The memory a worker has freed is given back by the system some time after: so the least of
    a few looks counts."""
    worker, probe = engine.worker(ModelSpec(name="weighed", path=str(directory)), lambda _: None), Probe()
    await worker.start()
    try:
        assert worker.pid is not None
        base = await _settled(probe, worker.pid)
        body = json.dumps({"prompt": " the" * tokens, "max_tokens": 4, "temperature": 0}).encode()
        read = 0
        said = gathered(lambda sink: worker.pour("completions", body, model_name="weighed", sink=sink))
        async with aclosing(said) as blocks:
            async for block in blocks:
                found = usage_of(block)
                read = found.usage.prompt + found.usage.completion if found else read
        return Weighed(base, await _settled(probe, worker.pid), read)
    finally:
        await worker.stop(5.0)


async def _settled(probe: Probe, pid: int) -> int:
    """The least of a few looks; a measurement, not a wait for something to happen."""
    looks = []
    for _ in range(LOOKS):
        await asyncio.sleep(LOOK_EVERY_S)
        looks.append(await asyncio.to_thread(probe.worker_bytes, pid))
    return min(looks)


async def memory(cache: Path, work: Path) -> list[Figure]:
    """For each shape: what is reserved before the first load, and once it was measured, over what is taken in the end;
    and the part that differs between models, above what an almost empty model takes."""
    engine = MlxEngine(EngineSettings(start_limit_s=300.0), logs=work, registry=Registry())
    bare = await weigh(engine, build_tiny(cache / "tiny-a", seed=1, cache=cache), 16)
    models = {name: shapes.build(name, work / name.replace(" ", "-"), cache) for name in shapes.SHAPES}
    figures = [within("memory: a worker without a model to speak of", bare.full / MIB, "MiB", None, 256)]
    for name, directory in {**models, CHAT: build_chat(cache)}.items():
        shape = weights.shape(directory)
        slow = name in SLOW and sys.platform != "darwin"
        began = time.monotonic()
        found = await weigh(engine, directory, SLOW_TOKENS if slow else PROMPT_TOKENS)
        kept = kv_bytes(shape, found.tokens)
        first, then = model_bytes(shape, kept), model_bytes(shape, kept, Taken(found.base))
        grows = (shape.weight_bytes + kept) / max(1, found.full - bare.full)
        loads = shape.weight_bytes / max(1, found.base - bare.base)
        print(
            f"{name}: weights {shape.weight_bytes / MIB:.0f} MiB, keys and values of {found.tokens} tokens "
            f"{kept / MIB:.1f} MiB; taken {found.base / MIB:.0f} MiB empty, {found.full / MIB:.0f} MiB full; "
            f"reserved {first / MIB:.0f} MiB at first, {then / MIB:.0f} MiB once measured "
            f"({time.monotonic() - began:.0f} s)",
            flush=True,
        )
        figures += [
            within(f"memory, {name}: weights, estimated / measured", loads, "x", 0.6, 1.25),
            within(f"memory, {name}: weights + KV, estimated / measured", grows, "x", 0.6, 1.25),
            within(f"memory, {name}: reserved at first / measured", first / found.full, "x", 1.0, None),
            within(f"memory, {name}: reserved once measured / measured", then / found.full, "x", 1.0, None),
        ]
    return figures


def main() -> None:
    """Runs everything; a figure that misses its goal is reported, no failure."""
    parser = argparse.ArgumentParser(prog="bench.node", description=__doc__)
    parser.add_argument("--cache", type=Path, default=None, help="where demo models are kept")
    parser.add_argument("--chaos-s", type=float, default=60.0, help="how long workers are killed and frozen")
    parser.add_argument("--idle-s", type=float, default=60.0, help="how long an idle node is watched, twice")
    options = parser.parse_args()
    cache = options.cache or default_cache()
    with tempfile.TemporaryDirectory(prefix="bench-node-") as folder:
        figures = asyncio.run(memory(cache, Path(folder)))
    figures += chaos.figures(cache, options.chaos_s)
    figures += idle.figures(cache, options.idle_s)
    print(publish("node", figures))


if __name__ == "__main__":
    main()
