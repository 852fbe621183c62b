"""What members tell each other of the door of their mesh: the window, who is new, who waits. Pure.

Bounds are checked when decoding, as in mesh/wire.py.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from node.types import NodeId, Port

Text: TypeAlias = Annotated[str, Meta(max_length=256)]
Id: TypeAlias = Annotated[NodeId, Meta(max_length=64)]
Cert: TypeAlias = Annotated[bytes, Meta(max_length=2048)]
Check: TypeAlias = Annotated[str, Meta(max_length=20)]  # six digits


class Newcomer(Struct, frozen=True, kw_only=True):
    """A member that came by itself and that no person has acknowledged. `tag` stands for its certificate, `check` is
    the number it shows too; `by`: who let it in, `at`: when (Unix seconds)."""

    node: Id
    name: Text
    tag: Text
    check: Check
    how: Text = "window"
    by: Text = ""
    at: float = 0.0


class Waiter(Struct, frozen=True, kw_only=True):
    """Who asks to be let in; `by` heard it, `why` says why a person must decide."""

    node: Id
    name: Text
    cert: Cert
    check: Check
    why: Text = ""
    by: Id = NodeId("")
    address: Text = ""
    port: Port = 4000
    peer_port: Port = 4001


class Doors(Struct, frozen=True, tag="doors", kw_only=True):
    """The door of mesh `mesh` as the sender sees it. The higher `n` is the later word on the window, which is open for
    `left_s` more seconds. `kept`: a person has accepted somebody, so this mesh is not left for another one."""

    mesh: Text
    n: Annotated[int, Meta(ge=0, le=2**53)] = 0
    left_s: float = 0.0
    fixed: bool = False
    kept: bool = False
    newcomers: Annotated[tuple[Newcomer, ...], Meta(max_length=256)] = ()
    acknowledged: Annotated[tuple[Text, ...], Meta(max_length=1024)] = ()
    waiting: Annotated[tuple[Waiter, ...], Meta(max_length=64)] = ()
