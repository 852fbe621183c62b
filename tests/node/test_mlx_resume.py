"""How an answer goes on where another worker was cut, part by part. All of it against the real server:
tests/server/test_resume_worker.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import server
from mlx_lm.sample_utils import make_sampler

from node.continuation import RESUME_FIELD, Continuation
from node.io.mlx_resume import (
    FinishedError,
    Held,
    NonsenseError,
    Seam,
    Stops,
    StopWords,
    continuation_of,
    end_of,
    fits,
    primed,
    reseed,
)

GOOD = {"id": "c", "created": 1, "tokens": [1, 2], "blocks": 2}


class Matcher:
    """Stops at the sequence 8, 9."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def advance(self, token: int) -> bool:
        self.seen.append(token)
        return self.seen[-2:] == [8, 9]


class Letters:
    """A detokenizer whose tokens are letters, each certain once the next has come."""

    def __init__(self) -> None:
        self._certain, self._pending = "", ""

    def add_token(self, token: int) -> None:
        self._certain, self._pending = self._certain + self._pending, "abcdefghij"[token]

    def finalize(self) -> None:
        self._certain, self._pending = self._certain + self._pending, ""

    @property
    def last_segment(self) -> str:
        said, self._certain = self._certain, ""
        return said


class Wire:
    def __init__(self) -> None:
        self.written = b""
        self.flushes = 0

    def write(self, data: bytes) -> int:
        self.written += data
        return len(data)

    def flush(self) -> None:
        self.flushes += 1


def made(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


def response(token: int, reason: str | None = None) -> SimpleNamespace:
    return made(text="?", token=token, finish_reason=reason)


def args(max_tokens: int = 10) -> SimpleNamespace:
    return SimpleNamespace(max_tokens=max_tokens, stop_words=["x"])


def test_a_request_without_it_begins_its_answer() -> None:
    assert continuation_of({"model": "m"}, streamed=True) is None


def test_what_was_sent_of_an_answer_is_read() -> None:
    found = continuation_of({RESUME_FIELD: GOOD}, streamed=True)
    assert found == Continuation(id="c", created=1, tokens=(1, 2), blocks=2)


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        "x",
        {},
        {**GOOD, "tokens": "12"},
        {**GOOD, "tokens": [1, None]},
        {**GOOD, "tokens": [1.5]},
        {**GOOD, "tokens": [True]},
        {**GOOD, "blocks": -1},
        {**GOOD, "blocks": "2"},
        {**GOOD, "id": 5},
        {**GOOD, "created": "now"},
    ],
)
def test_nonsense_is_named(said: object) -> None:
    with pytest.raises(NonsenseError, match=RESUME_FIELD):
        continuation_of({RESUME_FIELD: said}, streamed=True)


def test_an_answer_in_one_piece_cannot_go_on() -> None:
    with pytest.raises(NonsenseError, match="stream"):
        continuation_of({RESUME_FIELD: GOOD}, streamed=False)


@pytest.mark.parametrize(
    ("tokens", "most", "reason"),
    [
        ([], 3, None),
        ([1, 2], 3, None),
        ([1, 2, 3], 3, "length"),
        ([1, 8, 9], 5, "stop"),
        ([1, 8, 9], 3, "stop"),  # both: mlx_lm says stop
        ([1, 8], 3, None),
    ],
)
def test_an_answer_is_over_where_mlx_lm_would_have_ended_it(tokens: list[int], most: int, reason: str | None) -> None:
    assert end_of(tokens, Matcher(), most) == reason


@pytest.mark.parametrize(("tokens", "most"), [([1, 2, 3, 4], 3), ([8, 9, 1], 5)])
def test_tokens_after_the_end_are_nonsense(tokens: list[int], most: int) -> None:
    with pytest.raises(NonsenseError, match="over after"):
        end_of(tokens, Matcher(), most)


def test_a_stop_sequence_may_begin_before_the_cut_and_end_after_it() -> None:
    matcher = Stops(SimpleNamespace(matcher=Matcher), [1, 8]).matcher()
    assert matcher.advance(9)


def test_tokens_end_the_prompt_and_count_as_generated() -> None:
    seam, wanted = Seam((5, 6), lambda: None), args()
    vision = SimpleNamespace(cache_key=[1, -2, 3])
    prompt, segments, kinds, state, seen = seam.joined(
        ([1, 2, 3], [[1], [2, 3]], ["system", "user"], "normal", vision), wanted, Matcher(), made
    )
    assert (prompt, segments) == ([1, 2, 3, 5, 6], [[1], [2, 3, 5, 6]])
    assert (kinds, state, seen.cache_key) == (["system", "user"], "normal", [1, -2, 3, 5, 6])
    assert wanted.max_tokens == 8
    assert isinstance(wanted.stop_words, StopWords)
    assert (wanted.stop_words, wanted.stop_words.said) == (["x"], [5, 6])
    assert seam.usage(5, 7, 4) == (3, 7, 3)
    assert seam.usage(5, 7, 1) == (3, 7, 1)


def test_what_is_over_is_not_generated() -> None:
    with pytest.raises(FinishedError) as finished:
        Seam((8, 9), lambda: None).joined(([1], [[1]], ["user"], "reasoning", None), args(), Matcher(), made)
    assert finished.value.context == made(initial_state="reasoning", prompt=[1], prompt_cache_count=0)


def test_an_answer_that_begins_here_only_has_its_tokens_noted() -> None:
    seam = Seam()
    passed = seam.responses(iter([response(1), response(2), response(3)]), Letters, made)
    assert [next(passed).text, next(passed).text] == ["?", "?"]
    assert seam.taken() == [1, 2]
    next(passed)
    assert (seam.taken(), seam.taken()) == ([3], [])


def test_old_and_new_tokens_are_one_text() -> None:
    released: list[int] = []
    seam = Seam((0, 1), lambda: released.append(len(said)))
    said: list[str] = []
    for one in seam.responses(iter([response(2), response(3, "length")]), Letters, made):
        said.append(one.text)
        seam.taken()
    assert said == ["", "a", "b", "cd"]
    assert released == [2]


def test_the_token_that_stops_an_answer_is_not_said() -> None:
    seam = Seam((0,), lambda: None)
    assert [r.text for r in seam.responses(iter([response(9, "stop")]), Letters, made)] == ["", "a"]


def test_a_token_that_is_no_text_is_nonsense() -> None:
    with pytest.raises(NonsenseError, match="token 99 is no text"):
        list(Seam((0, 99), lambda: None).responses(iter(()), Letters, made))


def test_chunks_that_the_client_has_are_left_out() -> None:
    wire = Wire()
    held = Held(wire, 2)
    for data in (b"HTTP/1.0 200 OK\r\n", b"data: 1\n\n", b": keepalive\n\n", b"data: 2\n\n"):
        held.write(data)
        held.flush()
    assert (wire.written, wire.flushes) == (b"", 0)  # nobody knows yet whether the tokens make two chunks
    held.release()
    assert wire.written == b"HTTP/1.0 200 OK\r\n: keepalive\n\n"
    held.write(b"data: 3\n\n")
    held.write(b"data: [DONE]\n\n")
    assert wire.written.endswith(b": keepalive\n\ndata: 3\n\ndata: [DONE]\n\n")


def test_a_client_cannot_have_more_chunks_than_the_tokens_make() -> None:
    held = Held(Wire(), 2)
    held.write(b"data: 1\n\n")
    with pytest.raises(NonsenseError, match="1 `blocks` less"):
        held.release()
    with pytest.raises(NonsenseError, match="1 `blocks` less"):
        held.write(b"data: [DONE]\n\n")  # never left out: who has it has all


def test_a_client_cannot_have_fewer_chunks_than_the_tokens_make() -> None:
    wire = Wire()
    held = Held(wire, 1)
    for data in (b"HTTP/1.0 200 OK\r\n", b"data: 1\n\n", b"data: 2\n\n"):
        held.write(data)
    with pytest.raises(NonsenseError, match="1 `blocks` more"):
        held.release()
    assert wire.written == b""


def test_what_ends_an_answer_that_is_over_is_all_written() -> None:
    """The tokens so far are all of it: what the client lacks of its chunks comes now."""
    wire = Wire()
    held = Held(wire, 1)
    for data in (b"HTTP/1.0 200 OK\r\n", b"data: 1\n\n", b"data: 2\n\n", b"data: [DONE]\n\n"):
        held.write(data)
    assert wire.written == b"HTTP/1.0 200 OK\r\ndata: 2\n\ndata: [DONE]\n\n"


def test_a_refusal_is_not_held_back() -> None:
    wire = Wire()
    held = Held(wire, 2)
    held.write(b"HTTP/1.0 400\r\n")
    held.open()
    assert wire.written == b"HTTP/1.0 400\r\n"


def test_the_mlx_lm_that_is_installed_fits_and_one_with_other_fields_does_not() -> None:
    assert fits(server)
    assert not fits(SimpleNamespace())
    assert not fits(SimpleNamespace(GenerationContext=server.Response, Response=server.Response))
    assert not fits(SimpleNamespace(GenerationContext=server.GenerationContext))


@pytest.mark.parametrize("times", [7, 100])
@pytest.mark.parametrize("more", [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"xtc_probability": 0.5}])
def test_random_numbers_go_on_where_they_were(more: dict[str, float], times: int) -> None:
    shares = mx.log(mx.softmax(mx.arange(50.0)[None] / 10))
    sampling = {"temperature": 0.9, "xtc_probability": 0.0, "top_k": 0, **more}
    xtc = {"xtc_threshold": 0.01, "xtc_special_tokens": [49]} if "xtc_probability" in more else {}
    sampler = make_sampler(0.9, **more, **xtc)
    mx.random.seed(2**63 + 5)
    whole = [sampler(shares).item() for _ in range(times + 5)]
    asked = SimpleNamespace(seed=2**63 + 5, sampling=SimpleNamespace(**sampling))
    reseed(asked, sampler, times, 50)
    mx.random.seed(asked.seed)
    assert [sampler(shares).item() for _ in range(5)] == whole[times:]


@pytest.mark.parametrize(("seed", "temperature"), [(None, 0.9), (5, 0.0), (5, 0)])
def test_what_draws_no_random_numbers_keeps_its_seed(seed: int | None, temperature: float) -> None:
    asked = SimpleNamespace(seed=seed, sampling=SimpleNamespace(temperature=temperature))
    reseed(asked, None, 7, 50)
    assert asked.seed == seed


def test_stop_sequences_of_an_answer_that_begins_are_mlx_lms_own() -> None:
    stops = SimpleNamespace(matcher=Matcher)
    assert primed(stops, ["x"]) is stops
    assert primed(stops, StopWords(["x"], [8])).matcher().advance(9)
