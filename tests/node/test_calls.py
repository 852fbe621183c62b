"""A call whose worker pushes: bounds, patience and endings, with a worker that does as the test says."""

from __future__ import annotations

import asyncio

import pytest

from node.errors import NodeError, NodeErrorCode
from node.io.calls import ALIVE, AdmittedCall, Call, Outcome
from node.io.engine import ModelSpec
from node.io.flow import Flow, Meter, Metered, Sink, gathered
from node.openai import DONE
from node.settings import NodeSettings
from node.types import NodeId, RequestId
from tests.mesh.waiting import until
from tests.node.fakes import FakeEngine, FakeWorker, data, usage

FAILED = NodeError(NodeErrorCode.MODEL_FAILED, "crashed")


class Pourer(FakeWorker):
    """Notes what is asked of its flow."""

    def __init__(self) -> None:
        super().__init__(ModelSpec(name="m"), FakeEngine())
        self.sink: Sink | None = None
        self.refuses: Exception | None = None
        self.asked: list[str] = []

    def pour(self, path: str, body: bytes, *, model_name: str, sink: Sink) -> Flow:
        if self.refuses is not None:
            raise self.refuses
        self.sink = sink
        return self

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")

    def close(self) -> None:
        self.asked.append("close")

    def say(self, *blocks: bytes) -> None:
        assert self.sink is not None
        for block in blocks:
            self.sink.block(block)

    def end(self, error: NodeError | None = None) -> None:
        assert self.sink is not None
        self.sink.done(error)


class Heard:
    """A sink that keeps what it gets, and how often a call was left."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.ends: list[NodeError | None] = []
        self.left: list[str] = []

    def block(self, block: bytes) -> None:
        self.blocks.append(block)

    def done(self, error: NodeError | None) -> None:
        self.ends.append(error)

    def gone(self, _: AdmittedCall, outcome: Outcome, error: NodeError | None) -> None:
        assert (error is None) == (outcome in ("ok", "cancelled"))
        self.left.append(outcome)


def admitted(
    worker: Pourer, *, wants_usage: bool = False, deadline_s: float = 60.0, alive_s: float = 30.0
) -> tuple[AdmittedCall, Heard]:
    call = Call(
        id=RequestId("r"), attempt=1, edge=NodeId("e"), model="m", path="chat/completions", body=b"{}",
        deadline_s=deadline_s, wants_usage=wants_usage,
    )  # fmt: skip
    settings, heard = NodeSettings(alive_every_s=alive_s), Heard()
    late = NodeError(NodeErrorCode.NODE_BUSY, "too late")
    made = AdmittedCall(call, "m", settings, sink=heard, too_late=lambda _: late, left=heard.gone)
    made.start(worker, asyncio.TaskGroup())  # a completion needs no task
    made.watch()
    return made, heard


async def test_blocks_go_through_at_once_and_the_usage_is_told_at_the_end() -> None:
    worker = Pourer()
    call, heard = admitted(worker)
    worker.say(b": keepalive\n\n", data("a"), data("b"), usage(5, 2, 2))
    assert heard.blocks == [data("a"), data("b")]
    worker.end()
    assert heard.blocks[2:] == [b': usage {"prompt":5,"cached":2,"completion":2}\n\n']
    assert (heard.ends, heard.left) == ([None], ["ok"])
    assert call.first_at is not None
    call.close()
    assert (heard.ends, heard.left, worker.asked) == ([None], ["ok"], ["close"])


async def test_whoever_wants_the_usage_chunk_gets_it() -> None:
    worker = Pourer()
    _, heard = admitted(worker, wants_usage=True)
    worker.say(usage(5, 2, 2))
    assert heard.blocks == [usage(5, 2, 2)]


async def test_a_slow_reader_holds_the_flow_back_also_before_it_begins() -> None:
    worker = Pourer()
    call, _ = admitted(worker)
    call.pause()
    call.resume()
    assert worker.asked == ["pause", "resume"]
    call.pause()
    late = Pourer()
    call.start(late, asyncio.TaskGroup())
    assert late.asked == ["pause"]


async def test_a_reader_that_waits_hears_that_it_is_alive_and_then_the_block() -> None:
    worker = Pourer()
    call, heard = admitted(worker, alive_s=0.02)
    await until(lambda: heard.blocks == [ALIVE, ALIVE])
    worker.say(data("a"))
    assert heard.blocks[-1] == data("a")
    call.pause()
    said = len(heard.blocks)
    await asyncio.sleep(0.1)  # five signs of life long
    assert len(heard.blocks) == said, "it does not read"
    call.resume()
    await until(lambda: heard.blocks[-1] == ALIVE)
    call.close()


async def test_the_deadline_counts_while_it_runs() -> None:
    worker = Pourer()
    _, heard = admitted(worker, deadline_s=0.05)
    await until(lambda: bool(heard.ends))
    (error,) = heard.ends
    assert error is not None
    assert "while it was running" in error.message
    assert (heard.left, worker.asked) == (["busy"], ["close"])


async def test_a_failure_is_said_a_turn_later_and_once() -> None:
    worker = Pourer()
    call, heard = admitted(worker)
    worker.say(data("a"))
    worker.end(FAILED)
    call.fail(NodeError(NodeErrorCode.DRAINING, "stopped"))
    assert (heard.blocks, heard.ends, worker.asked) == ([data("a")], [], ["close"])
    await until(lambda: bool(heard.ends))
    assert (heard.ends, heard.left) == ([FAILED], ["failed"])


@pytest.mark.parametrize("error", [FAILED, KeyError("x")])
async def test_a_worker_that_cannot_even_begin(error: Exception) -> None:
    worker = Pourer()
    worker.refuses = error
    _, heard = admitted(worker)
    await until(lambda: bool(heard.ends))
    (end,) = heard.ends
    assert end is not None
    assert end.code is (NodeErrorCode.MODEL_FAILED if error is FAILED else NodeErrorCode.INTERNAL)


async def test_leaving_closes_the_flow_and_nothing_more_is_said() -> None:
    worker = Pourer()
    call, heard = admitted(worker)
    call.close()
    call.close()
    assert (worker.asked, heard.left) == (["close"], ["cancelled"])
    worker = Pourer()
    call, heard = admitted(worker)
    call.fail(NodeError(NodeErrorCode.DRAINING, "stopped"))
    worker.end()
    call.close()
    await asyncio.sleep(0)  # one turn of the loop: when the failure would be said
    assert (worker.asked, heard.ends, heard.left) == (["close"], [], ["cancelled"])


# Flows


async def test_a_flow_can_be_iterated_over() -> None:
    worker = Pourer()
    blocks = gathered(lambda sink: worker.pour("", b"", model_name="", sink=sink))
    waiting = asyncio.ensure_future(anext(blocks))
    await asyncio.sleep(0)  # one turn of the loop: it waits
    worker.say(data("a"), *(data(str(n)) for n in range(70)))
    assert await waiting == data("a")
    assert worker.asked == ["resume", "pause"], "nobody iterates"
    worker.end()
    rest = [block async for block in blocks]
    assert (len(rest), rest[-1], worker.asked[-1]) == (71, DONE, "close")


async def test_a_flow_that_breaks_off_raises_where_it_is_iterated_over() -> None:
    worker = Pourer()
    blocks = gathered(lambda sink: worker.pour("", b"", model_name="", sink=sink))
    waiting = asyncio.ensure_future(anext(blocks))
    await asyncio.sleep(0)  # one turn of the loop: it waits
    worker.end(FAILED)
    with pytest.raises(NodeError, match="crashed"):
        await waiting
    assert worker.asked[-1] == "close"


async def test_a_metered_flow_counts_what_passes() -> None:
    worker, heard, meter = Pourer(), Heard(), Meter()
    flow = Metered(meter, heard).through(lambda sink: worker.pour("", b"", model_name="", sink=sink))
    assert meter.active == 1
    worker.say(b": keepalive\n\n", data("a"), usage(5, 0, 1))
    flow.pause()
    flow.resume()
    worker.end()
    flow.close()
    assert (meter.active, meter.generated, meter.prompt, meter.signs) == (0, 1, 5, 1)
    assert (len(heard.blocks), heard.ends, worker.asked) == (3, [None], ["pause", "resume"])
    worker.refuses = FAILED
    with pytest.raises(NodeError):
        Metered(meter, heard).through(lambda sink: worker.pour("", b"", model_name="", sink=sink))
    assert meter.active == 0


async def test_a_server_that_broke_off_is_explained_unless_nobody_waits() -> None:
    known, knows = asyncio.Event(), NodeError(NodeErrorCode.MODEL_FAILED, "killed by signal 9")

    async def explain(_: NodeError) -> NodeError:
        await known.wait()
        return knows

    busy = NodeError(NodeErrorCode.NODE_BUSY, "full")
    worker, heard = Pourer(), [Heard() for _ in range(3)]
    flows = []
    for one, error in zip(heard, (FAILED, FAILED, busy), strict=True):
        flows.append(Metered(Meter(), one, explain).through(lambda s: worker.pour("", b"", model_name="", sink=s)))
        worker.end(error)
    assert [one.ends for one in heard] == [[], [], [busy]]
    flows[0].close()
    known.set()
    await asyncio.gather(*(t for t in asyncio.all_tasks() if t is not asyncio.current_task()), return_exceptions=True)
    assert [one.ends for one in heard] == [[], [knows], [busy]]
