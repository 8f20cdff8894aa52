"""certfan.toml and conf.d/*.toml beside it, read into one frozen value or refused with every problem at once.

What must never come in: anything that keeps state. A bad file raises; who calls keeps the config in force.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from certfan import toml
from certfan.core.model import (
    Authority,
    Certificate,
    Consumer,
    Desired,
    Identifier,
    Limit,
    Limits,
)
from certfan.daemon.config.checks import Part, certificates, default_authority, name_of, problems_of
from certfan.daemon.config.notify import Notify, notify_of
from certfan.daemon.config.schema import AuthorityTable, CertificateTable, Fragment, Main, listeners
from certfan.daemon.issuing import published
from certfan.daemon.listeners import Listener, parse_listener
from certfan.errors import ConfigError, ConfigInvalid, ConfigTooOpen
from certfan.log_sender import LogTarget, target_of

DEFAULT_PATH = Path("/etc/certfan/certfan.toml")
_F = TypeVar("_F", bound=Fragment)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareConfig:
    """The share's root as the daemon sees it."""

    path: Path
    require_mount: bool
    id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """What the status listener shows beyond this machine, and whose clients' certificates it takes; None: nobody's."""

    certificate: Path
    key: Path
    client_ca: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the admin wrote. `digest` changes when, and only when, a value does: never for a comment."""

    path: Path
    fleet: str
    state: Path
    share: ShareConfig
    http01: tuple[Listener, ...]
    self_check: bool
    channel: tuple[Listener, ...]
    channel_address: str  # HOST:PORT that agents dial, IPv6 in brackets
    status: tuple[Listener, ...]
    status_hosts: frozenset[str]
    status_tokens: Mapping[str, str]  # hashes by name
    status_tls: TlsFiles | None
    notify: Notify
    control: Listener
    probe_interval: timedelta
    log_level: str
    log_remote: LogTarget | None
    force_polling: bool
    desired: Desired
    digest: str


def load(path: Path = DEFAULT_PATH) -> Config:
    """Read the whole config.

    Raises:
        ConfigTooOpen: others may write a file of it.
        ConfigInvalid: `problems` holds all of all files, each `FILE: KEY.PATH: what is wrong`.
    """
    problems: list[str] = []
    main = _read(Main, path, problems)
    parts = [Part(str(path), main)] if main else []
    for file in fragments(path):
        fragment = _read(Fragment, file, problems)
        parts += [Part(str(file), fragment)] if fragment else []
    # A reference into a file that could not be read is no second problem.
    problems += [] if problems or main is None else problems_of(main, parts)
    if problems or main is None:
        raise ConfigInvalid(tuple(problems), subject=str(path))
    return _build(path, main, parts)


def fragments(path: Path) -> list[Path]:
    """Return the conf.d files of a config, sorted; editors' hidden and backup files do not count."""
    return sorted(f for f in (path.parent / "conf.d").glob("*.toml") if not f.name.startswith("."))


def _read(shape: type[_F], file: Path, problems: list[str]) -> _F | None:
    try:
        return toml.validate(shape, toml.load(file), where=str(file))
    except ConfigTooOpen:
        raise
    except ConfigInvalid as error:
        problems += error.problems
    except ConfigError as error:
        problems.append(f"{file}: {error.text}")
    return None


def _build(path: Path, main: Main, parts: list[Part]) -> Config:
    first = str(parse_listener(main.channel.listen[0]))
    return Config(
        path=path,
        fleet=main.fleet,
        state=Path(main.state),
        share=ShareConfig(
            path=Path(main.share.path), require_mount=main.share.require_mount, id=main.share.id
        ),
        # The answers to challenges are public; any web server of the machine may fetch them.
        http01=tuple(
            Listener(x.host, x.port, path=x.path, mode=0o666) for x in listeners(main.http01.listen)
        ),
        self_check=main.http01.self_check == "on",
        channel=listeners(main.channel.listen),
        channel_address=main.channel.address or first,
        status=listeners(main.status.listen),
        status_hosts=frozenset(main.status.hosts),
        status_tokens=_frozen(dict(main.status.tokens)),
        status_tls=_status_tls(main, path.parent),
        notify=notify_of(main.notify, path.parent),
        control=Listener(path=main.control.socket, mode=0o660, group=main.control.group),
        probe_interval=main.status.probe_interval,
        log_level=main.log.level,
        log_remote=_log_remote(main, path.parent),
        force_polling=main.watch.force_polling,
        desired=_desired(main, parts),
        digest=_digest(parts),
    )


def _status_tls(main: Main, folder: Path) -> TlsFiles | None:
    if (table := main.status.tls) is None:
        return None
    client_ca = folder / table.client_ca if table.client_ca else None
    return TlsFiles(certificate=folder / table.certificate, key=folder / table.key, client_ca=client_ca)


def _desired(main: Main, parts: list[Part]) -> Desired:
    default = default_authority(main, parts) or ""
    return Desired(
        authorities=_frozen(
            {
                name: _authority(name, table, Path(part.where).parent)
                for part in parts
                for name, table in part.tables.authority.items()
            }
        ),
        certificates=_frozen(
            {name_of(table): _certificate(table, default) for _, _, table in certificates(parts)}
        ),
        consumers=_frozen(
            {
                name: Consumer(
                    name, group=table.group, mode=int(table.mode, 8), addresses=tuple(table.address)
                )
                for part in parts
                for name, table in part.tables.consumer.items()
            }
        ),
    )


def _log_remote(main: Main, folder: Path) -> LogTarget | None:
    file = str(folder / main.log.ca_file) if main.log.ca_file else None
    return target_of(main.log.remote, file) if main.log.remote else None


def _authority(name: str, table: AuthorityTable, folder: Path) -> Authority:
    return Authority(
        name,
        table.directory,
        contact=tuple(table.contact),
        profile=table.profile,
        ca_file=str(folder / table.ca_file) if table.ca_file else None,
        roots_file=str(folder / table.roots_file) if table.roots_file else None,
        orders_at_once=table.orders_at_once,
        eab_kid=table.eab_kid,
        eab_key_file=str(folder / table.eab_key_file) if table.eab_key_file else None,
        preferred_chain=table.preferred_chain,
        origins=tuple(table.origins),
        staging=table.staging,
        limits=_limits(table),
    )


def _limits(table: AuthorityTable) -> Limits:
    """Return what is shipped for the authority, each limit overridden by the admin's own."""
    own = {
        name: Limit(limit.count, limit.window)
        for name in table.limits.model_fields_set
        if (limit := getattr(table.limits, name)) is not None
    }
    return replace(published.of(table.directory).limits, **own)


def _certificate(table: CertificateTable, default_authority: str) -> Certificate:
    return Certificate(
        name_of(table),
        tuple(Identifier(name) for name in table.names),
        consumers=tuple(table.consumers),
        authority=table.authority or default_authority,
        key_type=table.key_type,
        profile=table.profile,
        custody=table.custody,
        fallback=tuple(table.fallback),
        fallback_after=table.fallback_after,
        reuse_key=table.reuse_key,
    )


_K = TypeVar("_K")
_V = TypeVar("_V")


def _frozen(mapping: dict[_K, _V]) -> Mapping[_K, _V]:
    return MappingProxyType(mapping)


def _digest(parts: list[Part]) -> str:
    dumped = {part.where: part.tables.model_dump(mode="json") for part in parts}
    return hashlib.sha256(json.dumps(dumped, sort_keys=True).encode()).hexdigest()
