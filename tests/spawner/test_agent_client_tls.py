"""The hub's own authority and certificate."""

from __future__ import annotations

import multiprocessing
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from spawner import agent_tls
from spawner.agent_tls import HubIdentity, make_authority, make_certificate


def certificates(folder: Path) -> tuple[x509.Certificate, x509.Certificate]:
    authority, hub = (x509.load_pem_x509_certificate((folder / name).read_bytes()) for name in ("authority.pem", "hub.pem"))
    return authority, hub


def test_the_folder_and_its_files_are_private(tmp_path):
    HubIdentity(tmp_path / "agents").client_context()
    assert stat.S_IMODE((tmp_path / "agents").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "agents").iterdir()} == {0o600}


def test_the_certificate_is_for_the_hub_and_signed_by_the_authority(tmp_path):
    HubIdentity(tmp_path).client_context()
    authority, hub = certificates(tmp_path)
    hub.verify_directly_issued_by(authority)
    assert hub.subject.rfc4514_string() == "CN=hutch-hub"


def test_no_key_leaves_with_the_authority(tmp_path):
    pem = HubIdentity(tmp_path).hub_ca_pem()
    assert "PRIVATE" not in pem
    assert x509.load_pem_x509_certificate(pem.encode()) == certificates(tmp_path)[0]


def test_opened_again_nothing_changes(tmp_path):
    HubIdentity(tmp_path).client_context()
    before = certificates(tmp_path)
    HubIdentity(tmp_path).client_context()
    assert certificates(tmp_path) == before


def read_authority(folder: Path, start, answers) -> None:
    start.wait()
    answers.put(HubIdentity(folder).hub_ca_pem())


def test_processes_that_start_together_agree_on_one_authority(tmp_path):
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(6), context.Queue()
    processes = [context.Process(target=read_authority, args=(tmp_path / "agents", start, answers)) for _ in range(6)]
    for process in processes:
        process.start()
    assert len({answers.get(timeout=30) for _ in processes}) == 1
    for process in processes:
        process.join()


def test_a_certificate_about_to_expire_is_renewed(tmp_path):
    HubIdentity(tmp_path).client_context()
    authority, _ = certificates(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    long_ago = datetime.now(UTC) - agent_tls.CERTIFICATE_LIFE + timedelta(days=1)
    old = make_certificate("hutch-hub", key, authority, agent_tls._read_key(tmp_path / "authority.pem"), long_ago)
    agent_tls._write(tmp_path / "hub.pem", key, old)
    HubIdentity(tmp_path).client_context()
    same_authority, new = certificates(tmp_path)
    assert same_authority == authority
    assert new.not_valid_after_utc > old.not_valid_after_utc + timedelta(days=300)


def test_an_authority_about_to_expire_is_renewed_and_agents_booted_with_the_old_one_need_not_know(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    old = make_authority(key, datetime.now(UTC) - agent_tls.AUTHORITY_LIFE + timedelta(days=1))
    agent_tls._write(tmp_path / "authority.pem", key, old)
    HubIdentity(tmp_path).client_context()
    new, hub = certificates(tmp_path)
    assert new.not_valid_after_utc > old.not_valid_after_utc + timedelta(days=300)
    hub.verify_directly_issued_by(old)
