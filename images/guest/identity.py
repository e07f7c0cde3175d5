"""The agent's key and certificate, and whom it listens to.

The certificate signs itself: the hub knows it by its fingerprint, read from the serial console. Whoever speaks to the agent
shows a certificate of the hub's own authority, which came with the instance's ``user_data``.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from pathlib import Path
from typing import Any

HUB_NAME = "hutch-hub"


def load_or_create(state: Path) -> tuple[Path, Path]:
    """The key and certificate files: made at first boot, the same ever after."""
    key, certificate = state / "agent.key", state / "agent.crt"
    if not (key.exists() and certificate.exists()):
        key_pem, certificate_pem = _create()
        write_private(key, key_pem)
        write_private(certificate, certificate_pem)
    return key, certificate


def fingerprint(certificate: Path) -> str:
    """The SHA-256 of the certificate in its binary form, as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest()


def server_context(key: Path, certificate: Path, hub_ca: str, protocols: list[str]) -> ssl.SSLContext:
    """TLS that asks everybody for a certificate of the hub's authority, and which of our protocols they speak."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(cadata=hub_ca)
    context.set_alpn_protocols(protocols)
    return context


def is_hub(peer_certificate: dict[str, Any] | None) -> bool:
    """The authority may sign for others than the hub itself: only its own name counts."""
    subject = (peer_certificate or {}).get("subject", ())
    return [value for part in subject for name, value in part if name == "commonName"] == [HUB_NAME]


def _create() -> tuple[bytes, bytes]:
    # imported here because only a first boot needs it, and it costs more than all else in this module
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hutch-agent")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # the clock of a fresh machine may be wrong; the hub trusts the fingerprint and no date
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime.now(UTC) + timedelta(days=36500))
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key_pem, certificate.public_bytes(serialization.Encoding.PEM)


def write_private(path: Path, content: bytes, owner: int = -1) -> None:
    """A file only we, or an account of this number, can read; there whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        # not by its name, which may be another file's by now in a folder of theirs
        os.fchown(file.fileno(), owner, -1)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
