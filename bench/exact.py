"""`make bench-exact`: streams of two nodes with real workers, each cut at a random point, and what their clients get.

First a small model in float32, one answer at a time, temperature 0: text, reason, usage, reasoning and tool calls have
to be those of the undisturbed answer. Then SmolLM2 in 4 bits with several answers at a time: at temperature 0 beside
the noise of two undisturbed runs, at 0.8 by its tokens. Everything drawn comes from `--seed`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bench import reciter
from bench.exact_count import Cut, Tally, against, batched_rows, certain_rows, drawn_rows, judged, seam, table
from bench.exact_mesh import AT_ITS_OWN, KINDS, MeshError, Pair, pair
from bench.exact_questions import Question, batched, certain, drawn
from bench.report import Figure, publish
from bench.talk import Answer, Open
from demo.model import build_chat, default_cache
from tests.lab.macs import Mac
from tests.lab.netlab import LabError, unavailable

LATE_MOST = 3  # cuts that came too late, for each that should hit; then no more are made
BATCH = 6  # answers at a time of the real model
SLOTS = 4
START_S = 60.0  # until a request that is not streamed has begun somewhere

Check = Callable[[Question, Answer], str]


class Bench:
    """One run: what was asked for, and what came of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._rng = random.Random(options.seed)
        self._began = time.monotonic()
        self._ends_at = self._began + 60 * options.minutes
        self.certain, self.batched, self.drawn = Tally(), Tally(), Tally()

    async def run(self) -> list[Figure]:
        """Everything; what breaks off leaves what it had."""
        options, cache = self._options, default_cache()
        self._references: asyncio.Future[dict[str, Answer]] = asyncio.get_running_loop().create_future()
        if options.streams:
            model = await asyncio.to_thread(reciter.build, cache)
            async with asyncio.TaskGroup() as group:
                for number in range(options.meshes):
                    group.create_task(self._kept(self.certain, self._certain(model, str(number), number == 0)))
            print(table(self.certain.cuts), flush=True)
        if options.batched:
            await self._kept(self.batched, self._real(await asyncio.to_thread(build_chat, cache)))
            for words, tally in (("temperature 0", self.batched), ("temperature 0.8", self.drawn)):
                print(f"SmolLM2, {words}\n{table(tally.cuts)}", flush=True)
        rows = certain_rows(self.certain, options.streams)
        return [*rows, *batched_rows(self.batched), *drawn_rows(self.drawn)]

    async def _kept(self, tally: Tally, part: Any) -> None:
        try:
            await part
        except (MeshError, LabError, AssertionError, TimeoutError) as error:
            traceback.print_exc()
            tally.broken.append(str(error))
            if tally is self.certain and not self._references.done():
                self._references.set_exception(MeshError("there is nothing to compare with"))

    # The small model

    async def _certain(self, model: Path, name: str, first: bool) -> None:
        wanted, tally = self._options.questions, self.certain
        questions = [one for one in certain(model.name) if not wanted or one.name in wanted]
        async with meshed(model, 1, name) as mesh:
            if first:
                self._references.set_result(await self._asked_twice(mesh, questions, tally, 1))
            references = await self._references

            def check(question: Question, answer: Answer) -> str:
                return against(answer, references[question.name])

            def goes_on() -> bool:
                streams = self._options.streams
                return len(tally.hit()) + self._going < streams and self._goes_on(tally, streams)

            while goes_on():
                self._going += 1
                try:
                    question = self._rng.choice(questions)
                    await self._cut(mesh, [question], references, [(tally, check)])
                finally:
                    self._going -= 1

    _going = 0  # cuts under way, on all meshes

    def _goes_on(self, tally: Tally, streams: int) -> bool:
        late = tally.count("late") > LATE_MOST * streams
        return time.monotonic() < self._ends_at and not late and not tally.broken

    async def _asked_twice(
        self, mesh: Pair, questions: Sequence[Question], tally: Tally, at_a_time: int
    ) -> dict[str, Answer]:
        """The undisturbed answers, by the question's name. Raises MeshError when one is an error."""
        rounds: list[dict[str, Answer]] = [{}, {}]
        for found in rounds:
            for start in range(0, len(questions), at_a_time):
                some = questions[start : start + at_a_time]
                opened = [self._open(mesh, mesh.edge, question, 0) for question in some]
                for question, one in zip(some, opened, strict=True):
                    found[question.name] = await one.answer
        tally.asked = len(questions)
        for question in questions:
            first, second = (found[question.name] for found in rounds)
            if first.error or second.error:
                raise MeshError(f"undisturbed, {question.name}: {first.error or second.error}")
            if against(first, second):
                tally.noisy.append(question.name)
            if not question.shows(first):
                tally.unshown.append(question.name)
                print(f"{question.name} does not show what it is for: {first.said}", flush=True)
        return rounds[0]

    # The real one

    async def _real(self, model: Path) -> None:
        tokens = self._options.tokens
        exact, free = batched(model.name, tokens), drawn(model.name, tokens)
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}

        def decode(tokens: Sequence[int]) -> str:
            text = str(tokenizer.decode(list(tokens), skip_special_tokens=False))
            return text.removesuffix(next((one for one in special if text.endswith(one)), ""))

        async with meshed(model, SLOTS, "r") as mesh:
            references = await self._asked_twice(mesh, exact, self.batched, BATCH)
            parts = [
                (self.batched, lambda question, answer: against(answer, references[question.name])),
                (self.drawn, lambda _, answer: seam(answer, decode)),
            ]
            while len(self.batched.hit()) + len(self.drawn.hit()) < self._options.batched:
                if not (
                    self._goes_on(self.batched, self._options.batched)
                    and self._goes_on(self.drawn, self._options.batched)
                ):
                    return
                half = BATCH // 2
                questions = [*self._rng.sample(exact, half), *self._rng.sample(free, half)]
                await self._cut(mesh, questions, references, [parts[n // half] for n in range(BATCH)])

    # One cut

    def _open(self, mesh: Pair, entry: Mac, question: Question, at: int) -> Open:
        talker = mesh.talkers[entry.name]
        return talker.ask("http://localhost:4000/v1", question.body, path=question.path, at=at,
                          limit_s=self._options.limit_s)  # fmt: skip

    async def _cut(
        self,
        mesh: Pair,
        questions: Sequence[Question],
        references: dict[str, Answer],
        judges: Sequence[tuple[Tally, Check]],
    ) -> None:
        """Asks all of them at once and cuts off the node that one of them runs on. Raises MeshError when the mesh does
        not become whole again afterwards."""
        chosen = self._rng.randrange(len(questions))
        question, kind = questions[chosen], self._rng.choice(self._options.kinds)
        entry = self._rng.choice(mesh.macs) if kind in AT_ITS_OWN else mesh.edge
        reference = references.get(question.name) or next(iter(references.values()))
        at = question.cut_at(reference.blocks, self._rng)
        wait_s = self._rng.uniform(0.05, 0.95) * (reference.end - reference.start)
        opened = [self._open(mesh, entry, one, at if n == chosen else 0) for n, one in enumerate(questions)]
        victim = await self._victim(mesh, opened[chosen], question, wait_s)
        if victim is not None:
            await asyncio.to_thread(KINDS[kind], mesh, victim)
        answers = [await one.answer for one in opened]
        routes = [await mesh.route(entry, answer.request) for answer in answers]
        for n, (one, answer, route, (tally, check)) in enumerate(zip(questions, answers, routes, judges, strict=True)):
            outcome, how, why = judged(answer, route, check(one, answer))
            if outcome == "late" and n != chosen:
                continue  # it ran beside the one that was to be cut, on another node
            node = victim.name if victim else ""
            cut = Cut(kind=kind, question=one.name, node=node, entry=entry.name, outcome=outcome, how=how, why=why,
                      gap_s=answer.gap_s)  # fmt: skip
            tally.cuts.append(cut)
            self._tell(tally, cut, at)
        await mesh.mended()

    async def _victim(self, mesh: Pair, opened: Open, question: Question, wait_s: float) -> Mac | None:
        """Whom to cut off, when the time for it has come; None when the answer was quicker."""
        if question.stream:
            name = await opened.reached
            return mesh.mac(name) if name else None
        found = await mesh.runs_on(START_S)
        await asyncio.wait([opened.answer], timeout=wait_s)
        return None if opened.answer.done() else found

    def _tell(self, tally: Tally, cut: Cut, at: int) -> None:
        words = f"{cut.outcome}{f' ({cut.how})' if cut.how else ''}{f': {cut.why}' if cut.why else ''}"
        where = f"{cut.kind} at {cut.node}, asked at {cut.entry}, after block {at}"
        minutes = (time.monotonic() - self._began) / 60
        counts = f"{len(tally.hit()):4} cut, {tally.count('exact')} exact"
        print(f"{minutes:5.1f} min {counts} | {cut.question}; {where}: {words}", flush=True)


@asynccontextmanager
async def meshed(model: Path, slots: int, name: str) -> AsyncIterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="lab", dir="/tmp", ignore_cleanup_errors=True) as folder:
        async with pair(Path(folder), model, slots=slots, name=name) as mesh:
            yield mesh


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.exact", description=__doc__)
    parser.add_argument("--streams", type=int, default=500, help="to cut, of the small model; 0: none")
    parser.add_argument("--batched", type=int, default=48, help="to cut, of SmolLM2; 0: none")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer of SmolLM2")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    names = [question.name for question in certain("")]
    parser.add_argument("--questions", nargs="+", choices=names, default=[], help="to the small model; all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--meshes", type=int, default=2, help="that are cut side by side")
    parser.add_argument("--minutes", type=float, default=180.0, help="no further cut after so long")
    parser.add_argument(
        "--limit-s", type=float, default=120.0, help="an answer without an end after so long has failed"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Runs everything; a figure that misses its goal is reported, no failure."""
    options = parsed()
    if why := unavailable():
        sys.exit(f"bench-exact: {why}")
    print(publish("exact", asyncio.run(Bench(options).run())))


if __name__ == "__main__":
    main()
