"""The shape of agent.toml: which keys there are and which values each may have.

What must never come in: anything that needs a second key (that is `config.py`), or a disk.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from certfan.agent.recipes import RECIPES
from certfan.toml import did_you_mean

_PATTERN = re.compile(r"[a-z0-9._*-]{1,253}")
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
_SERVICE = re.compile(r"[a-z0-9][a-z0-9._@-]{0,62}")
KEY_BITS = 0o640  # what the mode of a key file may have at most


class Delivery(StrEnum):
    """Where an agent takes its bundles from."""

    SHARE = "share"  # the share; the channel when a bundle does not appear there in time
    SHARE_ONLY = "share-only"
    CHANNEL = "channel"


class Install(StrEnum):
    """What the pointers that services follow lead to."""

    COPY = "copy"  # a copy of our own, on the local disk
    IN_PLACE = "in-place"  # the mounted generation, where the share shows it; else a copy


class Output(StrEnum):
    """The form in which a service takes its pairs."""

    CERTBOT = "certbot"  # live/NAME/{privkey,cert,chain,fullchain}.pem
    PEM = "pem"  # key and chain in live/NAME/SERVICE.pem
    PKCS12 = "pkcs12"  # live/NAME/SERVICE.p12


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError("must be an absolute path without `..`")
    return path


def _address(text: str) -> str:
    address = ipaddress.ip_address(text)
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{text} cannot be dialled, write the very address the service listens on")
    return str(address)


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _matches(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"{text!r} is no {what}")
        return text

    return AfterValidator(check)


def _known_recipe(name: str) -> str:
    if name not in RECIPES:
        known = ", ".join(sorted(RECIPES))
        raise ValueError(f"no recipe of that name (there are: {known}){did_you_mean(name, RECIPES)}")
    return name


def _mode(value: Any) -> Any:
    mode = int(value, 8) if isinstance(value, str) and re.fullmatch(r"0?o?[0-7]{3,4}", value) else value
    if not isinstance(mode, int) or isinstance(mode, bool) or mode & ~KEY_BITS or not mode & 0o400:
        raise ValueError('a key file is "0600", "0640", "0400" or "0440"')
    return mode


def _names(value: Any) -> Any:
    return None if value == "each" else value


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Address = Annotated[str, AfterValidator(_address)]
Pattern = Annotated[str, _matches(_PATTERN, "name or pattern (lower case, `*` for any part)")]
Account = Annotated[str, _matches(_ACCOUNT, "user or group")]
Argv = Annotated[tuple[Annotated[str, Field(pattern=r"^[^\x00]*$")], ...], Field(min_length=1, max_length=64)]
Mode = Annotated[int, BeforeValidator(_mode)]
Probe = Literal["tls", "smtp", "lmtp", "imap", "pop3"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AgentTable(_Table):
    """`[agent]`; times are seconds."""

    state: AbsolutePath = Path("/var/lib/certfan-agent")
    trust: AbsolutePath = Path("/etc/certfan")
    install_to: AbsolutePath = Path("/etc/certfan")
    share: AbsolutePath | None = None
    delivery: Delivery = Delivery.SHARE
    install: Install = Install.COPY
    probe_interval: timedelta = Field(
        default=timedelta(seconds=300), ge=timedelta(seconds=1), le=timedelta(days=1)
    )
    quiet: timedelta = Field(default=timedelta(seconds=2), ge=timedelta(0), le=timedelta(seconds=30))
    apply_socket: AbsolutePath = Path("/run/certfan-apply/apply.sock")
    user: Account = "certfan-agent"


class EndpointTable(_Table):
    """`[[service.endpoints]]`."""

    address: Annotated[tuple[Address, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
    port: int | None = Field(default=None, ge=1, le=65535)
    protocol: Probe | None = None
    server_names: Annotated[tuple[Pattern, ...] | None, BeforeValidator(_names)] = None


class ServiceTable(_Table):
    """`[[service]]`."""

    name: Annotated[str, _matches(_SERVICE, "service name")]
    recipe: Annotated[str, AfterValidator(_known_recipe)] | None = None
    certificates: Annotated[tuple[Pattern, ...], BeforeValidator(_one_or_more), Field(min_length=1)] = ("*",)
    endpoints: tuple[EndpointTable, ...] = Field(min_length=1)
    unit: Annotated[str, Field(pattern=r"^[A-Za-z0-9:_.@\\-]+$")] | None = None
    owner: Account | None = None
    group: Account | None = None
    mode: Mode | None = None
    output: Output | None = None
    password_file: AbsolutePath | None = None
    test: Argv | None = None
    reload: Argv | None = None
    start: Argv | None = None
    active: Argv | None = None
    hook: Argv | None = None
    timeout: timedelta = Field(
        default=timedelta(seconds=60), ge=timedelta(seconds=0.1), le=timedelta(minutes=10)
    )


class AgentFile(_Table):
    """The whole file."""

    agent: AgentTable = AgentTable()
    service: tuple[ServiceTable, ...] = ()
