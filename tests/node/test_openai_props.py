import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from node.openai import FORCED, STRIPPED, Renamer, SseSplitter, clean_request

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
bodies = st.dictionaries(
    st.text().filter(lambda name: name != "stop")
    | st.sampled_from(["model", "stream", "adapters", "keep_alive", "seed"]),
    json_values,
    max_size=8,
)


@given(bodies)
def test_cleaning_keeps_every_other_field_and_nothing_more(body: dict[str, object]) -> None:
    found = json.loads(clean_request(json.dumps(body).encode(), model="m"))
    ours = STRIPPED | FORCED.keys() | {"model"}
    kept = {name: value for name, value in body.items() if name not in ours and value is not None}
    assert {name: value for name, value in found.items() if name not in ours} == kept
    assert (found["model"], found["stream"]) == ("m", True)
    assert not STRIPPED & found.keys()


@given(bodies)
def test_cleaning_twice_changes_nothing_more(body: dict[str, object]) -> None:
    once = clean_request(json.dumps(body).encode(), model="m")
    assert json.loads(clean_request(once, model="m")) == json.loads(once)


lines = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1, max_size=20)
blocks = st.lists(lines.map(lambda text: f"data: {text}"), min_size=1, max_size=3).map("\n".join)


@given(st.lists(blocks, max_size=6), st.sampled_from(["\n", "\r\n"]), st.lists(st.integers(0, 400), max_size=12))
def test_blocks_come_out_whole_wherever_the_stream_is_cut(texts: list[str], line_end: str, cuts: list[int]) -> None:
    stream = "".join(f"{text}\n\n" for text in texts).replace("\n", line_end).encode()
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    splitter = SseSplitter(10_000)
    found = [block for start, end in pairwise(edges) for block in splitter.feed(stream[start:end])]
    assert found == [f"{text}\n\n".encode() for text in texts]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_cutting_arbitrary_bytes_never_changes_the_blocks(data: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces, whole = SseSplitter(10_000), SseSplitter(10_000)
    found = [block for start, end in pairwise(edges) for block in pieces.feed(data[start:end])]
    assert found == whole.feed(data)
    assert all(block.endswith(b"\n\n") and block.count(b"\n\n") == 1 and b"\r" not in block for block in found)


@given(
    st.lists(st.dictionaries(st.text() | st.just("model"), json_values, max_size=5), min_size=1, max_size=3),
    st.text(min_size=1),
)
def test_renaming_touches_the_model_only(chunks: list[dict[str, object]], name: str) -> None:
    rename = Renamer(name)
    for chunk in chunks:
        chunk["model"] = "other"
        found = json.loads(rename(b"data: " + json.dumps(chunk).encode() + b"\n\n").removeprefix(b"data: "))
        assert found == {**chunk, "model": name}
