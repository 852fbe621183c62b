"""Certificates for tests, made by the `openssl` program."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make(folder: Path, name: str = "edge", *, password: str = "") -> tuple[Path, Path]:
    """FOLDER/NAME.pem and its key NAME.key, for localhost and 127.0.0.1, signed by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    secret = ["-passout", f"pass:{password}"] if password else ["-nodes"]
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert), *secret),
        ],
        check=True,
        capture_output=True,
    )
    key.chmod(0o600)
    return cert, key
