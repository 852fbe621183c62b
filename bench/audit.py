"""`make bench-audit`: five nodes, thirty clients that ask all the time, a random fault every ten seconds, nothing lost.

Real workers, a small model in float32 at temperature 0 (bench/reciter.py), so that each answer is compared with the
undisturbed one. The clients are the stock `openai` package, retries off, on two edges that get no fault. `--edges`: the
faults fall on all nodes, the clients go by the mesh's name with the SDK's two retries, and each failure has to be that
of a client of an edge that died.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from bench import reciter
from bench.audit_count import GOOD, Ended, Held, blamed, edge_rows, ended, held_rows, rows
from bench.audit_faults import Five, five
from bench.exact_count import against, went_on
from bench.exact_mesh import MeshError
from bench.exact_questions import Question, certain
from bench.report import OUT, Figure, publish, within
from bench.talk import Answer, Open, Talker
from demo.model import default_cache
from mesh.answers import Route
from mesh.client import MeshClientError
from tests.lab.macs import Mac
from tests.lab.netlab import LabError, unavailable

GRACE_S = 15.0  # beyond the mesh's own bound on a request: what a busy machine may add
SAY_S = 30.0
ROUTE_TRIES, ROUTE_S = 20, 0.1


class Audit:
    """One run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._rng = random.Random(options.seed)
        self._ended: list[Ended] = []
        self._references: dict[str, Answer] = {}
        self._questions: list[Question] = []
        self._held: tuple[list[Held], list[Held]] = ([], [])

    @property
    def _bound_s(self) -> float:
        return float(self._options.timeout_s + GRACE_S)

    async def run(self) -> list[Figure]:
        """Everything; what breaks off leaves what it had."""
        options, broken, noisy = self._options, [], []
        name = "audit, faults on edges too" if options.edges else "audit"
        model = await asyncio.to_thread(reciter.build, default_cache())
        self._questions = _both(certain(model.name))
        faults, skipped, stalls, began = [], 0, [], time.monotonic()
        with tempfile.TemporaryDirectory(prefix="lab", dir="/tmp", ignore_cleanup_errors=True) as folder:
            try:
                async with five(Path(folder), model, edges=options.edges, timeout_s=options.timeout_s) as mesh:
                    faults = mesh.faults
                    noisy = await self._undisturbed(mesh)
                    await self._storm(mesh)
                    skipped, stalls = mesh.skipped, mesh.stalls(began)
            except (MeshError, LabError, AssertionError, TimeoutError, ExceptionGroup) as error:
                traceback.print_exc()
                broken.append(str(error))
            if broken or any(one.kind not in GOOD for one in self._ended):
                _keep_logs(Path(folder))
        for one in self._ended:
            if one.kind not in GOOD:
                fault = blamed(one, faults)
                print(f"{one.kind} at {one.answer.edge}, {one.answer.request}: {one.why[:300]}; "
                      f"{f'{fault.node}, {fault.kind}' if fault else 'NO EDGE DIED'}")  # fmt: skip
        make = edge_rows if options.edges else rows
        return [
            within(f"{name}: minutes", options.minutes, "min", None, None),
            within(f"{name}: questions whose undisturbed answers differ", len(noisy), "questions", None, 0),
            *make(name, self._ended, faults, skipped, self._bound_s),
            *([] if options.edges else held_rows(name, *self._held)),
            within(f"{name}: times that a daemon did not run, and nobody had frozen it", len(stalls), "", None, None),
            within(f"{name}: parts that broke off", len(broken), "", None, 0),
        ]

    async def _undisturbed(self, mesh: Five) -> list[str]:
        """Asks everything as often as there are clients' turns for it; the names of questions with two answers."""
        noisy = set()
        for _ in range(2):
            opened = [(q, self._open(mesh.talkers[n % len(mesh.talkers)], q, n)) for n, q in enumerate(self._questions)]
            for question, one in opened:
                answer = await one.answer
                if answer.error:
                    raise MeshError(f"undisturbed, {question.name}: {answer.error}")
                if against(answer, self._references.setdefault(question.name, answer)):
                    noisy.add(question.name)
        return sorted(noisy)

    async def _storm(self, mesh: Five) -> None:
        spared, ends_at = mesh.spared, time.monotonic() + 60 * self._options.minutes
        run_in = time.monotonic() + self._options.run_in_s
        await self._clients(mesh, run_in, [])
        before = await mesh.quiet(spared)
        began = time.monotonic()
        ends_at += began - run_in + self._options.run_in_s
        async with asyncio.TaskGroup() as group:
            clients = group.create_task(self._clients(mesh, ends_at, self._ended))
            group.create_task(self._faults(mesh, ends_at, began))
            await clients
        await mesh.mended()
        self._held = (before, await mesh.quiet(spared))

    async def _faults(self, mesh: Five, ends_at: float, began: float) -> None:
        turn = began
        while (turn := turn + self._options.every_s) < ends_at - self._options.every_s:
            await asyncio.sleep(max(0.0, turn - time.monotonic()))
            await mesh.hit(self._rng)
            said = Counter(one.kind for one in self._ended)
            last = mesh.faults[-1] if mesh.faults else None
            print(f"{(time.monotonic() - began) / 60:5.1f} min; {dict(said)}; last fault: "
                  f"{f'{last.kind} at {last.node}' if last else '-'}, {mesh.skipped} skipped", flush=True)  # fmt: skip

    # The clients

    async def _clients(self, mesh: Five, ends_at: float, into: list[Ended]) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._options.clients):
                group.create_task(self._client(mesh, number, ends_at, into))

    async def _client(self, mesh: Five, number: int, ends_at: float, into: list[Ended]) -> None:
        rng = random.Random(f"{self._options.seed} {number}")
        place = mesh.talkers[number % len(mesh.talkers)]
        entry = None if mesh.edges else mesh.macs[3:][number % len(mesh.talkers)]
        while time.monotonic() < ends_at:
            question = rng.choice(self._questions)
            answer = await self._open(place, question, number).answer
            edge = entry or next((mac for mac in mesh.macs if mac.ip == answer.edge), None)
            route = await _route(edge, answer.request) if edge else None
            wrong = against(answer, self._references[question.name])
            into.append(ended(answer, route, went_on(route), wrong))
            await asyncio.sleep(self._options.pause_s)

    def _open(self, place: tuple[Talker, str], question: Question, client: int) -> Open:
        talker, url = place
        # A node that was cut off answers no connect: who waits for it as long as for an answer tries no other.
        connect_s = 2.0 if self._options.edges else 30.0
        return talker.ask(
            url,
            question.body,
            path=question.path,
            client=client,
            limit_s=self._bound_s,
            connect_s=connect_s,
            retries=2 if self._options.edges else 0,
        )


def _keep_logs(folder: Path) -> None:
    """What the daemons said, for whoever looks into it."""
    kept = OUT / "audit-logs"
    shutil.rmtree(kept, ignore_errors=True)
    for file in folder.glob("mac*/output.log"):
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, kept / f"{file.parent.name}.log")
    print(f"the daemons' logs are in {kept}", flush=True)


def _both(questions: Sequence[Question]) -> list[Question]:
    """Each of them streamed and in one piece."""
    streamed = [question for question in questions if question.stream]
    bodies = [{k: v for k, v in q.body.items() if k != "stream_options"} | {"stream": False} for q in streamed]
    return [*streamed, *(replace(q, name=f"{q.name}, whole", body=b) for q, b in zip(streamed, bodies, strict=True))]


async def _route(edge: Mac, request: str) -> Route | None:
    """What the edge wrote down of it; None when it does not say."""
    for _ in range(ROUTE_TRIES if request else 0):
        try:
            return await asyncio.to_thread(edge.client.route, request)
        except MeshClientError:
            await asyncio.sleep(ROUTE_S)
    return None


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.audit", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--edges", action="store_true", help="faults on edges too, clients by the mesh's name")
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--every-s", type=float, default=10.0, help="between two faults")
    parser.add_argument("--pause-s", type=float, default=1.0, help="between an answer and its client's next question")
    parser.add_argument(
        "--run-in-s", type=float, default=60.0, help="without faults, before what daemons hold is noted"
    )
    parser.add_argument("--timeout-s", type=int, default=120, help="the mesh's own bound on a request")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main() -> None:
    """Runs everything; a figure that misses its goal is reported, no failure."""
    options = parsed()
    if why := unavailable():
        sys.exit(f"bench-audit: {why}")
    print(publish("audit-edges" if options.edges else "audit", asyncio.run(Audit(options).run())))


if __name__ == "__main__":
    main()
