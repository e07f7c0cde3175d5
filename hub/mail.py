"""Mail to people, over the site's own SMTP server (RFC 5321)."""

from __future__ import annotations

from contextlib import suppress
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any
from urllib.parse import urlsplit

import aiosmtplib

from .configuration import Hutch, config_path
from .errors import HutchError

ANSWER_SECONDS = 30


class MailError(HutchError):
    """The connection broke, and nobody knows whether the mail was taken: sent again, it could come twice."""


class NotSentError(MailError):
    """The mail was certainly not taken."""


class NoServerError(NotSentError):
    """Nor would another be: the server cannot be used."""


async def send(hutch: Hutch, to: str, subject: str, text: str) -> None:
    """Sends plain text to one address. Without a `smtp_url` nothing is sent. Raises NotSentError or MailError."""
    if not hutch.smtp_url:
        return
    message = EmailMessage()
    try:
        message["From"], message["To"], message["Subject"] = hutch.mail_from, to, " ".join(subject.split())
    except ValueError as error:
        raise NotSentError(f"{to!r} is no address: {error}") from error
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=hutch.mail_from.rpartition("@")[2].rstrip(">"))
    # RFC 3834: no out-of-office answers
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    try:
        client = aiosmtplib.SMTP(**connection(hutch))
        await client.connect()
    except (aiosmtplib.SMTPException, OSError, ValueError) as error:
        raise NoServerError(f"the mail server {hutch.smtp_url} cannot be used: {error}") from error
    try:
        await client.send_message(message)
    except (aiosmtplib.SMTPResponseException, aiosmtplib.SMTPRecipientsRefused) as error:
        raise NotSentError(f"the mail server {hutch.smtp_url} refused a mail to {to}: {error}") from error
    except (aiosmtplib.SMTPException, OSError) as error:
        raise MailError(f"the connection to {hutch.smtp_url} broke while a mail to {to} was sent: {error!r}") from error
    finally:
        with suppress(aiosmtplib.SMTPException, OSError):
            await client.quit()


def connection(hutch: Hutch) -> dict[str, Any]:
    """A password never goes over a line that is not encrypted."""
    url = urlsplit(hutch.smtp_url)
    options: dict[str, Any] = {"hostname": url.hostname, "port": url.port, "timeout": ANSWER_SECONDS}
    options["use_tls"] = url.scheme == "smtps"
    if hutch.smtp_login_file:
        file = config_path().parent / hutch.smtp_login_file
        lines = file.read_text().split("\n")
        if len(lines) < 2:
            raise ValueError(f"{file} has no password in its second line")
        options |= {"username": lines[0].strip(), "password": lines[1].strip(), "start_tls": not options["use_tls"]}
    return options
