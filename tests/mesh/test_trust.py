"""Trust: who belongs as one node holds it, over restarts, with its own key; who is told when somebody came or went."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.errors import MeshError
from mesh.records import Record
from mesh.settings import TrustSettings
from mesh.trust import Change, Trust
from node.io.identity import load, renew
from tests.mesh.trusting import NOWHERE, admission, exchange, founder, identity, join, mesh_of, removal, trust


def kept(home: Path, notes: list[str] | None = None) -> Trust:
    tell = pytest.fail if notes is None else notes.append
    return Trust(home / "mesh", load(home, tell), tell)


def test_a_node_without_a_mesh_belongs_to_none_and_can_let_nobody_in() -> None:
    alone = trust(0)
    assert (alone.mesh_id, alone.belongs, dict(alone.members), alone.records()) == ("", False, {}, ())
    assert alone.member_of(alone.identity.cert) is None
    for refused in (lambda: alone.admit(identity(1).id, "b", identity(1).cert), lambda: alone.remove(identity(1).id)):
        with pytest.raises(MeshError, match="no member") as error:
            refused()
        assert error.value.code == "not_member"
    assert not alone.merge(founder(1).records())


def test_founding_joining_and_removing_are_there_after_a_restart(tmp_path: Path) -> None:
    one, two = kept(tmp_path / "one"), kept(tmp_path / "two")
    one.found("home", "one")
    join(two, one)
    assert one.members.keys() == two.members.keys() == {one.identity.id, two.identity.id}
    assert (two.mesh_id, two.mesh_name) == (one.mesh_id, "home")
    again = kept(tmp_path / "two")
    assert (again.members, again.mesh_id, again.belongs, again.digest) == (two.members, two.mesh_id, True, one.digest)
    one.remove(two.identity.id)
    again = kept(tmp_path / "one")
    assert set(again.removed) == {two.identity.id}
    assert again.was_removed(two.identity.id, two.identity.cert)
    assert (tmp_path / "one" / "mesh" / "members.json").stat().st_mode & 0o777 == 0o600
    again.forget()
    assert kept(tmp_path / "one").mesh_id == ""


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"records": [{"body": 5}]}', b"\xff" * 100])
def test_a_damaged_file_is_set_aside_with_a_word(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mesh" / "members.json"
    file.parent.mkdir()
    file.write_bytes(content)
    notes: list[str] = []
    assert kept(tmp_path, notes).mesh_id == ""
    assert len(notes) == 1
    assert len(list(file.parent.glob("members.json.broken-*"))) == 1


def test_a_file_that_was_edited_lets_in_nobody(tmp_path: Path) -> None:
    one = kept(tmp_path)
    one.found("home", "one")
    file = tmp_path / "mesh" / "members.json"
    stranger = founder(3)
    forged = Record(admission(stranger, identity(4)).body, b"x" * 70)
    other = Trust(tmp_path / "other", one.identity, pytest.fail)
    other.merge([forged])
    text = file.read_text().replace(one.mesh_id, stranger.mesh_id)
    file.write_text(text)
    notes: list[str] = []
    assert kept(tmp_path, notes).mesh_id == ""
    assert "cannot be verified" not in notes[0]
    assert "going on without it" in notes[0]


def test_a_new_key_makes_a_stranger_of_a_member(tmp_path: Path) -> None:
    one = kept(tmp_path)
    one.found("home", "one")
    (tmp_path / "node" / "key.pem").write_text("no key")
    notes: list[str] = []
    again = kept(tmp_path, notes)
    assert again.mesh_id == one.mesh_id
    assert not again.belongs
    assert "let into its mesh again" in notes[0]


def test_who_has_which_certificate() -> None:
    one, two = mesh_of(2)
    assert one.member_of(two.identity.cert) == two.identity.id
    assert one.member_of(identity(5).cert) is None
    assert one.member_of(b"") is None


def test_each_pair_of_members_has_a_key_that_nobody_else_has() -> None:
    one, two, three = mesh_of(3)
    assert one.pair_key(two.identity.id) == two.pair_key(one.identity.id) != one.pair_key(three.identity.id)
    assert len(one.pair_key(two.identity.id)) == 32
    other = founder(0)
    other._clock = lambda: 2000.0  # another founding of the same nodes
    other.found("default", "again")
    join(trust(1), other)
    assert other.pair_key(two.identity.id) != one.pair_key(two.identity.id)
    one.remove(two.identity.id)
    with pytest.raises(KeyError):
        one.pair_key(two.identity.id)


def test_watchers_hear_who_came_and_who_went_and_nothing_when_nothing_changes() -> None:
    one, heard = founder(), list[Change]()
    end = one.watch(heard.append)
    two = join(trust(1), one)
    assert heard.pop() == Change(came=frozenset({two.identity.id}))
    assert not one.merge(two.records())
    assert not heard
    one.admit(two.identity.id, "again", two.identity.cert)
    assert not heard
    one.remove(two.identity.id)
    assert heard.pop() == Change(gone=frozenset({two.identity.id}))
    one.forget()
    assert heard.pop() == Change(gone=frozenset({one.identity.id}), mesh=True)
    one.found("other", "one")
    assert heard.pop() == Change(came=frozenset({one.identity.id}), mesh=True)
    end()
    end()
    one.forget()
    assert not heard


def test_a_removed_node_is_let_back_by_a_person_only() -> None:
    one, two = mesh_of(2)
    one.remove(two.identity.id)
    assert two.merge(one.records())
    assert not two.belongs
    assert two.mesh_id == one.mesh_id
    with pytest.raises(MeshError, match="was removed") as error:
        one.admit(two.identity.id, "two", two.identity.cert)
    assert error.value.code == "removed"
    other_key, other_id = identity(5), two.identity.cert
    assert one.was_removed(two.identity.id, other_key.cert)
    assert one.was_removed(other_key.id, other_id)
    assert not one.was_removed(other_key.id, other_key.cert)
    join(two, one, again=True)
    assert two.belongs
    assert two.members[two.identity.id].n == 2
    assert not one.was_removed(two.identity.id, two.identity.cert)
    one.remove(two.identity.id)
    assert not one.merge(two.records())
    assert two.merge(one.records())
    assert not two.belongs


def test_what_cannot_be_admitted_says_why() -> None:
    one, two = mesh_of(2)
    new = identity(5)
    cases = {
        "bad_certificate": lambda: one.admit(new.id, "new", two.identity.cert),
        "self": lambda: one.remove(one.identity.id),
        "unknown_node": lambda: one.remove(new.id),
    }
    for code, refused in cases.items():
        with pytest.raises(MeshError) as error:
            refused()
        assert error.value.code == code
    full = trust(0, settings=TrustSettings(members_max=2))
    full.adopt(one.records())
    with pytest.raises(MeshError, match="as many as it may have") as error:
        full.admit(new.id, "new", new.cert)
    assert error.value.code == "mesh_full"


def test_an_id_with_another_key_is_let_in_by_nobody_while_the_first_is_a_member(tmp_path: Path) -> None:
    """An attacker that calls itself by a member's id; and a member whose key was lost."""
    one = founder()
    home = tmp_path / "two"
    first = load(home, pytest.fail)
    one.admit(first.id, "two", first.cert)
    (home / "node" / "key.pem").unlink()
    second = load(home, pytest.fail)
    assert second.id == first.id
    assert second.cert != first.cert
    with pytest.raises(MeshError, match="mesh remove two") as error:
        one.admit(second.id, "two", second.cert)
    assert error.value.code == "id_taken"
    one.remove(first.id)
    one.admit(second.id, "two", second.cert, again=True)
    assert one.member_of(second.cert) == second.id
    assert one.member_of(first.cert) is None


def test_only_records_that_admit_this_node_are_adopted() -> None:
    one, other = mesh_of(2)[0], trust(5)
    with pytest.raises(MeshError, match="do not admit this node") as error:
        other.adopt(one.records())
    assert error.value.code == "not_admitted"
    with pytest.raises(MeshError):
        other.adopt(())
    assert other.mesh_id == ""


def test_adopting_an_old_list_takes_back_no_removal_that_is_known_here() -> None:
    one, two, three = mesh_of(3)
    old = one.records()
    one.remove(three.identity.id)
    two.merge(one.records())
    two.adopt(old)
    assert three.identity.id in two.removed


def test_at_the_bound_of_records_nothing_is_lost_and_a_person_is_told() -> None:
    one = trust(0, settings=TrustSettings(records_max=2))
    one.found("default", "one")
    join(trust(1), one)
    before = one.records()
    with pytest.raises(MeshError, match="at their bound") as error:
        one.admit(identity(2).id, "three", identity(2).cert)
    assert error.value.code == "too_many"
    assert one.records() == before


def test_what_is_not_taken_is_counted_by_reason_and_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, _ = mesh_of(3)
    one.remove(two.identity.id)
    bad = admission(two, identity(5))
    forged = Record(admission(two, identity(6)).body, b"x")
    asked: list[bytes] = []
    from node.io import identity as keys  # noqa: PLC0415 - the module whose function is watched

    real = keys.verify
    monkeypatch.setattr(keys, "verify", lambda c, d, s: asked.append(s) or real(c, d, s))
    for _ in range(3):
        assert not one.merge([bad, forged])
    assert sorted(asked) == sorted({bad.signature, b"x"})
    assert one.refused == {"signer_removed": 3, "forged": 3}


def test_a_removed_node_cannot_let_itself_back() -> None:
    one, two, three = mesh_of(3)
    hidden = admission(two, two.identity, n=2)
    one.remove(two.identity.id)
    assert not one.merge([hidden])
    three.merge([hidden])  # it was told of that first
    three.merge(one.records())
    exchange([one, three])
    assert two.identity.id not in one.members
    assert one.digest == three.digest


def test_a_copied_disk_takes_a_new_key_that_the_old_one_lets_in(tmp_path: Path) -> None:
    one, copy = kept(tmp_path / "one"), kept(tmp_path / "copied")
    one.found("home", "one")
    join(copy, one)
    before, heard = copy.identity, list[Change]()
    copy.watch(heard.append)
    copy.renew(renew(tmp_path / "copied"), "copy")
    assert copy.belongs
    assert copy.identity.id != before.id
    assert copy.identity.cert != before.cert
    assert heard == [Change(came=frozenset({copy.identity.id})), Change()]
    assert one.merge(copy.records())
    assert one.pair_key(copy.identity.id) == copy.pair_key(one.identity.id)
    again = kept(tmp_path / "copied")
    assert again.belongs
    assert again.identity.id == copy.identity.id
    notes: list[str] = []
    full = Trust(NOWHERE, one.identity, notes.append, lambda _path, _data: None, settings=TrustSettings(members_max=3))
    full.adopt(one.records())
    full.renew(identity(7), "full")
    assert (full.identity.id, full.belongs) == (identity(7).id, False)
    assert "not let in by the old one" in notes[0]
    alone = trust(5)
    alone.renew(identity(6), "alone")
    assert (alone.identity.id, alone.mesh_id) == (identity(6).id, "")


def test_a_removal_that_was_fought_off_is_known_of_and_harms_nobody() -> None:
    """The senior one stands; the junior one is out, by the other's removal only."""
    one, two, three = mesh_of(3)
    held = [removal(two, one.identity, n=1)]
    one.remove(two.identity.id)
    assert one.merge(held)
    assert one.belongs
    assert set(one.members) == {one.identity.id, three.identity.id}
    assert NOWHERE.exists() is False
