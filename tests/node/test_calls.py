"""A call whose worker pushes: bounds, patience and endings, with a worker that does as the test says."""

from __future__ import annotations

import asyncio

import pytest

from node.errors import NodeError, NodeErrorCode
from node.io.calls import ALIVE, AdmittedCall, Call
from node.io.engine import ModelSpec
from node.io.flow import Flow, Meter, Metered, Sink, gathered
from node.openai import DONE
from node.settings import NodeSettings
from node.types import NodeId, RequestId
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


def admitted(
    worker: Pourer, *, wants_usage: bool = False, deadline_s: float = 60.0, alive_s: float = 30.0
) -> AdmittedCall:
    call = Call(
        id=RequestId("r"), attempt=1, edge=NodeId("e"), model="m", path="chat/completions", body=b"{}",
        deadline_s=deadline_s, wants_usage=wants_usage,
    )  # fmt: skip
    settings = NodeSettings(stream_blocks=4, alive_every_s=alive_s)
    made = AdmittedCall(call, "m", settings, lambda _: NodeError(NodeErrorCode.NODE_BUSY, "too late"))
    made.start(worker, asyncio.TaskGroup())  # a worker that pushes needs no task
    return made


async def test_blocks_go_through_in_their_order_and_the_usage_is_told_at_the_end() -> None:
    worker = Pourer()
    call = admitted(worker)
    worker.say(b": keepalive\n\n", data("a"), data("b"), usage(5, 2, 2))
    worker.end()
    found = [await call.next_block() for _ in range(4)]
    assert found == [data("a"), data("b"), b': usage {"prompt":5,"cached":2,"completion":2}\n\n', DONE]
    assert call.first_at is not None
    assert worker.asked == []


async def test_whoever_wants_the_usage_chunk_gets_it() -> None:
    worker = Pourer()
    call = admitted(worker, wants_usage=True)
    worker.say(usage(5, 2, 2))
    assert await call.next_block() == usage(5, 2, 2)


async def test_a_slow_reader_holds_the_flow_back_until_half_is_read() -> None:
    worker = Pourer()
    call = admitted(worker)
    worker.say(*(data(str(n)) for n in range(6)))
    assert worker.asked == ["pause"]
    for left in (5, 4, 3, 2):
        assert worker.asked == ["pause"], left
        await call.next_block()
    assert worker.asked == ["pause", "resume"]


async def test_few_large_blocks_hold_the_flow_back_as_well() -> None:
    """Else sixty-four of them, of each answer that a client does not read, would be here."""
    worker = Pourer()
    call = admitted(worker)
    large = data("x" * 40_000)
    worker.say(large)
    assert worker.asked == [], "one may be of any size"
    worker.say(large)
    assert worker.asked == ["pause"]
    await call.next_block()
    assert worker.asked == ["pause", "resume"]
    worker.say(data("a"), large)
    assert worker.asked == ["pause", "resume", "pause"]


async def test_a_reader_that_waits_hears_that_it_is_alive_and_then_the_block() -> None:
    worker = Pourer()
    call = admitted(worker, alive_s=0.02)
    assert [await call.next_block() for _ in range(2)] == [ALIVE, ALIVE]
    waiting = asyncio.ensure_future(call.next_block())
    await asyncio.sleep(0)  # one turn of the loop: it waits
    worker.say(data("a"))
    assert await waiting in (ALIVE, data("a"))


async def test_the_deadline_counts_while_it_runs() -> None:
    with pytest.raises(NodeError, match="while it was running"):
        await admitted(Pourer(), deadline_s=0.05).next_block()


async def test_what_came_before_a_failure_still_goes_out() -> None:
    worker = Pourer()
    call = admitted(worker)
    worker.say(data("a"))
    worker.end(FAILED)
    assert await call.next_block() == data("a")
    with pytest.raises(NodeError, match="crashed"):
        await call.next_block()


@pytest.mark.parametrize("error", [FAILED, KeyError("x")])
async def test_a_worker_that_cannot_even_begin(error: Exception) -> None:
    worker = Pourer()
    worker.refuses = error
    call = admitted(worker)
    with pytest.raises(NodeError) as caught:
        await call.next_block()
    assert caught.value.code is (NodeErrorCode.MODEL_FAILED if error is FAILED else NodeErrorCode.INTERNAL)


async def test_leaving_closes_the_flow() -> None:
    worker = Pourer()
    call = admitted(worker)
    await call.close()
    assert worker.asked == ["close"]
    worker, gone = Pourer(), NodeError(NodeErrorCode.DRAINING, "stopped")
    call = admitted(worker)
    call.fail(gone)
    assert worker.asked == ["close"]
    worker.end()
    with pytest.raises(NodeError, match="stopped"):
        await call.next_block()


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


class Heard:
    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.ends: list[NodeError | None] = []

    def block(self, block: bytes) -> None:
        self.blocks.append(block)

    def done(self, error: NodeError | None) -> None:
        self.ends.append(error)


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
    assert (len(heard.blocks), heard.ends, worker.asked) == (3, [None], ["pause", "resume", "close"])
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
