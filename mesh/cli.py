"""The `mlx-stack` command. `python -m mesh.cli` is the same; a command's code is loaded when it is called."""

from __future__ import annotations

import importlib
from typing import Any

import click

from mesh.cli_group import LateGroup

LATE = {
    "up": ("mesh.cli_daemon", "up", "Start this node and its models."),
    "down": ("mesh.cli_daemon", "down", "Stop this node: finish what runs, then end it."),
    "status": ("mesh.cli_daemon", "status", "This node: its models, memory and mesh."),
    "models": ("mesh.cli_models", "models", "The models of this node: list, add, remove, load, unload, show."),
    "mesh": ("mesh.cli_mesh", "mesh", "Many Macs as one: enable, status, nodes, routes and more."),
    "keys": ("mesh.cli_keys", "keys", "Keys of clients on other machines: create, list, revoke, off."),
    "config": ("mesh.cli_config", "config", "Settings: list, get, set, reset."),
    "install": ("mesh.cli_install", "install", "Start this node at boot."),
    "uninstall": ("mesh.cli_install", "uninstall", "Start it at boot no longer."),
    "logs": ("mesh.cli_logs", "logs", "What this node and its model servers say."),
}


def run_daemon(home: Any, tiers: tuple[str, ...]) -> int:
    """Becomes the daemon of `home` (mesh.home.Home); returns its exit code. Nothing else here needs its code."""
    from mesh.process import run  # noqa: PLC0415 - half a second that only `up --foreground` pays

    return run(home, tiers)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        metadata = importlib.import_module("importlib.metadata")  # 20 ms that no other command should pay
        try:
            version = metadata.version("mlx-stack-mesh")
        except metadata.PackageNotFoundError:
            version = "(not installed: run from its source)"
        click.echo(f"mlx-stack {version}")
        ctx.exit()


@click.group(
    cls=LateGroup,
    late=LATE,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@click.pass_context
def root(ctx: click.Context) -> None:
    """One URL for all your Macs: local MLX models behind one OpenAI endpoint that outlives any one of them."""
    ctx.obj = run_daemon
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """The console script."""
    root(prog_name="mlx-stack")


def __getattr__(name: str) -> click.Command:
    """`from mesh.cli import mesh`: the group another root can mount, without loading it for those who do not ask."""
    if name == "mesh":
        command = root.get_command(click.Context(root), name)
        assert command is not None
        return command
    raise AttributeError(name)


if __name__ == "__main__":
    main()
