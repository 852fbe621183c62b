"""Files of the home folder and of models, whoever wrote them: settings, what the daemon keeps, weights from the hub."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import yaml

from bench.fuzz.corpus import FOLDER
from bench.fuzz.target import Defect, Run, Target, want
from bench.fuzz.trees import remade
from mesh import config as configuration
from mesh import stack as stacks
from mesh.config import Config, ConfigError, shown
from mesh.config_keys import KEYS
from mesh.draining import Draining
from mesh.electing import _term_of
from mesh.files import read_or_set_aside
from mesh.home import Home, HomeError
from mesh.peers import PeerStore
from mesh.weights import directory_problem
from mesh.wire import PROTOCOL
from node.errors import NodeError
from node.headroom import Taken
from node.io import weights
from node.io.identity import node_id
from node.io.measured import Measured
from node.io.probe import Probe
from node.io.registry import Entry, Registry

_ASIDE_MAX = 100  # files that were set aside are thrown away then
_BOMB = b"a0: &a0 [x]\n" + b"".join(
    b"a%d: &a%d [%b]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 9)
)


@contextmanager
def _folder() -> Iterator[Path]:
    """In memory where there is such a thing: an input is a file or two."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def _emptied(folder: Path) -> None:
    if len(list(folder.iterdir())) > _ASIDE_MAX:
        for file in folder.iterdir():
            if file.is_file():
                file.unlink()


# config.yaml


@contextmanager
def _config() -> Iterator[Run]:
    with _folder() as folder:
        home = Home(folder)

        def run(data: bytes) -> str:
            home.config.write_bytes(data)
            try:
                found = configuration.load(home, {})
            except ConfigError as error:
                want(len(str(error)) < 4000, "a message without bound")
                return "refused"
            for key in KEYS:
                json.dumps(shown(key, getattr(found, key.field)))
            return f"loaded {_edited(home)}"

        yield run


def _edited(home: Home) -> str:
    """A value set by command is there afterwards, and nothing else is another."""
    before = yaml.safe_load(home.config.read_text()) or {}
    try:
        configuration.set_values(home, {"node-name": "fuzz"})
    except ConfigError:
        return "refused"
    after = yaml.safe_load(home.config.read_text())
    want(after.pop("node-name") == "fuzz", "what was set is not there")
    same = repr({str(k): v for k, v in before.items() if k not in ("node-name", "node_name")})[:10_000]
    want(repr(after)[:10_000] == same, "another value was changed")
    return "edited"


def _config_seeds() -> list[bytes]:
    every = {key.name: list(key.default) if isinstance(key.default, tuple) else key.default for key in KEYS}
    plain = [(k, v) for k, v in every.items() if isinstance(v, str | int | float | bool | list)]
    some = [yaml.safe_dump(dict(plain[at : at + 5])).encode() for at in range(0, len(plain), 5)]
    lines = [f"{key.name}: x\n".encode() for key in KEYS]
    return [
        *some, *lines, b"", b"[]", b"port: 2026-99-99", b"mesh-enabled: yes\nport: 4000\n", _BOMB,
        _BOMB + b"mesh-peers: *a8\n", _BOMB + b"port: *a8\n", b"port: " + b"[" * 500, b"? {a: b}\n: c\n",
        b"port: !!python/object/apply:os.system [x]\n", b"<<: {port: 1}\n", b"&a port: *a\n", b"x: !!binary aGk=\n",
    ]  # fmt: skip


# stacks/default.yaml


@contextmanager
def _stack() -> Iterator[Run]:
    with _folder() as folder:
        home = Home(folder)
        (folder / "stacks").mkdir()
        config = configuration.load(home, {})

        def run(data: bytes) -> str:
            home.stack.write_bytes(data)
            outcome = _tiers(home, config)
            home.stack.write_bytes(data)
            try:
                stacks.add_tier(home, config, "a/b", name="fuzz", aliases=["f"])
            except ConfigError:
                return f"{outcome} refused"
            want("fuzz" in stacks.load(home, config).tiers, "a tier that was added is not there")
            return f"{outcome} added"

        yield run


def _tiers(home: Home, config: Config) -> str:
    try:
        found = stacks.load(home, config, which=lambda word: word)
    except ConfigError as error:
        want(len(str(error)) < 4000, "a message without bound")
        return "refused"
    names = [spec.name for spec in found.specs]
    want(len(set(names)) == len(names), "two models have one name")
    want(set(found.tiers.values()) <= set(names), "a tier without a model")
    said = [name for spec in found.specs for name in (spec.name, *spec.aliases)]
    want(len(set(said)) == len(said), "two models answer to one name")
    for spec in found.specs:
        words = (*spec.command, *spec.extra_args)
        want(
            all(isinstance(word, str) and b"\0" not in os.fsencode(word) for word in words),
            "no process takes that word",
        )
        want(len(spec.problem) < 4000, "a problem without bound")
    return f"{len(names)} models {any(spec.problem for spec in found.specs)}"


_TIER = b"schema_version: 1\nname: default\ntiers:\n"
_STACKS = (
    _TIER + b"- {name: fast, model: a/b, quant: int4, source: a/b, port: 8000, vllm_flags: {x_y: true, z: 1}}\n",
    _TIER + b"- {name: c, engine: command, command: serve {model} --port {port}, model: m}\n- {name: c}\n- 5\n",
    _TIER + b"- {name: e, engine: external, url: http://127.0.0.1:1/v1, model: m, aliases: [x, e], slots: 2}\n",
    _TIER + b"- {model: ~/x, pinned: true, keep-alive: 5m, context: 1000, extra-args: [--a, b], paths: [audio/*]}\n",
    _TIER + b"- {name: fast, model: fast, weights: /, fallback: true, engine: vllm-mlx}\n",
    b"schema_version: 2\n", b"[]", b"schema_version: 1\ntiers: 5\n", b"", _BOMB + b"schema_version: *a8\n",
    _BOMB + b"schema_version: 1\ntiers: [{name: *a8, slots: *a8, url: *a8, command: *a8, engine: command}]\n",
    _TIER + b"- {model: " + b"a" * 300 + b"}\n- {model: ~nobody/x}\n- {model: \"a\\0b\"}\n",
)  # fmt: skip


# What the daemon keeps


class _Harmless(Registry):
    """It may find out whose processes run; it ends none."""

    def _kill(self, entry: Entry, pids: list[int]) -> None:
        if pids:
            raise Defect(f"processes {pids} would be ended for {entry}")


class _Host:
    def drain(self, reason: str) -> None: ...
    def undrain(self) -> None: ...


@contextmanager
def _files() -> Iterator[Run]:
    with _folder() as folder, asyncio.Runner() as runner:
        (folder / "node").mkdir()
        probe, loop = Probe(), runner.get_loop()

        async def run(data: bytes) -> str:
            said: list[str] = []
            _emptied(folder)
            _emptied(folder / "node")

            def at(name: str) -> Path:
                file = folder / name
                file.write_bytes(data)
                return file

            store = PeerStore(at("peers.json").parent, said.append, lambda _path, _data: None, kept_s=1e12)
            store.save(store.peers())
            draining = Draining(at("drain.json"), _Host(), tell=said.append, write=lambda _path, _data: None)
            draining.restore()
            draining.pause()
            read_or_set_aside(at("term"), _term_of, said.append)
            Measured(at("measured.json")).get("x")
            said += _Harmless(at("workers.json"), probe).end_orphans()
            at("node/id")
            want(len(node_id(folder, said.append)) == 16, "no id")
            at("daemon.pid")
            try:
                Home(folder).read_pid()
            except HomeError:
                said.append("pid")
            want(all(len(one) < 2000 for one in said), "a sentence without bound")
            return " ".join(sorted({one.rpartition("/")[2][:8] for one in said if one.startswith("/")}))

        yield lambda data: loop.run_until_complete(run(data))


def _file_seeds() -> list[bytes]:
    wire = FOLDER.parents[1] / "mesh" / "corpus" / f"v{PROTOCOL}"
    taken = json.dumps({"x": dict.fromkeys(Taken.__struct_fields__, 1)}).encode()
    entry = json.dumps([{"pid": 2**70, "birth": "1", "token": "", "model": "m", "port": 1, "daemon": -(2**70),
                         "daemon_birth": "x"}]).encode()  # fmt: skip
    return [
        *(file.read_bytes() for file in sorted(wire.glob("file-*"))), taken, entry, entry.replace(b"7411", b"1"),
        b'[{"pid":0,"birth":"","token":"","model":"m","port":1}]', b'{"x":' + b"[" * 5000, b'{"\xff":1}', b"1\n/x\n",
        b'{"draining":true,"until":1e300}', b'{"draining":true,"until":1e11}', b"9" * 5000, b"\xd9\xa1",
    ]  # fmt: skip


# Weights, as the hub may send them


@contextmanager
def _weights() -> Iterator[Run]:
    with _folder() as folder:

        def run(data: bytes) -> str:
            config, _, tensors = data.partition(b"\0")
            (folder / "config.json").write_bytes(config)
            (folder / "model.safetensors").write_bytes(len(tensors).to_bytes(8, "little") + tensors + b"\0" * 64)
            (folder / "model.safetensors.index.json").write_bytes(tensors)
            directory_problem(folder)
            outcomes = [
                _said(lambda: weights.shape(folder)),
                _said(lambda: weights.identity(folder)),
                _said(lambda: weights.fingerprint(folder)),
            ]
            return "+".join(outcomes)

        yield run


def _said(ask: Callable[[], object]) -> str:
    try:
        ask()
    except NodeError as error:
        want(len(error.message) < 2000, "a message without bound")
        return error.code
    return "ok"


_CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "head_dim": 16,
           "num_key_value_heads": 2, "sliding_window": 8, "sliding_window_pattern": "LG", "tie_word_embeddings": True,
           "max_position_embeddings": 128, "text_config": {"layer_types": ["full_attention"]}}  # fmt: skip
_TENSORS = {"norm.weight": {"dtype": "BF16", "shape": [4, 4], "data_offsets": [0, 32]}, "__metadata__": {"a": "b"}}
_WEIGHTS = (
    json.dumps(_CONFIG).encode() + b"\0" + json.dumps(_TENSORS).encode(),
    json.dumps(_CONFIG).encode() + b"\0" + json.dumps({"weight_map": {"a": "model.safetensors"}}).encode(),
    b'{"model_type":"gemma3","num_hidden_layers":1e400}\0{"a":{"dtype":"x","shape":[],"data_offsets":[5,-1]}}',
    b'{"text_config":' * 200 + b"\0" + b'{"a":' * 2000,
)


def _remade_yaml(data: bytes, rng: Random) -> bytes:
    return remade(data, rng, yaml.safe_load, lambda value: yaml.safe_dump(value).encode())


def _remade_json(data: bytes, rng: Random) -> bytes:
    return remade(data, rng, json.loads, lambda value: json.dumps(value).encode())


def _remade_weights(data: bytes, rng: Random) -> bytes:
    parts = data.split(b"\0", 1)
    at = rng.randrange(len(parts))
    parts[at] = _remade_json(parts[at], rng)
    return b"\0".join(parts)


TARGETS = (
    Target(
        name="config",
        about="config.yaml: mesh/config.load, shown, set_values",
        opened=_config,
        remake=_remade_yaml,
        size_max=1024,  # PyYAML takes the square of how deep lists are nested
        seeds=_config_seeds,
        words=(*(f"{key.name}: ".encode() for key in KEYS), b"*a8", b"&a ", b"- ", b"{", b"[", b"24 GB", b"5m",
               b"!!str "),
    ),
    Target(
        name="stack",
        about="stacks/default.yaml: mesh/stack.load and add_tier",
        opened=_stack,
        remake=_remade_yaml,
        size_max=1024,
        seeds=lambda: _STACKS,
        words=(b"- {", b"name: ", b"model: ", b"engine: external", b"engine: command", b"command: ", b"url: ", b"*a8",
               b"aliases: [", b"keep-alive: ", b"slots: ", b"{port}", b"~", b"\\0", b"vllm_flags: ", b"tiers:\n"),
    ),
    Target(
        name="files",
        about="peers.json, drain.json, term, measured.json, workers.json, node/id, daemon.pid",
        opened=_files,
        remake=_remade_json,
        seeds=_file_seeds,
        words=(b'"peers"', b'"peer"', b'"reached_at"', b'"removed"', b'"version"', b'"draining"', b'"until"', b'"pid"',
               b'"birth"', b'"token"', b"[" * 1000, b"1e308", b"null", b"-1"),
    ),
    Target(
        name="weights",
        about="config.json and safetensors headers of a model: node/io/weights, mesh/weights.directory_problem",
        opened=_weights,
        remake=_remade_weights,
        seeds=lambda: _WEIGHTS,
        words=(b"\0", b'"data_offsets"', b'"dtype"', b'"shape"', b'"text_config"', b'"weight_map"', b"null", b"1e400",
               *(f'"{name}":'.encode() for name in _CONFIG)),
    ),
)  # fmt: skip
