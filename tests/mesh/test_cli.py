"""The command line itself: its help, its usage errors, and how little it loads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import click
import pytest
from click.testing import CliRunner

from mesh import clidoc
from mesh.cli import mesh
from mesh.home import Home
from tests.mesh.commands import REPOSITORY, run


def test_bare_and_help_list_every_command() -> None:
    for words in ((), ("--help",)):
        found = run(*words)
        assert found.exit_code == 0
        for command in ("up", "down", "status", "models", "mesh", "config", "install", "uninstall", "logs", "keys"):
            assert f"\n  {command} " in found.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mesh", "stats"), "did you mean status"),
        (("confg",), "did you mean config"),
        (("xyzzy",), "no command 'xyzzy'"),
        (("mesh", "routes", "--lst", "3"), "--last"),
        (("mesh", "routes", "--last", "0"), "--last"),
        (("mesh", "add", "http://x"), "HOST:PORT"),
        (("mesh", "drain", "a", "--for", "soon"), "must be seconds"),
        (("mesh", "drain", "a", "--for", "0s"), "more than 0 s"),
        (("mesh", "drain", "a", "--for", "400d"), "at most 366 days"),
        (("mesh", "routes", "--why", "x", "--follow"), "exclude each other"),
        (("models", "--json", "add", "x"), "belongs behind the command"),
        (("config", "reset"), "--yes"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(home: Home, words: Sequence[str], said: str) -> None:
    found = run(*words)
    assert found.exit_code == 2
    assert found.stdout == ""
    assert said in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_the_mesh_group_mounts_in_another_root(home: Home) -> None:
    @click.group()
    def other() -> None:
        pass

    other.add_command(mesh)
    found = CliRunner().invoke(other, ["mesh", "status"])
    assert found.exit_code == 1
    assert "not running" in found.stderr


def test_help_does_not_load_what_it_does_not_need() -> None:
    script = "import sys; from mesh.cli import root; root(['--help'], standalone_mode=False); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(found.stdout.split())
    assert "click" in loaded
    assert not loaded & {
        "rich",
        "yaml",
        "aiohttp",
        "msgspec",
        "http.client",
        "mesh.daemon",
        "mesh.client",
        "importlib.metadata",
    }


def test_mesh_status_loads_neither_the_daemon_nor_its_libraries(home: Home) -> None:
    script = "import sys; from mesh.cli import root; root(['mesh', 'status'], standalone_mode=False)"
    script = f"import sys\ntry:\n    exec({script!r})\nexcept Exception as e:\n    print(e)\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "not running" in found.stdout
    assert not set(found.stdout.split()) & {"rich", "aiohttp", "zeroconf", "uvloop", "router", "mesh.daemon", "asyncio"}


def test_version() -> None:
    assert run("--version").stdout.startswith("mlx-stack ")


def test_the_documentation_is_fresh() -> None:
    written = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == clidoc.document(), "run: python -m mesh.clidoc > docs/cli.md"


def test_help_is_quick() -> None:
    times = []
    for _ in range(5):
        command = [sys.executable, "-m", "mesh.cli", "--help"]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        times.append(used.ru_utime + used.ru_stime)
    assert min(times) < 0.15  # of the processor: how busy the machine is with others is not the command's fault
