"""[notify] of certfan.toml: who is told of problems, and how. The tables, and the values made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from certfan.core.model import CONSUMER_NAME

_MAILBOX = re.compile(r"[^@\s<>,;:\"\x00-\x1f]{1,64}@[A-Za-z0-9.\-\[\]:]{1,255}|[a-z_][a-z0-9_-]{0,31}")
_PORTS = {"off": 25, "starttls": 587, "implicit": 465}


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandChannel:
    """A program of the admin that gets JSON on its stdin."""

    name: str
    argv: tuple[str, ...]
    timeout: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class MailChannel:
    """Mail over SMTP. `tls`: off, starttls or implicit; `ca_file` None: the system's roots."""

    name: str
    server: str
    port: int
    tls: str
    ca_file: Path | None
    user: str | None
    password_file: Path | None
    sender: str
    to: tuple[str, ...]


NotifyChannel: TypeAlias = CommandChannel | MailChannel


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """Who is told, and for how long changes are gathered into one message."""

    gather: timedelta = timedelta(minutes=1)
    channels: tuple[NotifyChannel, ...] = ()


def _label(text: str) -> str:
    if not CONSUMER_NAME.fullmatch(text):
        raise ValueError("must be 1 to 63 of a-z 0-9 -, not beginning or ending in a hyphen")
    return text


def _mailbox(text: str) -> str:
    if not _MAILBOX.fullmatch(text):
        raise ValueError("must be one plain address, as root@example.org")
    return text


def _program(argv: list[str]) -> list[str]:
    if not argv or not argv[0].startswith("/") or any("\0" in word for word in argv):
        raise ValueError("must begin with the absolute path of a program; there is no shell")
    return argv


def _whole(value: object) -> object:
    """Turn `"90s"` or `"2m"` into a span; whole seconds stay what they are."""
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]{1,4})([sm])", value)
        if not found:
            raise ValueError('must be seconds, or text of the form "90s", "2m"')
        return timedelta(seconds=int(found[1]) * (60 if found[2] == "m" else 1))
    return value


_Label = Annotated[str, AfterValidator(_label)]
_Mailbox = Annotated[str, AfterValidator(_mailbox)]
_Span = Annotated[timedelta, Field(strict=False), BeforeValidator(_whole)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CommandTable(_Table):
    """[notify.exec.NAME]."""

    command: Annotated[list[str], AfterValidator(_program)]
    timeout: _Span = Field(default=timedelta(seconds=30), ge=timedelta(seconds=1), le=timedelta(minutes=10))


class MailTable(_Table):
    """[notify.mail.NAME]."""

    server: str = Field(pattern=r"^[A-Za-z0-9.:-]{1,255}$")
    port: int | None = Field(default=None, ge=1, le=65535)
    tls: Literal["starttls", "implicit", "off"] = "starttls"
    ca_file: str | None = Field(default=None, min_length=1)
    user: str | None = Field(default=None, min_length=1, max_length=255)
    password_file: str | None = Field(default=None, min_length=1)
    sender: _Mailbox = Field(alias="from")
    to: list[_Mailbox] = Field(min_length=1, max_length=20)


class NotifyTable(_Table):
    """[notify]: who is told of problems."""

    gather: _Span = Field(default=timedelta(minutes=1), ge=timedelta(0), le=timedelta(hours=1))
    exec: dict[_Label, CommandTable] = {}
    mail: dict[_Label, MailTable] = {}


def notify_problems(table: NotifyTable) -> Iterator[str]:
    """Yield what is wrong between keys, each `KEY.PATH: what is wrong`."""
    for name in sorted(table.exec.keys() & table.mail.keys()):
        yield f"notify.mail.{name}: there is a notify.exec.{name} already"
    for name, mail in table.mail.items():
        if (mail.user is None) != (mail.password_file is None):
            missing = "user" if mail.user is None else "password_file"
            yield f"notify.mail.{name}.{missing}: is missing; to log in takes user and password_file"
        if mail.user is not None and mail.tls == "off":
            yield f"notify.mail.{name}.tls: a password is never sent in the clear; use starttls or implicit"


def notify_files(table: NotifyTable) -> Iterator[tuple[str, str, bool]]:
    """Yield every file that is named: its key path, its name, and whether it holds a secret."""
    for name, mail in table.mail.items():
        for key, file in (("ca_file", mail.ca_file), ("password_file", mail.password_file)):
            if file is not None:
                yield f"notify.mail.{name}.{key}", file, key == "password_file"


def notify_of(table: NotifyTable, folder: Path) -> Notify:
    """Make the values of a table that has no problems."""
    commands = (
        CommandChannel(name=name, argv=tuple(one.command), timeout=one.timeout)
        for name, one in table.exec.items()
    )
    mails = (
        MailChannel(
            name=name,
            server=one.server,
            port=one.port or _PORTS[one.tls],
            tls=one.tls,
            ca_file=folder / one.ca_file if one.ca_file else None,
            user=one.user,
            password_file=folder / one.password_file if one.password_file else None,
            sender=one.sender,
            to=tuple(one.to),
        )
        for name, one in table.mail.items()
    )
    return Notify(gather=table.gather, channels=(*commands, *mails))
