"""Stack files: ours and the older mlx-stack's; one bad tier never takes the others with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh import config, stack
from mesh.config import ConfigError
from mesh.home import Home
from mesh.stack import Stack
from node.download import MARKER
from tests.mesh.commands import weights


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    home = Home(tmp_path / "home")
    home.create()
    return home


def nothing_installed(_: str) -> str | None:
    return None


def everything_installed(name: str) -> str | None:
    return f"/usr/local/bin/{name}"


def load(
    home: Home, *tiers: Any, which: Callable[[str], str | None] = everything_installed, only: tuple[str, ...] = ()
) -> Stack:
    home.stack.write_text(yaml.safe_dump({"schema_version": 1, "tiers": list(tiers)}, sort_keys=False))
    return stack.load(home, config.load(home, {}), tiers=only, which=which)


BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))


def test_no_stack_file_is_a_node_without_models(home: Home) -> None:
    found = stack.load(home, config.load(home, {}))
    assert found == Stack()
    assert not found.found


def test_the_older_stacks_file_works(home: Home) -> None:
    path = weights(home.models / "Qwen3-8B-4bit")
    tier = {
        "name": "standard",
        "model": "qwen3-8b",
        "quant": "int4",
        "source": "mlx-community/Qwen3-8B-4bit",
        "port": 8000,
        "vllm_flags": {"use_paged_cache": True, "tool_call_parser": "hermes", "continuous_batching": False},
    }
    (spec,) = load(home, tier).specs
    assert (spec.name, spec.aliases, spec.engine, spec.path) == ("qwen3-8b", ("standard",), "command", str(path))
    assert spec.port == 8000
    assert spec.source == "mlx-community/Qwen3-8B-4bit"
    assert spec.command[:3] == ("vllm-mlx", "serve", "{model}")
    assert spec.command[-3:] == ("--use-paged-cache", "--tool-call-parser", "hermes")
    found = load(home, tier, which=nothing_installed)
    assert found.specs[0].engine == "mlx-lm"
    assert found.specs[0].command == ()
    assert found.warnings == (
        "no effect here, ignored in the stack file: quant",
        "vllm_flags of 'standard': vllm-mlx is not installed, mlx-lm serves without them",
    )


def test_weights_are_looked_up_in_the_order_of_the_design(home: Home, tmp_path: Path) -> None:
    tier = {"name": "t", "model": "org/a", "source": "org/b"}

    def path() -> str:
        return load(home, tier).specs[0].path

    (spec,) = load(home, tier).specs
    assert (spec.path, spec.hub, spec.problem) == ("", "org/b", "")  # It is fetched from there.
    snapshot = weights(tmp_path / "hub" / "models--org--a" / "snapshots" / "c0ffee")
    (tmp_path / "hub" / "models--org--a" / "refs").mkdir()
    (tmp_path / "hub" / "models--org--a" / "refs" / "main").write_text("c0ffee")
    assert path() == str(snapshot)
    marker = tmp_path / "hub" / "models--org--a" / MARKER
    marker.touch()
    assert load(home, tier).specs[0].hub == "org/b"  # Not all of it is here.
    marker.unlink()
    by_source = weights(home.models / "b")
    assert path() == str(by_source)
    by_model = weights(home.models / "org" / "a")
    assert path() == str(by_model)


def test_a_directory_that_is_not_whole_is_told_unless_the_hub_has_the_model(home: Home) -> None:
    (home.models / "m").mkdir(parents=True)
    (home.models / "m" / "config.json").write_text("{}")
    assert "holds no weights" in load(home, {"name": "t", "model": "m"}).specs[0].problem
    assert load(home, {"name": "t", "model": "m", "source": "org/m"}).specs[0].hub == "org/m"
    fetched = {"name": "t", "model": "org/m", "engine": "command", "command": ["serve", "{model}", "{port}"]}
    (spec,) = load(home, fetched).specs
    assert (spec.engine, spec.hub) == ("command", "org/m")


def test_a_directory_is_called_by_its_last_part(home: Home, tmp_path: Path) -> None:
    path = weights(tmp_path / "elsewhere" / "Smol-4bit")
    found = load(home, {"name": "fast", "model": str(path), "aliases": ["small"]})
    assert (found.specs[0].name, found.specs[0].aliases) == ("Smol-4bit", ("fast", "small"))
    assert found.tiers == {"fast": "Smol-4bit"}


def test_every_field_arrives(home: Home) -> None:
    weights(home.models / "m")
    tier = {
        "name": "t",
        "model": "m",
        "slots": 3,
        "context": 4096,
        "extra-args": "--a 'b c'",
        "paths": ["embeddings"],
        "fallback": ["x", "y"],
        "pinned": "yes",
        "keep_alive": "5m",
        "weights": "same",
    }
    (spec,) = load(home, tier).specs
    assert (spec.slots, spec.context, spec.extra_args) == (3, 4096, ("--a", "b c"))
    assert (spec.paths, spec.fallback, spec.pinned) == (("embeddings",), ("x", "y"), True)
    assert (spec.keep_alive, spec.weights, spec.problem) == (300.0, "same", "")


def test_tiers_with_equal_weights_and_engine_share_one_worker(home: Home) -> None:
    weights(home.models / "m")
    found = load(
        home,
        {"name": "standard", "model": "m", "aliases": ["a"]},
        {"name": "fast", "model": "m", "aliases": ["b"], "slots": 9},
        {"name": "other", "model": "m", "engine": "vllm-mlx"},
    )
    first, second = found.specs
    assert (first.name, first.aliases) == ("m", ("standard", "a", "fast", "b"))
    assert found.tiers == {"standard": "m", "fast": "m", "other": "other"}
    assert (second.name, second.engine) == ("other", "command")
    assert any("its own settings are not used" in w for w in found.warnings)
    assert any("two models are called 'm'" in w for w in found.warnings)


def test_a_name_belongs_to_one_model(home: Home) -> None:
    weights(home.models / "m")
    weights(home.models / "n")
    found = load(
        home, {"name": "a", "model": "m", "aliases": ["x"]}, {"name": "b", "model": "n", "aliases": ["x", "m"]}
    )
    assert [spec.aliases for spec in found.specs] == [("a", "x"), ("b",)]
    assert len(found.warnings) == 2


@pytest.mark.parametrize(
    ("tier", "said"),
    [
        ({"name": "bad", "model": "absent"}, "no weights"),
        ({"name": "bad", "model": "/no/such/place"}, "no weights"),
        ({"name": "bad", "model": "empty"}, "config.json is missing"),
        ({"name": "bad", "model": "half"}, "incomplete: b.safetensors is missing (1 of 2 shards)"),
        ({"name": "bad", "model": "good", "engine": "torch"}, "unknown engine 'torch'"),
        ({"name": "bad", "model": "good", "slots": "many"}, "`slots` must be a whole number"),
        ({"name": "bad", "model": "good", "keep-alive": "x"}, "`keep-alive` must be seconds"),
        ({"name": "bad"}, "`model` is missing"),
        ({"name": "bad", "model": "x", "engine": "external"}, "`url` must be"),
        ({"name": "bad", "model": "x", "engine": "external", "url": "ftp://a"}, "`url` must be"),
        ({"name": "bad", "model": "good", "engine": "command", "command": "serve {model}"}, "with {port}"),
        ({"name": "bad", "model": "good", "engine": "command", "command": "serve 'x"}, "matching quotes"),
        ({"name": "bad", "model": "good", "engine": "command", "command": "serve {port} \0"}, "words without NUL"),
        ({"name": "bad", "model": "good", "extra-args": ["--a", "b\0"]}, "words without NUL"),
        ({"name": "bad", "model": "good", "extra-args": ["\ud800"]}, "surrogate"),
        ("just text", "must be a mapping"),
    ],
)
def test_a_bad_tier_is_a_problem_of_its_own(home: Home, tier: Any, said: str) -> None:
    weights(home.models / "good")
    (home.models / "empty").mkdir()
    half = weights(home.models / "half")
    (half / "a.safetensors").write_bytes(b"x")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (half / "model.safetensors.index.json").write_text(json.dumps(index))
    found = load(home, tier, {"name": "fine", "model": "good"})
    by_tier = {tier_name: next(s for s in found.specs if s.name == name) for tier_name, name in found.tiers.items()}
    assert len(found.specs) == 2
    assert by_tier.pop("fine").problem == ""
    (bad,) = by_tier.values()
    assert said in bad.problem


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"weight_map": {"x": 3}}', b'{"weight_map": {"x": "\xff"}}'])
def test_a_damaged_index_of_shards_is_a_problem_of_its_tier(home: Home, index: bytes) -> None:
    (weights(home.models / "m") / "model.safetensors.index.json").write_bytes(index)
    assert "is damaged" in load(home, {"name": "t", "model": "m"}).specs[0].problem


def test_an_engine_that_is_not_installed_is_said(home: Home) -> None:
    weights(home.models / "m")
    tier = {"name": "t", "model": "m", "engine": "vllm-mlx"}
    assert "'vllm-mlx' is not installed" in load(home, tier, which=nothing_installed).specs[0].problem


def test_a_command_that_takes_no_model_needs_no_weights(home: Home) -> None:
    (spec,) = load(home, {"name": "t", "model": "any", "command": ["serve", "--port", "{port}"]}).specs
    assert (spec.engine, spec.path, spec.problem) == ("command", "", "")


def test_an_external_server_is_called_by_the_name_it_knows(home: Home) -> None:
    (spec,) = load(home, {"name": "t", "model": "org/x", "url": "http://127.0.0.1:8080/v1/"}).specs
    assert (spec.engine, spec.name, spec.url, spec.aliases) == ("external", "org/x", "http://127.0.0.1:8080/v1", ("t",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("schema_version: 2\ntiers: []", "schema_version 2; this mlx-stack reads version 1 only"),
        ("tiers: []", "schema_version None"),
        ("a: [", "not valid YAML"),
        (BOMB + "schema_version: *a7", "not valid YAML"),
        ("a: &a [*a]", "not valid YAML"),
        (f"schema_version: [{'1, ' * 900}]", "1, 1..."),
        ("schema_version: 1\ntiers: [2026-99-99]", "not valid YAML"),  # PyYAML makes dates, this is none
        ("[" * 3000, "not valid YAML"),
        ("[]", "must be a mapping"),
        ("schema_version: 1\ntiers: {a: 1}", "`tiers` must be a list"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named(home: Home, content: str, said: str) -> None:
    home.stack.write_text(content)
    with pytest.raises(ConfigError) as error:
        stack.load(home, config.load(home, {}))
    assert str(home.stack) in error.value.message
    assert said in error.value.message


def test_only_some_tiers(home: Home) -> None:
    weights(home.models / "m")
    weights(home.models / "n")
    tiers = ({"name": "a", "model": "m"}, {"name": "b", "model": "n"})
    assert [s.name for s in load(home, *tiers, only=("b",)).specs] == ["n"]
    with pytest.raises(ConfigError, match=r"no tier 'c' .* it has a, b"):
        load(home, *tiers, only=("c",))


def test_adding_and_removing_keeps_what_else_the_file_says(home: Home, tmp_path: Path) -> None:
    settings = config.load(home, {})
    weights(tmp_path / "Smol")
    weights(home.models / "m")
    assert stack.add_tier(home, settings, "Smol", aliases=["small"]) == "Smol"
    written = yaml.safe_load(home.stack.read_text())
    assert written["schema_version"] == 1
    assert written["tiers"] == [{"name": "Smol", "model": str(tmp_path / "Smol"), "aliases": ["small"]}]
    home.stack.write_text(yaml.safe_dump({**written, "intent": "balanced", "cloud_fallback": {"a": 1}}))
    assert stack.add_tier(home, settings, "m", name="fast") == "fast"
    with pytest.raises(ConfigError, match="already there"):
        stack.add_tier(home, settings, "m", name="fast")
    with pytest.raises(ConfigError, match="no weights"):
        stack.add_tier(home, settings, "none")
    with pytest.raises(ConfigError, match="not a directory"):
        stack.add_tier(home, settings, "./none")
    assert [s.name for s in stack.load(home, settings).specs] == ["Smol", "m"]
    assert stack.remove_tier(home, "Smol") == ["Smol"]
    assert stack.remove_tier(home, "m") == ["fast"]
    with pytest.raises(ConfigError, match="no tier or model 'm'"):
        stack.remove_tier(home, "m")
    written = yaml.safe_load(home.stack.read_text())
    assert (written["intent"], written["cloud_fallback"], written["tiers"]) == ("balanced", {"a": 1}, [])


@pytest.mark.parametrize(
    ("name", "alias", "said"),
    [
        ("", "small", "'small' already names 'Smol': choose another --alias"),
        ("", "Smol", "'Smol' already names 'Smol': choose another --alias"),
        ("small", "new", "'small' already names 'Smol': choose another --as"),
    ],
)
def test_a_tier_that_would_not_answer_to_a_name_it_is_given_is_not_added(
    home: Home, name: str, alias: str, said: str
) -> None:
    settings = config.load(home, {})
    for folder in ("Smol", "m"):
        weights(home.models / folder)
    stack.add_tier(home, settings, "Smol", aliases=["small"])
    before = home.stack.read_text()
    with pytest.raises(ConfigError, match=said):
        stack.add_tier(home, settings, "m", name=name, aliases=["fine", alias])
    assert home.stack.read_text() == before
    stack.add_tier(home, settings, "Smol", name="again", aliases=["small"])  # the same model's
    assert stack.load(home, settings).warnings == ()


@pytest.mark.parametrize("model", ["x" * 5000, "~nobody-has-this-name/x", "a\0b"])
def test_a_model_that_cannot_even_be_a_path_is_a_problem_of_its_tier(home: Home, model: str) -> None:
    (spec,) = load(home, {"name": "t", "model": model}).specs
    assert spec.problem
