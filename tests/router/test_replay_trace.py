"""Traces: read, cut, copied, and given their times."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from router.replay.trace import OUTPUT_LIMIT, Row, Trace, arrive, jobs_of, parse

TEXT = """{"meta": {"block": 64, "source": "somewhere"}}
{"t": 0.0, "i": 100, "o": 5, "h": [1, 2], "s": -1, "g": 0}
{"t": 2.5, "i": 90, "o": 5000, "h": [1, 3], "s": -1, "g": 0, "m": "qwen"}

"""


def test_a_trace_is_read_with_or_without_its_head() -> None:
    trace = parse("some", TEXT)
    assert trace.block == 64
    assert trace.rows[1] == Row(2.5, 90, 5000, (1, 3), -1, 0.0, "qwen")
    bare = parse("bare", '{"t": 1, "i": 2, "o": 3}\n')
    assert (bare.block, bare.rows) == (0, (Row(1.0, 2, 3),))


@pytest.mark.parametrize("text", ["", "\n", '{"meta": {}}\n'])
def test_without_calls_it_is_no_trace(text: str) -> None:
    with pytest.raises(ValueError, match="no"):
        parse("empty", text)


def test_what_is_no_json_is_said() -> None:
    with pytest.raises(msgspec.MsgspecError):
        parse("csv", "TIMESTAMP,ContextTokens\n1,2\n")


def test_jobs_take_the_model_they_name_and_others_are_drawn() -> None:
    jobs = jobs_of(parse("some", TEXT), {"a": 1.0}, 10, Random(1))
    assert [job.model for job in jobs] == ["a", "qwen"]
    assert [job.output for job in jobs] == [5, OUTPUT_LIMIT]
    assert jobs[0].block_tokens == 64


def test_independent_calls_keep_their_pattern_at_any_rate() -> None:
    trace = Trace("steps", tuple(Row(float(t), 10, 10) for t in (0, 1, 2, 10)))
    jobs = jobs_of(trace, {"a": 1.0}, 10, Random(1))
    arrive(trace, jobs, 0.1, Random(1), Random(1))
    times = [job.arrived or 0.0 for job in jobs]
    assert times == sorted(times)
    assert times[3] - times[2] > 3 * (times[1] - times[0])
    assert times[-1] == pytest.approx(40, rel=0.1), "four calls at 0.1 a second"
    arrive(trace, jobs, float("inf"), Random(1), Random(1))
    assert {job.arrived for job in jobs} == {0.0}


def test_sessions_are_copied_until_there_are_enough_and_share_only_their_first_block() -> None:
    rows = tuple(Row(0.0, 100, 10, (0, 10 * s + turn), s, 1.5) for s in (1, 2) for turn in range(3))
    trace = Trace("talks", rows, 64)
    jobs = jobs_of(trace, {"a": 1.0}, 12, Random(1))
    assert len(jobs) == 12
    arrive(trace, jobs, 1.0, Random(1), Random(1))
    heads = [job for job in jobs if job.arrived is not None]
    assert len(heads) == 4
    for head in heads:
        assert head.then is not None
        assert head.then.session == head.session
        assert head.then.think_s == 1.5
    assert jobs[0].blocks[0] == jobs[6].blocks[0]
    assert not set(jobs[0].blocks[1:]) & set(jobs[6].blocks[1:])
