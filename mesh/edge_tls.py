"""TLS on :4000: the certificate and key that `tls-cert` and `tls-key` name, and new ones when the files are renewed."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from mesh.chores import Stamps
from mesh.config import Config, ConfigError
from mesh.home import Home
from mesh.log import event

_log = logging.getLogger("mesh.tls")


class EdgeTls:
    """`context` is one and the same for as long as this lives: connections that are made after a renewal get what it
    holds then. `tell` gets a sentence that people should read."""

    def __init__(self, cert: Path, key: Path, tell: Callable[[str], None]) -> None:
        """Raises ConfigError, which names the setting and its file."""
        self._cert, self._key, self._tell = cert, key, tell
        self._stamps = Stamps(cert, key)
        self.context = _context(cert, key)
        _warn_of_readers(key, tell)

    @classmethod
    def of(cls, config: Config, home: Home, tell: Callable[[str], None]) -> EdgeTls | None:
        """None: :4000 speaks plain HTTP. Paths are below the home folder unless they begin with `/` or `~`. Raises
        ConfigError."""
        cert, key = config.tls_cert, config.tls_key
        if cert is None and key is None:
            return None
        if cert is None or key is None:
            there, missing = ("tls-cert", "tls-key") if key is None else ("tls-key", "tls-cert")
            raise ConfigError(f"'{there}' is set and '{missing}' is not: TLS at :4000 needs both, or neither")
        return cls(home.root / cert, home.root / key, tell)

    async def look(self) -> None:
        """Takes over what was renewed. What cannot be used is told of, and the certificate stays as it was: a renewal
        may have written one of its two files only."""
        if not self._stamps.changed():
            return
        try:
            await asyncio.to_thread(_context, self._cert, self._key)  # tried on another: half of it could be taken over
            _load(self.context, self._cert, self._key)
        except ConfigError as error:
            self._tell(f"the certificate of :4000 is not renewed: {error}")
        else:
            event(_log, logging.INFO, "certificate", f"the certificate of :4000 was renewed from {self._cert}")


def local_url(port: int, tls: EdgeTls | None) -> str:
    """The API, as programs on this machine reach it."""
    return f"{'https' if tls else 'http'}://localhost:{port}/v1"


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, cert, key)
    return context


def _load(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    for name, file in (("tls-cert", cert), ("tls-key", key)):
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"'{name}': {file} cannot be read: {error.strerror}") from None
        if b"-----BEGIN " not in text:
            raise ConfigError(f"'{name}': {file} is not in PEM form (-----BEGIN ...)")
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError, OSError) as error:
        raise ConfigError(_why_not(error, cert, key)) from None


def _no_password() -> str:
    """Nobody is there to be asked."""
    raise ValueError("a password is wanted")


def _why_not(error: Exception, cert: Path, key: Path) -> str:
    if isinstance(error, ValueError) and not isinstance(error, ssl.SSLError):
        return (
            f"'tls-key': {key} wants a password, which nobody can type here: give it without one, readable by you only"
        )
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return f"'tls-key': {key} is not the key of the certificate in {cert} ('tls-cert')"
    return f"'tls-cert' {cert} and 'tls-key' {key} cannot be used: {reason or error}"


def _warn_of_readers(key: Path, tell: Callable[[str], None]) -> None:
    if key.stat().st_mode & 0o077:
        tell(f"'tls-key': {key} can be read by other users of this machine: chmod 600 it")
