"""`python -m bench.scaling`: what a second and a third node add, for agents that loop without a pause.

Real daemons on loopback, whose engines (bench/paced.py) sleep for each token: the machine's own cores do not matter.
Nodes join one by one, and all agents ask the first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from bench import paced
from bench.daemon import Daemon, running
from bench.report import Figure, publish, show, within

AGENTS = 10
STEPS = 6  # of an agent's conversation, then it begins another
SYSTEM_TOKENS, RESULT_TOKENS, ANSWER_TOKENS = 240, 80, 20
ENGINE = {"read_ms": 2.0, "write_ms": 25.0, "slots": 2}  # about an 8B model on an M4 Pro
GOALS = {1: None, 2: 1.9, 3: 2.8}
WARM_S, WINDOW_S = 12.0, 30.0  # all ten begin at once: one node reads for ten seconds before the first answers
JOIN_LIMIT_S = 60.0
LOOK_EVERY_S = 0.1  # at a mesh that forms: `mesh status` is asked, nothing tells
AFTER_FAILURE_S = 0.1  # before an agent begins again: refusals cost nothing, and would come by the thousand
MODEL = "paced"


class Measured(Struct, frozen=True, kw_only=True):
    """`answers_per_s` by the tokens that came in a window of `seconds`; requests by node, and how many failed."""

    nodes: int
    seconds: float
    answers_per_s: float
    by_node: dict[str, int]
    failed: int


class Agents:
    """They loop until they are cancelled; what came is counted. With another `seed` they say what nobody has read."""

    def __init__(self, url: str, seed: int) -> None:
        self._url, self._seed = f"{url}/v1/chat/completions", seed
        self.tokens = self.failed = 0
        self.by_node: Counter[str] = Counter()

    async def run(self, count: int) -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session,
            asyncio.TaskGroup() as group,
        ):
            for number in range(count):
                group.create_task(self._loop(session, Random(self._seed * 1000 + number)))

    async def _loop(self, session: aiohttp.ClientSession, rng: Random) -> None:
        steps = rng.randrange(1, STEPS + 1)  # of the first, so that they do not go on in step
        while True:
            messages = [{"role": "system", "content": _text(rng, SYSTEM_TOKENS)}]
            for _ in range(steps):
                messages.append({"role": "user", "content": _text(rng, RESULT_TOKENS)})
                said = await self._ask(session, messages)
                if said is None:
                    self.failed += 1
                    await asyncio.sleep(AFTER_FAILURE_S)
                    break
                messages.append({"role": "assistant", "content": said})
            steps = STEPS

    async def _ask(self, session: aiohttp.ClientSession, messages: Sequence[dict[str, str]]) -> str | None:
        """The answer; None when there was none, or not to its end."""
        body = {"model": MODEL, "messages": messages, "max_tokens": ANSWER_TOKENS, "stream": True}
        said, whole = "", False
        try:
            async with session.post(self._url, json=body) as answer:
                if answer.status != 200:
                    return None
                async for line in answer.content:
                    whole = whole or line.startswith(b"data: [DONE]")
                    if (word := _word(line)) is not None:
                        said += word
                        self.tokens += bool(word)
                self.by_node[answer.headers.get("x-mesh-node", "unknown")] += 1  # the head may be before the decision
        except aiohttp.ClientError:
            return None
        return said if whole else None


class _Delta(Struct):
    content: str = ""


class _Choice(Struct):
    delta: _Delta


class _Chunk(Struct):
    choices: list[_Choice] = []


_chunk = msgspec.json.Decoder(_Chunk)


def _word(line: bytes) -> str | None:
    """What a line of the stream adds to the answer."""
    if not line.startswith(b"data: {"):
        return None
    choices = _chunk.decode(line[6:]).choices
    return choices[0].delta.content if choices else None


def _text(rng: Random, tokens: int) -> str:
    return "".join(f"{rng.randrange(1000):03} " for _ in range(tokens))


@contextmanager
def node(folder: Path, number: int, mesh: str) -> Iterator[Daemon]:
    """One that serves; the first coordinates."""
    tier: dict[str, Any] = {"name": MODEL, "model": MODEL, "engine": "command", "slots": int(ENGINE["slots"])}
    tier["command"] = paced.command(MODEL, **ENGINE)
    name = f"node-{number}"
    with running(
        folder / name, [tier], node_name=name, mesh_enabled=True, mesh_name=mesh, mesh_priority=100 - number
    ) as daemon:
        daemon.wait_ready()
        yield daemon


def wait_joined(first: Daemon, count: int) -> None:
    """Until the first one can place requests on so many. Raises RuntimeError when that takes too long."""
    end = time.monotonic() + JOIN_LIMIT_S
    while True:
        nodes = [n for n in first.client.mesh_status().nodes if n.state == "ok"]
        if sum(m.state in ("ready", "busy") for n in nodes for m in n.models) == count:
            return
        if time.monotonic() > end:
            raise RuntimeError(f"{count} nodes did not become one mesh: {[(n.name, n.state) for n in nodes]}")
        time.sleep(LOOK_EVERY_S)


async def measure(first: Daemon, nodes: int, agents: int, warm_s: float, window_s: float) -> Measured:
    """One window of the agents' work."""
    work, clock = Agents(first.url, nodes), asyncio.get_running_loop().time
    looping = asyncio.ensure_future(work.run(agents))
    try:
        await asyncio.wait({looping}, timeout=warm_s)
        began, tokens, by_node = clock(), work.tokens, work.by_node.copy()
        await asyncio.wait({looping}, timeout=window_s)
        seconds = clock() - began
        found = Measured(
            nodes=nodes,
            seconds=seconds,
            answers_per_s=(work.tokens - tokens) / ANSWER_TOKENS / seconds,
            by_node=dict(work.by_node - by_node),
            failed=work.failed,
        )
    finally:
        looping.cancel()
        await asyncio.wait({looping})
    if not looping.cancelled():
        looping.result()  # They never end by themselves: what went wrong.
    return found


def grow(folder: Path, counts: Sequence[int], agents: int, warm_s: float, window_s: float) -> list[Measured]:
    """A mesh that grows, measured at each of `counts` nodes."""
    mesh, found = f"scaling-{os.getpid()}", []
    with ExitStack() as stack:
        nodes: list[Daemon] = []
        for count in sorted(counts):
            while len(nodes) < count:
                nodes.append(stack.enter_context(node(folder, len(nodes) + 1, mesh)))
            wait_joined(nodes[0], count)
            found.append(asyncio.run(measure(nodes[0], count, agents, warm_s, window_s)))
    return found


def rows(found: Sequence[Measured]) -> list[Figure]:
    """Of the mesh that grew from one node."""
    one = found[0].answers_per_s
    figures = []
    for at in found:
        name = f"{at.nodes} node{'s' if at.nodes > 1 else ''}, looping agents"
        figures.append(within(f"{name}: answers", at.answers_per_s, "per s", None, None))
        if at.nodes > 1:
            ratio = at.answers_per_s / one if one else None
            figures.append(within(f"{name}: throughput / one node", ratio, "x", GOALS.get(at.nodes), None))
    figures.append(within("looping agents: requests failed", float(sum(at.failed for at in found)), "", None, 0))
    return figures


def figures(
    counts: Sequence[int] = (1, 2, 3), agents: int = AGENTS, warm_s: float = WARM_S, window_s: float = WINDOW_S
) -> list[Figure]:
    """About two and a half minutes."""
    with tempfile.TemporaryDirectory(prefix="mlx-s-") as folder:
        return rows(grow(Path(folder), counts, agents, warm_s, window_s))


def main() -> None:
    """A goal that is missed is reported, no failure."""
    parser = argparse.ArgumentParser(prog="bench.scaling", description=__doc__)
    parser.add_argument("--nodes", nargs="+", type=int, default=[1, 2, 3], help="beginning with 1")
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--seconds", type=float, default=WINDOW_S, help="of each window")
    parser.add_argument("--warm", type=float, default=WARM_S, help="seconds before each window")
    parser.add_argument("--dry", action="store_true", help="write no bench/out/scaling.json")
    options = parser.parse_args()
    found = figures(options.nodes, options.agents, options.warm, options.seconds)
    if options.dry:
        show("scaling", found)
    else:
        print(publish("scaling", found))


if __name__ == "__main__":
    main()
