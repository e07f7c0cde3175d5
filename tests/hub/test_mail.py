"""Mail over a real SMTP server: sent once, tried again when it was certainly not taken, never sent twice."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from databases import database_url, upgrade
from running_hub import free_port
from sqlalchemy import select
from sqlalchemy.orm import Session
from structlog.testing import capture_logs
from traitlets import TraitError
from traitlets.config import Config

from hub import mail, notices, queue
from hub.configuration import Hutch
from hub.database.engine import open_database
from hub.database.tables import Notice, User, now
from hub.facility import Facility
from hub.steward.__main__ import Steward


class Postbox:
    """What the server took; `say` is what it says to the next mail, and `drop` whether it goes away once it has it."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.say, self.drop = "250 taken", False

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        if self.drop:
            server.transport.abort()
        elif not self.say.startswith("250"):
            self.mails.pop()
        return self.say


@pytest.fixture
def postbox() -> Postbox:
    return Postbox()


@pytest.fixture
def serve(postbox: Postbox) -> Iterator[Callable[..., str]]:
    """Starts the server, and says where."""
    running: list[Controller] = []

    def start(port: int = 0, **options: Any) -> str:
        running.append(Controller(postbox, hostname="localhost", port=port or free_port(), **options))
        running[-1].start()
        return f"smtp://localhost:{running[-1].port}"

    yield start
    for controller in running:
        controller.stop()


async def test_a_mail_arrives_with_every_letter_and_nothing_in_its_head_that_was_not_meant(serve, postbox):
    hutch = Hutch(smtp_url=serve(), mail_from="Hutch <hutch@facility.example>")
    await mail.send(hutch, "cagla@facility.example", "Films “α” was stopped\nBcc: all@facility.example", "Grüße aus Łódź.\n")
    (got,) = postbox.mails
    assert (got["From"], got["To"]) == ("Hutch <hutch@facility.example>", "cagla@facility.example")
    assert got["Subject"] == "Films “α” was stopped Bcc: all@facility.example" and got["Bcc"] is None
    assert got.get_content().strip() == "Grüße aus Łódź."
    assert got["Message-ID"].endswith("@facility.example>") and got["Auto-Submitted"] == "auto-generated"


async def test_without_a_server_nothing_is_sent():
    await mail.send(Hutch(), "ann@facility.example", "Hello", "there")


@pytest.mark.parametrize(
    ("say", "drop", "error"),
    [("451 later", False, mail.NotSentError), ("550 no", False, mail.NotSentError), ("250 taken", True, mail.MailError)],
    ids=["not-now", "never", "unknown"],
)
async def test_what_did_not_go_well_says_whether_it_was_sent(serve, postbox, say, drop, error):
    postbox.say, postbox.drop = say, drop
    with pytest.raises(mail.MailError) as raised:
        await mail.send(Hutch(smtp_url=serve()), "ann@facility.example", "Hello", "there")
    assert type(raised.value) is error


# --- signing on


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of localhost, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    at = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), at - timedelta(1), at + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "server.pem").write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return tmp_path / "server.pem"


@pytest.fixture
def signed_on(certificate: Path, serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Hutch, list[bytes]]:
    """Settings for a server that asks for a password, and the passwords that it heard."""
    monkeypatch.setenv("HUTCH_CONFIG", str(tmp_path / "jupyterhub_config.py"))
    (tmp_path / "login").write_text("hutch\nopen sesame\n")
    heard: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def check(_server: Any, _session: Any, _envelope: Any, _mechanism: str, auth: Any) -> AuthResult:
        heard.append(auth.password)
        return AuthResult(success=auth.password == b"open sesame")

    url = serve(tls_context=context, authenticator=check, auth_required=True)
    return Hutch(smtp_url=url, smtp_login_file="login"), heard


async def test_the_password_goes_to_a_server_that_is_trusted(signed_on, postbox, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    await mail.send(signed_on[0], "ann@facility.example", "Hello", "there")
    assert len(postbox.mails) == 1


async def test_the_password_goes_to_nobody_else(signed_on, postbox):
    hutch, heard = signed_on
    with pytest.raises(mail.NotSentError, match="cannot be used"):
        await mail.send(hutch, "ann@facility.example", "Hello", "there")
    assert not heard and not postbox.mails


async def test_a_server_that_cannot_encrypt_gets_no_password(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("HUTCH_CONFIG", str(tmp_path / "jupyterhub_config.py"))
    (tmp_path / "login").write_text("hutch\nopen sesame")
    with pytest.raises(mail.NotSentError, match="cannot be used"):
        await mail.send(Hutch(smtp_url=serve(), smtp_login_file="login"), "ann@facility.example", "Hello", "there")


@pytest.mark.parametrize("login", [None, b"hutch", b"\xff\n"], ids=["missing", "no-password", "no-text"])
async def test_without_a_login_that_can_be_read_nothing_is_sent(serve, tmp_path, monkeypatch, login):
    monkeypatch.setenv("HUTCH_CONFIG", str(tmp_path / "jupyterhub_config.py"))
    if login is not None:
        (tmp_path / "login").write_bytes(login)
    with pytest.raises(mail.NotSentError, match="cannot be used"):
        await mail.send(Hutch(smtp_url=serve(), smtp_login_file="login"), "ann@facility.example", "Hello", "there")


async def test_to_what_is_no_address_nothing_is_sent(serve):
    with pytest.raises(mail.NotSentError, match="is no address"):
        await mail.send(Hutch(smtp_url=serve()), "ann@facility.example\nBcc: all@facility.example", "Hello", "there")


def test_another_kind_of_address_is_refused():
    with pytest.raises(TraitError, match="smtp://"):
        Hutch(smtp_url="localhost:25")


# --- notices


@pytest.fixture
def steward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steward:
    """Tries again at once. Ann has an address, bob has none."""
    monkeypatch.setattr(queue, "FIRST_PAUSE", timedelta(0))
    url = database_url(tmp_path)
    upgrade(open_database(url))
    facility = Facility(Hutch(config=Config(Hutch={"database_url": url})))

    def people(session: Session) -> None:
        session.add(User(id="1", login="ann", given_name="Ann", family_name="L", email="ann@facility.example"))
        session.add(User(id="2", login="bob", given_name="Bob", family_name="L"))
        session.flush()
        for user_id in ("1", "2"):
            notices.tell(session, user_id, "Films was stopped", "You are no longer on the team.")
        session.add(Notice(user_id="1", subject="Old", text="news", at=now() - notices.MAIL_WITHIN))

    facility.ask_here(people)
    return Steward(facility, {}, None)  # type: ignore[arg-type]


async def test_a_notice_is_mailed_once_to_whoever_has_an_address(steward, serve, postbox):
    steward.facility.hutch.smtp_url = serve()
    for _ in range(3):
        await steward.mail()
    assert [(got["To"], got["Subject"]) for got in postbox.mails] == [("ann@facility.example", "Films was stopped")]


async def test_a_notice_that_was_refused_is_tried_again_until_it_is_taken(steward, serve, postbox):
    port = free_port()
    steward.facility.hutch.smtp_url = f"smtp://localhost:{port}"
    await steward.mail()
    serve(port)
    postbox.say = "451 later"
    await steward.mail()
    assert not postbox.mails
    postbox.say = "250 taken"
    for _ in range(2):
        await steward.mail()
    assert len(postbox.mails) == 1


async def test_a_server_that_cannot_be_used_is_tried_once_in_a_pass(steward, serve, postbox):
    port = free_port()
    steward.facility.hutch.smtp_url = f"smtp://localhost:{port}"
    steward.facility.ask_here(lambda session: [notices.tell(session, "1", f"News {number}", "…") for number in range(3)])
    with capture_logs() as lines:
        await steward.mail()
    assert [line["event"] for line in lines] == ["a notice was not mailed"]
    serve(port)
    await steward.mail()
    assert len(postbox.mails) == 4


async def test_a_notice_of_which_nobody_knows_whether_it_was_taken_is_not_sent_again(steward, serve, postbox):
    steward.facility.hutch.smtp_url, postbox.drop = serve(), True
    await steward.mail()
    postbox.drop = False
    await steward.mail()
    assert len(postbox.mails) == 1


async def test_two_stewards_send_it_once(steward, serve, postbox):
    steward.facility.hutch.smtp_url = serve()
    waiting = await steward.facility.ask(notices.waiting)
    assert [await steward.facility.ask(lambda session, one=one: notices.claim(session, one.id)) for one, _ in waiting * 2] == [
        True,
        False,
    ]
    await steward.mail()
    assert not postbox.mails


async def test_without_a_mail_server_notices_wait(steward):
    await steward.mail()
    assert steward.facility.ask_here(lambda session: list(session.scalars(select(Notice.mailed_at)))) == [None] * 3
