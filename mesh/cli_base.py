"""What every command shares: its home and client, how failures are told, and the kinds of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from mesh import values
from mesh.cli_group import Group, LateGroup
from mesh.client import MeshClient, MeshClientError
from mesh.config import ConfigError
from mesh.errors import MeshError
from mesh.home import Home, HomeError

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _told(error: ConfigError | HomeError | MeshError | MeshClientError) -> click.ClickException:
    """The failure as one or two lines on stderr, exit code 1."""
    hint = ""
    if isinstance(error, MeshClientError) and error.code == "not_running":
        hint = ": start it with `mlx-stack up`"
    elif isinstance(error, MeshClientError) and error.code == "no_answer":
        hint = ". `mlx-stack logs daemon` may say why"
    return click.ClickException(str(error) + hint)


class Command(click.Command):
    """A command whose failures are lines for people, not tracebacks."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ConfigError, HomeError, MeshError, MeshClientError) as error:
            raise _told(error) from error


class Commands(Group):
    """A group of such commands."""

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ConfigError, HomeError, MeshError, MeshClientError) as error:
            raise _told(error) from error


class LateCommands(LateGroup, Commands):
    """The same, where some of the commands are loaded when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(super().list_commands(ctx))


def duration(written: str) -> float:
    """An argument like "30m": seconds."""
    try:
        return values.seconds(0.0)(written)
    except ValueError as error:
        raise click.BadParameter(f"{written!r}: must be {error}") from None


def address(written: str) -> str:
    """An argument HOST[:PORT], with its port."""
    try:
        host, port = values.host_port(written)
    except ValueError:
        raise click.BadParameter(f"{written!r}: must be HOST or HOST:PORT, like mac-mini-3.tailnet:4000") from None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def home() -> Home:
    return Home.of_environment()


def client() -> MeshClient:
    """The client of the daemon in this home; it need not run."""
    return MeshClient.of(home())


def warn(text: str) -> None:
    """One line on stderr that stops nothing."""
    click.echo(f"Warning: {text}", err=True)
