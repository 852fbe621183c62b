"""The node's id and its key: made once, kept, and never the reason for a crash."""

from __future__ import annotations

import re
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import NodeError
from node.io.identity import fresh, keep, load, new_id, node_id, owner, renew, verify

ONE = fresh(Path("/nowhere"))


def test_made_once_and_kept(tmp_path: Path) -> None:
    notes: list[str] = []
    made = node_id(tmp_path, notes.append)
    assert re.fullmatch(r"[0-9a-f]{16}", made)
    assert node_id(tmp_path, notes.append) == made
    assert notes == []
    assert [f.name for f in (tmp_path / "node").iterdir()] == ["id"]
    assert node_id(tmp_path / "other", notes.append) != made


@pytest.mark.parametrize(
    "content", [b"", b"0123456789abcde", b"0123456789ABCDEF", b"\xff" * 16, b"x" * 10**6, b"0" * 17]
)
def test_a_foreign_file_is_moved_aside_with_a_message(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "node" / "id"
    file.parent.mkdir()
    file.write_bytes(content)
    notes: list[str] = []
    made = node_id(tmp_path, notes.append)
    assert len(notes) == 1
    assert "id.bad-1" in notes[0]
    assert (tmp_path / "node" / "id.bad-1").read_bytes() == content
    assert node_id(tmp_path, notes.append) == made


def test_every_foreign_file_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "node" / "id"
    file.parent.mkdir()
    for content in ("first", "second"):
        file.write_text(content)
        node_id(tmp_path, lambda _: None)
    assert (tmp_path / "node" / "id.bad-1").read_text() == "first"
    assert (tmp_path / "node" / "id.bad-2").read_text() == "second"


def test_a_folder_in_its_place_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "node" / "id").mkdir(parents=True)
    notes: list[str] = []
    assert len(node_id(tmp_path, notes.append)) == 16
    assert len(notes) == 1


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("a file where the folder should be")
    with pytest.raises(NodeError, match=re.escape(str(tmp_path))):
        node_id(tmp_path, lambda _: None)


def test_a_new_id_replaces_the_one_that_another_machine_has_too(tmp_path: Path) -> None:
    before = node_id(tmp_path, pytest.fail)
    after = new_id(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{16}", after)
    assert after != before
    assert node_id(tmp_path, pytest.fail) == after
    assert [f.name for f in (tmp_path / "node").iterdir()] == ["id"]
    (tmp_path / "other").write_text("a file where the folder should be")
    with pytest.raises(NodeError, match="other"):
        new_id(tmp_path / "other")


def test_the_key_is_made_once_kept_and_for_this_user_only(tmp_path: Path) -> None:
    made = load(tmp_path, pytest.fail)
    again = load(tmp_path, pytest.fail)
    assert (again.id, again.cert, again.fingerprint) == (made.id, made.cert, made.fingerprint)
    assert verify(again.cert, b"words", made.sign(b"words"))
    assert not verify(again.cert, b"other words", made.sign(b"words"))
    for name in ("id", "key.pem", "cert.pem"):
        assert (tmp_path / "node" / name).stat().st_mode & 0o777 == 0o600
    assert owner(made.cert) == made.id
    assert "PRIVATE" not in repr(made)


def test_a_lost_certificate_is_made_again_the_same_so_that_the_node_is_still_known(tmp_path: Path) -> None:
    made = load(tmp_path, pytest.fail)
    made.cert_file.unlink()
    assert load(tmp_path, pytest.fail).cert == made.cert
    made.cert_file.write_text("something else")
    assert load(tmp_path, pytest.fail).cert == made.cert
    ssl.create_default_context().load_cert_chain(made.cert_file, made.key_file)


def test_a_key_that_others_could_read_is_closed_with_a_word(tmp_path: Path) -> None:
    made = load(tmp_path, pytest.fail)
    made.key_file.chmod(0o644)
    notes: list[str] = []
    assert load(tmp_path, notes.append).cert == made.cert
    assert made.key_file.stat().st_mode & 0o777 == 0o600
    assert "could be read by others" in notes[0]


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_holds_no_key_is_set_aside_and_the_node_has_a_new_one(tmp_path: Path, content: bytes) -> None:
    made = load(tmp_path, pytest.fail)
    made.key_file.write_bytes(content)
    notes: list[str] = []
    again = load(tmp_path, notes.append)
    assert again.id == made.id
    assert again.cert != made.cert
    assert (tmp_path / "node" / "key.pem.bad-1").read_bytes() == content
    assert len(notes) == 1
    assert "must be let into its mesh again" in notes[0]
    assert load(tmp_path, pytest.fail).cert == again.cert


def test_a_pair_has_one_key_for_each_salt(tmp_path: Path) -> None:
    one, two, three = (load(tmp_path / name, pytest.fail) for name in ("one", "two", "three"))
    assert one.pair_key(two.cert, b"mesh") == two.pair_key(one.cert, b"mesh")
    keys = {one.pair_key(two.cert, b"mesh"), one.pair_key(two.cert, b"other"), one.pair_key(three.cert, b"mesh")}
    assert len(keys) == 3
    assert {len(key) for key in keys} == {32}
    with pytest.raises(ValueError, match="certificate"):
        one.pair_key(b"none", b"mesh")


def test_a_copied_disk_gets_another_id_and_another_key(tmp_path: Path) -> None:
    before = load(tmp_path, pytest.fail)
    after = renew(tmp_path)
    assert (after.id, after.cert) != (before.id, before.cert)
    assert load(tmp_path, pytest.fail).cert == after.cert
    assert owner(after.cert) == after.id


def test_an_identity_that_cannot_be_kept_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    made = fresh(tmp_path / "nobody")
    with pytest.raises(NodeError, match="nobody"):
        keep(made)


@given(data=st.data())
def test_bytes_that_are_no_certificate_of_a_node_name_nobody_and_break_nothing(data: st.DataObject) -> None:
    """What a library makes of a bent certificate is its affair: here it is no certificate."""
    cert = bytearray(ONE.cert)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(cert) - 1))
        match data.draw(st.sampled_from(["bend", "cut", "insert"])):
            case "bend":
                cert[at] = data.draw(st.integers(0, 255))
            case "cut":
                del cert[at : at + data.draw(st.integers(1, 8))]
            case _:
                cert[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        if not cert:
            break
    bent = bytes(cert)
    if bent != ONE.cert:
        assert owner(bent) == ""
    verify(bent, b"words", ONE.sign(b"words"))
    with suppress(ValueError):
        ONE.pair_key(bent, b"")


def test_certificates_of_other_kinds_name_nobody() -> None:
    assert owner(b"") == owner(b"x" * 5000) == ""
    assert not verify(b"", b"", b"")
    assert not verify(ONE.cert, b"", b"")
