"""Tells by mail: one message over SMTP, in a thread of its own, as smtplib blocks."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime

from certfan.daemon.config.notify import MailChannel
from certfan.daemon.notifying.message import Message
from certfan.errors import NotifyFailed

_STEP = 15.0  # seconds for one exchange; there are some six
_ALL = 60.0  # seconds that a caller waits
_threads = ThreadPoolExecutor(
    max_workers=2, thread_name_prefix="mail"
)  # a hung server holds no other part up


async def send(channel: MailChannel, message: Message) -> None:
    """Hand a message to the server. Cancelled, it may have been sent all the same.

    Raises:
        NotifyFailed: the server cannot be reached or trusted, or refuses.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_ALL):
            await loop.run_in_executor(_threads, _send, channel, _mail(channel, message))
    except TimeoutError as error:
        raise _failed(channel, f"took longer than {_ALL:g} s") from error
    except smtplib.SMTPResponseException as error:
        said = (
            error.smtp_error
            if isinstance(error.smtp_error, str)
            else error.smtp_error.decode(errors="replace")
        )
        raise _failed(channel, f"said {error.smtp_code} {' '.join(said.split())[:200]}") from error
    except smtplib.SMTPRecipientsRefused as error:
        raise _failed(channel, f"takes no mail for {', '.join(sorted(error.recipients))}") from error
    except smtplib.SMTPException as error:
        raise _failed(channel, f"cannot be used: {error}") from error
    except OSError as error:
        raise _failed(channel, f"cannot be reached: {error.strerror or error}") from error


def _mail(channel: MailChannel, message: Message) -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = channel.sender
    mail["To"] = ", ".join(channel.to)
    mail["Subject"] = message.subject
    mail["Date"] = format_datetime(datetime.fromisoformat(message.body["at"]))
    # Who gets it twice can tell.
    mail["Message-ID"] = f"<{message.id}@{message.body['fleet']}.certfan.invalid>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no answer of a machine is wanted
    mail.set_content(message.text)
    return mail


def _send(channel: MailChannel, mail: EmailMessage) -> None:
    context = ssl.create_default_context(cafile=channel.ca_file)
    if channel.tls == "implicit":
        server: smtplib.SMTP = smtplib.SMTP_SSL(channel.server, channel.port, timeout=_STEP, context=context)
    else:
        server = smtplib.SMTP(channel.server, channel.port, timeout=_STEP)
    with server:
        if channel.tls == "starttls":
            server.starttls(context=context)
        if channel.user is not None and channel.password_file is not None:
            # Read at each use: whoever changes it needs no restart.
            server.login(channel.user, channel.password_file.read_text().strip())
        refused = server.send_message(mail, channel.sender, list(channel.to))
    if refused:
        raise smtplib.SMTPRecipientsRefused(refused)


def _failed(channel: MailChannel, why: str) -> NotifyFailed:
    where = f"{channel.server}:{channel.port}"
    return NotifyFailed(
        f"mail server {where} {why}", subject=channel.name, hint=f"run: certfan notify test {channel.name}"
    )
