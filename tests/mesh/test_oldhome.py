"""A recorded home of the older mlx-stack is read as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh import config, oldstack, stack
from mesh.home import Home
from tests import oldhome

OLD_KEYS = {  # every key the older version has
    *("openrouter-key", "default-quant", "memory-budget-pct", "litellm-port", "model-dir", "auto-health-check"),
    *("log-max-size-mb", "log-max-files"),
}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("MLX_STACK_HOME", raising=False)
    home = oldhome.place(tmp_path)
    for tier in oldhome.TIERS:
        folder = home.models / oldhome.FOLDERS[tier]
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(tier.encode())
    assert Home.of_environment() == home
    return home


def test_every_key_is_known_and_those_without_effect_are_named_once(old: Home) -> None:
    assert set(config.read_file(old.config)) == OLD_KEYS
    found = config.load(old, {})
    assert found.port == 4000
    assert found.model_dir == old.models
    assert (found.log_max_size_mb, found.log_max_files) == (50, 5)
    assert found.warnings == (
        "no effect here, ignored: openrouter-key, default-quant, memory-budget-pct, auto-health-check",
    )


def test_the_tiers_are_served_under_their_names_with_their_ports(old: Home) -> None:
    found = stack.load(old, config.load(old, {}), which=lambda _: None)
    assert found.tiers == oldhome.TIERS
    assert [(s.engine, s.problem) for s in found.specs] == [("mlx-lm", "")] * 3
    assert {s.aliases[0]: s.port for s in found.specs} == oldhome.PORTS
    assert {s.aliases[0]: Path(s.path).name for s in found.specs} == oldhome.FOLDERS
    assert found.warnings == (
        "no effect here, ignored in the stack file: hardware_profile, intent, created, cloud_fallback, quant",
        "vllm_flags of 'standard', 'fast', 'longctx': vllm-mlx is not installed, mlx-lm serves without them",
    )


def test_its_flags_are_honoured_where_its_engine_is_installed(old: Home) -> None:
    found = stack.load(old, config.load(old, {}), which=lambda name: f"/opt/bin/{name}")
    assert [s.engine for s in found.specs] == ["command"] * 3
    flags = ("--continuous-batching", "--use-paged-cache", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    assert found.specs[0].command[-5:] == flags
    assert [warning for warning in found.warnings if "vllm" in warning] == []


def test_its_pid_files_of_long_ago_are_in_nobodys_way(old: Home, tmp_path: Path) -> None:
    assert {path.stem for path in old.old_pids.glob("*.pid")} == {*oldhome.TIERS, "litellm"}
    assert oldstack.in_the_way(old, 1, 501, tmp_path) == ""
