"""All that is not chat: embeddings, forms, paths of tiers, what can be read, and paths that are nobody's."""

from __future__ import annotations

import aiohttp
import openai
import pytest

from node.types import ModelReport, ModelState
from router.view import NodeState
from tests.router.fakes import ME, Rig, send


async def test_embeddings_go_to_the_node_whose_model_serves_them(rig: Rig) -> None:
    rig.other_models = (ModelReport(name="chat-1", paths=("embeddings",)),)
    rig.peer.post_answer = (200, "application/json", b'{"object":"list","data":[]}')
    status, body, headers = await send(rig, "/v1/embeddings", json={"model": "chat-1", "input": "hi"})
    assert (status, body) == (200, {"object": "list", "data": []})
    assert headers["x-mesh-node"] == "mini"
    assert rig.dispatch.asked[0].excluded == (ME,)
    rig.peer.post_answer = (400, "application/json", b'{"detail":"bad input"}')
    status, body, _ = await send(rig, "/v1/embeddings", json={"model": "chat-1", "input": 7})
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert rig.facts[-1].outcome == "refused"
    rig.peer.post_answer = (500, "text/plain", b"oops")
    status, body, _ = await send(rig, "/v1/embeddings", json={"model": "chat-1", "input": "hi"})
    assert (status, body["error"]["code"]) == (503, "model_failed")


async def test_a_path_nobody_serves_names_who_would(rig: Rig) -> None:
    status, body, _ = await send(rig, "/v1/embeddings", json={"model": "chat-1", "input": "hi"})
    assert (status, body["error"]["code"]) == (404, "path_not_found")
    rig.models = (*rig.models, ModelReport(name="bert", paths=("/v1/embeddings",)))
    status, body, _ = await send(rig, "/v1/embeddings", json={"model": "chat-1", "input": "hi"})
    assert "bert" in body["error"]["message"]


async def test_the_model_of_a_form(rig: Rig) -> None:
    rig.models = (ModelReport(name="whisper", paths=("audio/*",)),)
    rig.other_models = ()
    form = aiohttp.FormData()
    form.add_field("file", b"\x00--\r\n\r\nRIFF" * 1000, filename="a.wav", content_type="audio/wav")
    form.add_field("model", "whisper")
    rig.host.post_answer = (200, "text/plain", b"hello")
    status, body, headers = await send(rig, "/v1/audio/transcriptions", data=form)
    assert (status, body) == (200, b"hello")
    assert headers["content-type"] == "text/plain"
    assert rig.host.calls[0].content_type.startswith("multipart/form-data")
    form = aiohttp.FormData()
    form.add_field("file", b"RIFF", filename="a.wav")
    status, body, _ = await send(rig, "/v1/audio/transcriptions", data=form)
    assert (status, body["error"]["param"]) == (400, "model")


async def test_a_path_of_a_tier_is_known(rig: Rig) -> None:
    status, body, _ = await send(rig, "/v1/special/thing", json={"model": "chat-1"})
    assert (status, body["error"]["code"]) == (404, "path_not_found")
    rig.models = (ModelReport(name="chat-1", paths=("special/thing",)),)
    status, body, _ = await send(rig, "/v1/special/thing", json={"model": "chat-1"})
    assert (status, body) == (200, {"data": []})


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "path_not_found"),
        ("GET", "/v1/nothing", 404, "path_not_found"),
        ("POST", "/v1", 404, "path_not_found"),
        ("POST", "/v1/audio/a%0D%0Ab", 404, "path_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/chat-1", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
    ],
)
async def test_wrong_paths_and_methods(rig: Rig, method: str, path: str, status: int, code: str) -> None:
    got, body, headers = await send(rig, path, method)
    assert (got, body["error"]["code"]) == (status, code)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert ("allow" in headers) == (status == 405)
    assert rig.facts == []


async def test_the_models_are_a_union(rig: Rig) -> None:
    rig.other_models = (
        ModelReport(name="chat-1", aliases=("standard",), state=ModelState.FAILED),
        ModelReport(name="org/large", state=ModelState.LOADING),
    )
    page = await rig.client().models.list()
    assert [m.id for m in page.data] == ["chat-1", "org/large", "standard"]
    assert page.data[0].to_dict()["mesh"] == {"nodes": ["mini", "studio"], "state": "ready"}
    one = await rig.client().models.retrieve("org/large")
    assert one.to_dict()["mesh"] == {"nodes": ["mini"], "state": "loading"}
    with pytest.raises(openai.NotFoundError, match="hese exist"):
        await rig.client().models.retrieve("none")
    rig.other_state = NodeState.DEAD
    assert len((await rig.client().models.list()).data) == 2


async def test_ready_says_why_not(rig: Rig) -> None:
    assert (await send(rig, "/ready", "GET"))[:2] == (200, {"ready": True, "reason": None})
    rig.models = (ModelReport(name="chat-1", state=ModelState.LOADING),)
    rig.other_models = ()
    assert (await send(rig, "/ready", "GET"))[:2] == (503, {"ready": False, "reason": "models are being loaded"})
    rig.models = ()
    assert (await send(rig, "/ready", "GET"))[1]["reason"] == "no node of this mesh has a model"
    rig.coordinator = None
    assert (await send(rig, "/ready", "GET"))[1]["reason"] == "no coordinator is known"
    rig.draining = True
    assert "draining" in (await send(rig, "/ready", "GET"))[1]["reason"]


async def test_health_metrics_and_who_we_are(rig: Rig) -> None:
    assert (await send(rig, "/health", "GET"))[:2] == (200, {"status": "ok"})
    status, body, headers = await send(rig, "/metrics", "GET")
    assert (status, body) == (200, b"# none\n")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    status, body, _ = await send(rig, "/.well-known/mlx-stack", "GET")
    assert status == 200
    assert body == {
        "id": ME,
        "name": "studio",
        "mesh": "default",
        "mesh_id": "mesh-id",
        "version": "0.1",
        "protocol": 1,
        "peer_port": rig.peer_port,
    }
