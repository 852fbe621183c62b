"""MeshError: what is wrong between nodes, or with a command about them, as a person will read it."""

from __future__ import annotations


class MeshError(Exception):
    """`code` names the kind, `message` says what and why, `hint` what to do about it ("" when nothing is known).

    Kinds: too_large, garbled, unknown_kind, other_version (mesh/wire.py); bad_address, cannot_resolve,
    ambiguous_address, refused, unreachable, not_a_node, other_mesh, self, peer_port_unreachable (mesh/lookup.py);
    unknown_machine, ambiguous_machine, tailscale_... (mesh/tailnet.py); unknown_node, ambiguous_node (mesh/names.py);
    not_member, not_admitted, mesh_full, removed, bad_certificate, id_taken, generations, too_many (mesh/trust.py).
    `status` is the HTTP status on the admin API.
    """

    def __init__(self, code: str, message: str, *, hint: str = "", status: int = 400) -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.code, self.message, self.hint, self.status = code, message, hint, status


def leaves(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    """Every exception in a group of groups."""
    found: list[Exception] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
