"""The hub's own authority, the certificate it shows to agents, and those that it makes for notebooks.

An agent is told the authority at boot (``user_data``) and serves nobody who lacks a certificate for the name ``hutch-hub`` from
it. Both live in one private folder, which every process of the hub may open at any time: the first makes them.
"""

from __future__ import annotations

import fcntl
import os
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from certipy import Certipy
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HUB_NAME = "hutch-hub"
AUTHORITY_NAME = "hutch-hub-authority"
AUTHORITY_LIFE = timedelta(days=20 * 365)
"""Agents know the authority from their first boot and are never told another: it must outlive every instance."""
CERTIFICATE_LIFE = timedelta(days=365)
LOOK_AGAIN_SECONDS = 3600.0
CLOCKS_MAY_DIFFER_BY = timedelta(days=1)

PrivateKey = ec.EllipticCurvePrivateKey


def notebook_certificate(address: str, hosts: Sequence[str], store: Path, trusted: Path) -> dict[str, str]:
    """What a notebook at this address, behind a proxy with these hosts, needs: key, certificate, and whom it lets in.

    JupyterHub makes its own before the address is known, and keeps those of all servers of a user in one file: so they are made
    here for each launch, in memory, by JupyterHub's authority for notebooks in `store`. trusted: the bundle of the hub and proxy.
    """
    files = Certipy(store_dir=str(store)).store.get_record("notebooks-ca")["files"]
    authority = x509.load_pem_x509_certificate(Path(files["cert"]).read_bytes())
    authority_key = serialization.load_pem_private_key(Path(files["key"]).read_bytes(), password=None)
    key = ec.generate_private_key(ec.SECP256R1())
    # the proxy compares with the host that the browser asked for, the hub with the address
    names = [x509.IPAddress(ip_address(address)), *map(x509.DNSName, hosts)]
    certificate = make_certificate("hutch-notebook", key, authority, authority_key, datetime.now(UTC), names, AUTHORITY_LIFE)
    told = {"key": _pem(key).decode(), "certificate": certificate.public_bytes(serialization.Encoding.PEM).decode()}
    return told | {"trusted": trusted.read_text(), "address": address}


class HubIdentity:
    """Key material in ``folder``, made when it is missing and renewed in the last tenth of its life."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = folder / "authority.pem"
        self._certificate = folder / "hub.pem"
        self._ca_pem = ""
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._look_again_at = 0.0

    def hub_ca_pem(self) -> str:
        """The authority's certificate, as it goes into ``user_data``."""
        self._look()
        return self._ca_pem

    def client_context(self, protocol: str = "http/1.1") -> ssl.SSLContext:
        """TLS that shows the hub's certificate. Whoever uses it must pin the agent's fingerprint: nothing else is checked."""
        self._look()
        if protocol not in self._contexts:
            self._contexts[protocol] = self._make_context(protocol)
        return self._contexts[protocol]

    def _look(self) -> None:
        """Reads the folder at first use and then every hour: each launch needs what is in it."""
        if not self._ca_pem or time.monotonic() > self._look_again_at:
            self._prepare()
            authority = x509.load_pem_x509_certificate(self._authority.read_bytes())
            self._ca_pem = authority.public_bytes(serialization.Encoding.PEM).decode()
            self._contexts.clear()
            self._look_again_at = time.monotonic() + LOOK_AGAIN_SECONDS

    def _make_context(self, protocol: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(self._certificate)
        context.set_alpn_protocols([protocol])
        return context

    def _prepare(self) -> None:
        with self._only_one():
            if not _is_fresh(self._authority, AUTHORITY_LIFE):
                # the same key again, so that agents that know the old certificate accept what it signs
                key = _read_key(self._authority) if self._authority.exists() else ec.generate_private_key(ec.SECP256R1())
                _write(self._authority, key, make_authority(key, datetime.now(UTC)))
            if not _is_fresh(self._certificate, CERTIFICATE_LIFE):
                authority = x509.load_pem_x509_certificate(self._authority.read_bytes())
                key = ec.generate_private_key(ec.SECP256R1())
                certificate = make_certificate(HUB_NAME, key, authority, _read_key(self._authority), datetime.now(UTC))
                _write(self._certificate, key, certificate)

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        """Two processes that start together must not make two authorities."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def make_authority(key: PrivateKey, now: datetime) -> x509.Certificate:
    name = _name(AUTHORITY_NAME)
    return (
        _builder(name, name, key, now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def make_certificate(
    name: str,
    key: PrivateKey,
    authority: x509.Certificate,
    authority_key: Any,
    now: datetime,
    names: Sequence[x509.GeneralName] = (),
    life: timedelta = CERTIFICATE_LIFE,
) -> x509.Certificate:
    """A certificate with which ``name`` may open connections, and be reached by the names, and do nothing else."""
    uses = [x509.ExtendedKeyUsageOID.CLIENT_AUTH, *([x509.ExtendedKeyUsageOID.SERVER_AUTH] if names else [])]
    builder = _builder(_name(name), authority.subject, key, now, life)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: PrivateKey, now: datetime, life: timedelta) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_MAY_DIFFER_BY)
        .not_valid_after(now + life)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    encrypts = dict.fromkeys(("key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False)
    signs = {"digital_signature": not signs_certificates, "key_cert_sign": signs_certificates, "crl_sign": signs_certificates}
    return x509.KeyUsage(**encrypts, **signs, content_commitment=False)


def _is_fresh(path: Path, life: timedelta) -> bool:
    if not path.exists():
        return False
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.not_valid_after_utc - datetime.now(UTC) > life / 10


def _read_key(path: Path) -> PrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, PrivateKey)
    return key


def _pem(key: PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, key: PrivateKey, certificate: x509.Certificate) -> None:
    """Key and certificate in one file, so that nobody ever sees one without the other."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(_pem(key) + certificate.public_bytes(serialization.Encoding.PEM))
    partial.replace(path)
