"""The daemon as a version of the next major protocol: everything is as now, but for the number."""

from mesh import wire

wire.PROTOCOL += 1

from mesh.cli import root  # noqa: E402 - after the number is changed

root(prog_name="mlx-stack")
