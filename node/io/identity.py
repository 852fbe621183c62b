"""Who this node is: a random id and one key, made once per home and kept in `node/`; and what is done with the key.

The key (EC P-256) signs, is the one of TLS on the peer port, and gives a key per pair of nodes: docs/adr/0012-trust.md.
This is the only file that knows `cryptography`.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from node.errors import NodeError, NodeErrorCode
from node.types import NodeId

CERT_BYTES_MAX = 1024  # ours has about 400
_ID = re.compile(r"[0-9a-f]{16}")
_FROM, _UNTIL = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)  # a wrong clock breaks nothing
_PAIR = b"mlx-stack-mesh pair key 1\0"


def node_id(home: Path, note: Callable[[str], None]) -> NodeId:
    """Reads `home`/node/id, or makes it. A file that holds no id is moved aside and `note` gets a sentence about it.

    Raises NodeError(INTERNAL) when the folder cannot be read or written.
    """
    file = home / "node" / "id"
    try:
        known = _read(file)
        if known is not None:
            return known
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            aside = _aside(file)
            file.rename(aside)
            note(f"{file} held no node id; moved to {aside.name}, this node gets a new id")
        return _make(file)
    except OSError as error:
        raise _not_kept(file, error) from error


def new_id(home: Path) -> NodeId:
    """Replaces the id in `home`/node/id by a new one: another machine has it too. Raises NodeError(INTERNAL)."""
    file = home / "node" / "id"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return _make(file)
    except OSError as error:
        raise _not_kept(file, error) from error


class Identity:
    """A node's id, its key and its self-signed certificate, whose common name is the id.

    `cert` is DER. `key_file` and `cert_file` are the same as PEM, for `ssl`; the key's is readable by this user only.
    """

    def __init__(self, id_: NodeId, key: ec.EllipticCurvePrivateKey, cert: bytes, folder: Path) -> None:
        self.id, self.cert, self._key = id_, cert, key
        self.key_file, self.cert_file = folder / "key.pem", folder / "cert.pem"
        self.fingerprint = fingerprint(cert)

    def __repr__(self) -> str:
        return f"Identity({self.id})"  # never the key

    def sign(self, data: bytes) -> bytes:
        """ECDSA with SHA-256. What is signed for different ends must begin differently: this key has several."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))

    def pair_key(self, cert: bytes, salt: bytes) -> bytes:
        """32 bytes that only this node and the owner of `cert` can know, the same on both sides for the same `salt`.
        Raises ValueError for a certificate that holds no key of this kind."""
        shared = self._key.exchange(ec.ECDH(), _public(_read_cert(cert)))
        both = b"".join(sorted(hashlib.sha256(c).digest() for c in (self.cert, cert)))
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=_PAIR + both).derive(shared)


def load(home: Path, note: Callable[[str], None]) -> Identity:
    """This home's identity, made where it is missing. What cannot be read is moved aside and `note` gets a sentence.

    A certificate can be made again from the key and the id, byte for byte; a key cannot: a node with a new one must be
    let into its mesh again. Raises NodeError(INTERNAL) when the folder cannot be read or written.
    """
    id_ = node_id(home, note)
    folder = home / "node"
    try:
        key = _kept_key(folder / "key.pem", note)
        if key is None:
            return _save(id_, ec.generate_private_key(ec.SECP256R1()), folder)
        identity = Identity(id_, key, _certificate(id_, key), folder)
        if _content(identity.cert_file) != _pem(identity.cert):
            _write(identity.cert_file, _pem(identity.cert))
        return identity
    except OSError as error:
        raise _not_kept(folder, error) from error


def fresh(folder: Path) -> Identity:
    """A new id and a new key, not on disk yet: `keep` writes them to `folder`."""
    id_, key = NodeId(secrets.token_hex(8)), ec.generate_private_key(ec.SECP256R1())
    return Identity(id_, key, _certificate(id_, key), folder)


def keep(identity: Identity) -> None:
    """Writes an identity over the one in its folder. Raises NodeError(INTERNAL)."""
    folder = identity.key_file.parent
    try:
        _write(folder / "id", f"{identity.id}\n".encode("ascii"))
        _save(identity.id, identity._key, folder)  # noqa: SLF001 - the key leaves this file in no other way
    except OSError as error:
        raise _not_kept(folder, error) from error


def renew(home: Path) -> Identity:
    """A new id and a new key in place of what `home` has: another machine has them too. Raises NodeError(INTERNAL)."""
    identity = fresh(home / "node")
    keep(identity)
    return identity


def fingerprint(cert: bytes) -> str:
    """SHA-256 of a certificate (DER), hex."""
    return hashlib.sha256(cert).hexdigest()


def verify(cert: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the owner of `cert` (DER) has signed `data`. False for anything that cannot be read; raises nothing."""
    try:
        _public(_read_cert(cert)).verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def owner(cert: bytes) -> str:
    """The node id that a certificate names, if it is one as nodes make them: small, in exact DER, signed by the P-256
    key it holds. Else "": it must not get into the list of those that TLS trusts, and break it for all."""
    try:
        read = _read_cert(cert)
        _public(read)
        read.verify_directly_issued_by(read)
        exact = read.public_bytes(serialization.Encoding.DER) == cert
        names = [str(a.value) for a in read.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except Exception:  # noqa: BLE001 - a stranger's bytes fail in many ways, each with an error of its own
        return ""
    return names[0] if exact and len(names) == 1 and _ID.fullmatch(names[0]) else ""


def _read_cert(cert: bytes) -> x509.Certificate:
    """Raises ValueError and nothing else."""
    if len(cert) > CERT_BYTES_MAX:
        raise ValueError("too long for a certificate of a node")
    try:
        return x509.load_der_x509_certificate(cert)
    except Exception as error:  # as in owner()
        raise ValueError("no certificate") from error


def _public(cert: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Raises ValueError."""
    try:
        key = cert.public_key()
    except Exception as error:  # as in owner()
        raise ValueError("no key that can be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not a P-256 key")
    return key


def _certificate(id_: NodeId, key: ec.EllipticCurvePrivateKey) -> bytes:
    """DER; a function of the id and the key alone (RFC 6979), so that a lost file is no lost membership."""
    public = key.public_key()
    point = public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, id_)])
    usage = x509.KeyUsage(
        digital_signature=True, key_agreement=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(int.from_bytes(hashlib.sha256(point).digest()[:15]) + 1)
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return built.public_bytes(serialization.Encoding.DER)


def _kept_key(file: Path, note: Callable[[str], None]) -> ec.EllipticCurvePrivateKey | None:
    """The key in `file`; None when there is none, or what was there is set aside. Raises OSError."""
    data = _content(file)
    if data is None:
        return None
    try:
        key = serialization.load_pem_private_key(data, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("not a P-256 key")
    except (ValueError, TypeError):
        aside = _aside(file)
        file.rename(aside)
        note(f"{file} held no key; moved to {aside.name}, this node gets a new key and must be let into its mesh again")
        return None
    if file.stat().st_mode & 0o077:
        file.chmod(0o600)
        note(f"{file} could be read by others: now by this user only")
    return key


def _save(id_: NodeId, key: ec.EllipticCurvePrivateKey, folder: Path) -> Identity:
    """Raises OSError."""
    identity = Identity(id_, key, _certificate(id_, key), folder)
    kind = serialization.PrivateFormat.PKCS8
    _write(identity.key_file, key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))
    _write(identity.cert_file, _pem(identity.cert))
    return identity


def _pem(cert: bytes) -> bytes:
    return x509.load_der_x509_certificate(cert).public_bytes(serialization.Encoding.PEM)


def _content(file: Path) -> bytes | None:
    """None when there is no such file. Raises OSError."""
    try:
        with file.open("rb") as data:
            return data.read(64 << 10)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        return b""


def _read(file: Path) -> NodeId | None:
    """The id in `file`; None when there is no file, or something else in it."""
    text = (_content(file) or b"")[:64].decode("ascii", "replace").strip()
    return NodeId(text) if _ID.fullmatch(text) else None


def _aside(file: Path) -> Path:
    """A free name beside `file`."""
    return next(p for n in range(1, 10_000) if not (p := file.with_name(f"{file.name}.bad-{n}")).exists())


def _make(file: Path) -> NodeId:
    made = NodeId(secrets.token_hex(8))
    _write(file, f"{made}\n".encode("ascii"))
    return made


def _write(file: Path, data: bytes) -> None:
    """So that a power cut leaves the whole file or none, and nobody else can read it. Raises OSError."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)  # of a process that died here, with this number
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _not_kept(file: Path, error: OSError) -> NodeError:
    return NodeError(NodeErrorCode.INTERNAL, f"cannot keep this node's identity in {file}: {error.strerror}")
