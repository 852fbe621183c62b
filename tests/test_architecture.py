"""What no single test sees: imports point down, deciding code is pure, documents are fresh, each core has its tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE_PACKAGES = ("node", "router", "election")
PURE = sorted(f for package in PURE_PACKAGES for f in (ROOT / package).glob("*.py") if f.name != "__init__.py")
REPLAY = sorted((ROOT / "router" / "replay").glob("*.py"))  # pure too; tests/router/test_replay*.py
CLOCKS_AND_SOCKETS = {"asyncio", "time", "socket", "threading", "subprocess", "logging", "random"}


def test_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", [*PURE, *REPLAY], ids=lambda f: str(f.relative_to(ROOT)))
def test_outside_io_nothing_waits_or_reads_a_clock(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith), file
        if isinstance(node, ast.Import):
            assert not {name.name.split(".")[0] for name in node.names} & CLOCKS_AND_SOCKETS, file
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            module = node.module.split(".")[0]
            assert module not in CLOCKS_AND_SOCKETS - {"random"}, file
            if module == "random":  # the type of what is passed in
                assert {name.name for name in node.names} == {"Random"}, file


def test_every_deciding_module_has_a_test_file_of_its_own() -> None:
    """Modules that only define words (types, settings, messages and the like) are tested where they are used."""
    words = {"types", "errors", "settings", "facts", "events", "frames", "messages", "view"}
    words |= {"rail_events", "attempt_events"}
    helpers = {
        "account": "dispatch",
        "fleet": "schedule",
        "ledger": "schedule",
        "peers": "machine",
        "residents": "rail",
        "voice": "machine",
    }
    missing = []
    for file in PURE:
        stem = helpers.get(file.stem, file.stem)
        if file.stem not in words and not list((ROOT / "tests" / file.parent.name).glob(f"test_{stem}*.py")):
            missing.append(str(file.relative_to(ROOT)))
    assert not missing


def test_the_project_names_nothing_outside_itself() -> None:
    """No path of the machine it was written on."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    tell_tales = [f"/{folder}/" for folder in ("work", "tmp/dev")]  # not spelt out: this file is looked at too
    for name in listed:
        file = ROOT / name
        if file.is_file() and file.suffix in {".py", ".md", ".toml", ".yml", ".txt", ""}:
            text = file.read_text(encoding="utf-8", errors="replace")
            assert not any(tale in text for tale in tell_tales), name
