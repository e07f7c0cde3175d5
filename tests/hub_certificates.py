"""How somebody comes to an agent's door: with a certificate of the hub's authority, in any name, or with none."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from spawner.agent_tls import HubIdentity, make_certificate


def context_for(tmp_path: Path, identity: HubIdentity, name: str) -> ssl.SSLContext:
    """A certificate of the hub's own authority, in another name."""
    identity.hub_ca_pem()
    pem = (identity._folder / "authority.pem").read_bytes()
    authority_key = serialization.load_pem_private_key(pem, password=None)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = make_certificate(name, key, x509.load_pem_x509_certificate(pem), authority_key, datetime.now(UTC))
    encoding = serialization.Encoding.PEM
    file = tmp_path / "client.pem"
    file.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(encoding)
    )
    context = anonymous()
    context.load_cert_chain(file)
    return context


def anonymous() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
