"""The shape of certfan.toml and conf.d/*.toml: which keys there are and which values each may have.

What must never come in: anything that needs a second file or a second key (that is `config_checks.py`), or a disk.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import idna
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from certfan import pki
from certfan.core.model import CERTIFICATE_NAME, CONSUMER_NAME, Custody, KeyType
from certfan.daemon.config.notify import NotifyTable
from certfan.daemon.listeners import Listener, parse_listener
from certfan.log_sender import checked_target

MAX_IDENTIFIERS = 100  # what the largest profile of a public authority takes
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_MODE = re.compile(r"0?[0-7]{3}")
_SPAN = re.compile(r"([1-9][0-9]{0,5})([dhms])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


def identifier(text: str) -> str:
    """Return a DNS name as lower-case A-label, or an IP address in its one short form.

    Raises:
        ValueError: no certificate can be had for it, and why.
    """
    if text.startswith("*"):
        raise ValueError(f"{text}: a wildcard needs a dns-01 challenge, which this release does not have")
    if text.strip() != text or not text:
        raise ValueError(f"{text!r}: empty, or with white space around it")
    if "/" in text or "[" in text:
        raise ValueError(f"{text}: write the bare name or address, without brackets, scheme or path")
    address = _address(text)
    return address if address is not None else _domain(text)


def _address(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        if ":" in text or text.rpartition(".")[2].isdigit():
            raise ValueError(f"{text}: looks like an IP address but is none") from None
        return None
    if address.is_unspecified or address.is_multicast or "%" in text:
        raise ValueError(f"{text}: nobody can prove control of this address")
    if address.version == 6 and address.ipv4_mapped is not None:
        raise ValueError(f"{text}: write the IPv4 address itself")
    return str(address)


def _domain(text: str) -> str:
    if text.endswith("."):
        raise ValueError(f"{text}: write it without the dot at its end")
    try:
        ascii_name = idna.encode(text, uts46=True).decode() if _needs_idna(text) else text.lower()
    except (idna.IDNAError, UnicodeError) as error:
        raise ValueError(f"{text}: no domain name ({error})") from error
    if len(ascii_name) > 253 or not all(_LABEL.fullmatch(label) for label in ascii_name.split(".")):
        raise ValueError(f"{text}: no domain name (labels of letters, digits and inner hyphens)")
    return ascii_name


def _needs_idna(text: str) -> bool:
    return not text.isascii() or any(label.startswith("xn--") for label in text.lower().split("."))


def _slug(text: str) -> str:
    if not CERTIFICATE_NAME.fullmatch(text):
        raise ValueError("must be 1 to 100 of a-z 0-9 . _ - without `..`, not beginning or ending in one")
    return text


def _fleet(text: str) -> str:
    # Shorter than a label: it stands in the common name of the internal CA.
    if not pki.FLEET_NAME.fullmatch(text):
        raise ValueError("must be 1 to 48 of a-z 0-9 -, no hyphen at either end")
    return text


def _label(text: str) -> str:
    if not CONSUMER_NAME.fullmatch(text):
        raise ValueError("must be 1 to 63 of a-z 0-9 -, not beginning or ending in a hyphen")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise ValueError("must be an absolute path")
    return text


def _directory(text: str) -> str:
    url = urlsplit(text)
    if url.scheme != "https" or not url.hostname or url.username is not None or url.fragment:
        raise ValueError("must be an https URL")
    return text


def _contact(text: str) -> str:
    if not re.fullmatch(r"mailto:[^@\s,?]+@[^@\s,?]+", text):
        raise ValueError('must be of the form "mailto:you@example.org"')
    return text


def _mode(text: str) -> str:
    if not _MODE.fullmatch(text):
        raise ValueError('must be octal digits in quotes, as "0640"')
    if int(text, 8) & ~0o640 or not int(text, 8) & 0o400:
        raise ValueError(f'{text} is too open for a private key: use "0640", "0600" or "0440"')
    return text


def _literal(text: str) -> str:
    if (address := _address(text)) is None:
        raise ValueError(f"{text}: must be an IP address: the volume compares addresses, not names")
    return address


def _agreed(value: Any) -> Any:
    if value is not True:
        raise ValueError("must be true: read the authority's terms of service, then say so here")
    return value


def _distinct(values: list[str]) -> list[str]:
    twice = sorted({v for v in values if values.count(v) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} stands here twice")
    return values


def _listen(text: str) -> str:
    parse_listener(text)
    return text


def _listen_tcp(text: str) -> str:
    if parse_listener(text).path:
        raise ValueError("agents dial this over TCP: must be ADDRESS:PORT")
    return text


def _dialled(text: str) -> str:
    host, _, port = text.rpartition(":")
    if "[" in host:
        parse_listener(text)
    elif not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536 or ":" in host:
        raise ValueError('must be HOST:PORT, as "cert.int:8057" or "[fd00::1]:8057"')
    else:
        identifier(host)
    return text


def _span(value: Any) -> Any:
    """Turn `"90d"`, `"12h"`, `"30m"` or `"45s"` into a span; whole seconds stay what they are."""
    if isinstance(value, str):
        found = _SPAN.fullmatch(value)
        if not found:
            raise ValueError('must be seconds, or text of the form "90d", "12h", "30m"')
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
    return value


def _token_hash(text: str) -> str:
    if not re.fullmatch("sha256:[0-9a-f]{64}", text):
        raise ValueError("must be the hash that `certfan token NAME` prints, never the token itself")
    return text


def _origin(text: str) -> str:
    url = urlsplit(text)
    if url.scheme != "https" or not url.hostname or url.path.strip("/") or url.query or "@" in url.netloc:
        raise ValueError('must be of the form "https://HOST" or "https://HOST:PORT"')
    return text.rstrip("/")


Slug = Annotated[str, AfterValidator(_slug)]
Label = Annotated[str, AfterValidator(_label)]
FleetName = Annotated[str, AfterValidator(_fleet)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Listen = Annotated[str, AfterValidator(_listen)]
ListenTcp = Annotated[str, AfterValidator(_listen_tcp)]
Distinct = AfterValidator(_distinct)
Span = Annotated[timedelta, Field(strict=False), BeforeValidator(_span)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ShareTable(_Table):
    """[share]: the tree that carries generations."""

    path: AbsolutePath
    require_mount: bool = True
    id: str | None = Field(default=None, min_length=1)


class Http01Table(_Table):
    """[http01]: where vhosts proxy `/.well-known/acme-challenge/` to, and whether we look whether they do."""

    listen: Annotated[list[Listen], Distinct] = Field(min_length=1)
    self_check: Literal["on", "off"] = "on"


class ChannelTable(_Table):
    """[channel]: where agents dial."""

    listen: Annotated[list[ListenTcp], Distinct] = Field(min_length=1)
    address: Annotated[str, AfterValidator(_dialled)] | None = None


class StatusTlsTable(_Table):
    """[status.tls]: what is shown to who comes from another machine, and whose certificates count as a token."""

    certificate: str = Field(min_length=1)
    key: str = Field(min_length=1)
    client_ca: str | None = Field(default=None, min_length=1)


class StatusTable(_Table):
    """[status]: the read-only endpoint, and how often agents probe: what they say is good for two intervals."""

    listen: Annotated[list[Listen], Distinct] = ["127.0.0.1:8056"]
    hosts: Annotated[list[Annotated[str, AfterValidator(identifier)]], Distinct] = []
    tokens: dict[Label, Annotated[str, AfterValidator(_token_hash)]] = {}
    tls: StatusTlsTable | None = None
    probe_interval: Annotated[timedelta, Field(strict=False)] = Field(
        default=timedelta(seconds=300), ge=timedelta(seconds=1), le=timedelta(days=1)
    )


class ControlTable(_Table):
    """[control]: the socket of the command line."""

    socket: AbsolutePath = "/run/certfan/control.sock"
    group: str = Field(default="certfan-admin", min_length=1)


class LogTable(_Table):
    """[log]; a remote receiver gets every line too."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    remote: Annotated[str, AfterValidator(checked_target)] | None = None
    ca_file: str | None = Field(default=None, min_length=1)


class WatchTable(_Table):
    """[watch]: how config changes are noticed."""

    force_polling: bool = False


class LimitTable(_Table):
    """So many in any window of that length."""

    count: int = Field(ge=1)
    window: Span


class LimitsTable(_Table):
    """[authority.NAME.limits]: what it grants, where that differs from what is shipped for it."""

    orders: LimitTable | None = None
    certificates_per_domain: LimitTable | None = None
    certificates_per_set: LimitTable | None = None
    failures_per_name: LimitTable | None = None


class AuthorityTable(_Table):
    """[authority.NAME]."""

    directory: Annotated[str, AfterValidator(_directory)]
    agree_to_terms: Annotated[bool, BeforeValidator(_agreed)]
    contact: list[Annotated[str, AfterValidator(_contact)]] = []
    profile: str | None = Field(default=None, min_length=1)
    ca_file: str | None = Field(default=None, min_length=1)
    roots_file: str | None = Field(default=None, min_length=1)
    orders_at_once: int = Field(default=8, ge=1, le=300)
    eab_kid: str | None = Field(default=None, min_length=1, max_length=500)
    eab_key_file: str | None = Field(default=None, min_length=1)
    preferred_chain: str | None = Field(default=None, min_length=1, max_length=200)
    origins: list[Annotated[str, AfterValidator(_origin)]] = []
    staging: str | None = None
    limits: LimitsTable = LimitsTable()


class ConsumerTable(_Table):
    """[consumer.NAME]: a VM with an agent; group and mode of its files on the share, and from where it mounts it."""

    group: str = Field(default="certfan", min_length=1)
    mode: Annotated[str, AfterValidator(_mode)] = "0640"
    address: Annotated[list[Annotated[str, AfterValidator(_literal)]], Distinct] = []


class CertificateTable(_Table):
    """[[certificate]]."""

    names: Annotated[list[Annotated[str, AfterValidator(identifier)]], Distinct] = Field(
        min_length=1, max_length=MAX_IDENTIFIERS
    )
    consumers: Annotated[list[str], Distinct] = Field(min_length=1)
    name: Slug | None = None
    authority: str | None = None
    key_type: Annotated[KeyType, Field(strict=False)] = KeyType.ECDSA_P256
    profile: str | None = Field(default=None, min_length=1)
    custody: Annotated[Custody, Field(strict=False)] = Custody.SHARE
    fallback: Annotated[list[str], Distinct] = []
    fallback_after: Span = Field(default=timedelta(days=1), ge=timedelta(minutes=1))
    reuse_key: Span | None = Field(default=None, ge=timedelta(hours=1))


class Fragment(_Table):
    """A file of conf.d."""

    authority: dict[Label, AuthorityTable] = {}
    consumer: dict[Label, ConsumerTable] = {}
    certificate: list[CertificateTable] = []


class Main(Fragment):
    """certfan.toml itself."""

    fleet: FleetName
    state: AbsolutePath = "/var/lib/certfan"
    default_authority: str | None = None
    share: ShareTable
    http01: Http01Table
    channel: ChannelTable
    status: StatusTable = StatusTable()
    control: ControlTable = ControlTable()
    log: LogTable = LogTable()
    watch: WatchTable = WatchTable()
    notify: NotifyTable = NotifyTable()


def listeners(texts: list[str]) -> tuple[Listener, ...]:
    """Turn the words of an already validated `listen` into values."""
    return tuple(parse_listener(text) for text in texts)
