"""certfan.toml and conf.d/*.toml beside it, read into one frozen value or refused with every problem at once.

What must never come in: anything that keeps state. A bad file raises; who calls keeps the config in force.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from certfan import toml
from certfan.core.model import (
    CERTIFICATE_NAME,
    Authority,
    Certificate,
    Consumer,
    Desired,
    Identifier,
    Limit,
    Limits,
)
from certfan.daemon import published
from certfan.daemon.config_schema import AuthorityTable, CertificateTable, Fragment, Main, listeners
from certfan.daemon.listeners import Listener, parse_listener
from certfan.errors import ConfigError, ConfigInvalid, ConfigTooOpen

DEFAULT_PATH = Path("/etc/certfan/certfan.toml")
_F = TypeVar("_F", bound=Fragment)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareConfig:
    """The share's root as the daemon sees it."""

    path: Path
    require_mount: bool
    id: str | None


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
    control: Listener
    probe_interval: timedelta
    log_level: str
    force_polling: bool
    desired: Desired
    digest: str


@dataclass(frozen=True, slots=True)
class _Part:
    """One file that could be read; `where` is its path as problems name it."""

    where: str
    tables: Fragment


def load(path: Path = DEFAULT_PATH) -> Config:
    """Read the whole config.

    Raises:
        ConfigTooOpen: others may write a file of it.
        ConfigInvalid: `problems` holds all of all files, each `FILE: KEY.PATH: what is wrong`.
    """
    problems: list[str] = []
    main = _read(Main, path, problems)
    parts = [_Part(str(path), main)] if main else []
    for file in fragments(path):
        fragment = _read(Fragment, file, problems)
        parts += [_Part(str(file), fragment)] if fragment else []
    # A reference into a file that could not be read is no second problem.
    problems += [] if problems else _cross_check(main, parts)
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


def _cross_check(main: Main | None, parts: list[_Part]) -> list[str]:
    assert main is not None
    return [
        *_default_problems(main, parts),
        *_listener_problems(main, parts[0].where),
        *_twice_problems(parts),
        *_reference_problems(main, parts),
        *_authority_problems(parts),
        *_published_problems(main, parts),
        *_file_problems(parts),
    ]


def _default_problems(main: Main, parts: list[_Part]) -> Iterator[str]:
    known = _names(parts, "authority")
    if main.default_authority is not None and main.default_authority not in known:
        guess = toml.did_you_mean(main.default_authority, known)
        yield f"{parts[0].where}: default_authority: there is no [authority.{main.default_authority}]{guess}"


def _listener_problems(main: Main, where: str) -> Iterator[str]:
    seen: dict[str, str] = {}
    sections = {
        "http01.listen": main.http01.listen,
        "channel.listen": main.channel.listen,
        "status.listen": main.status.listen,
        "control.socket": [f"unix:{main.control.socket}"],
    }
    for key, texts in sections.items():
        for one in map(str, listeners(texts)):
            if first := seen.get(one):
                yield f"{where}: {key}: {one} is used by {first} already"
            seen.setdefault(one, key)
    first_dialled = parse_listener(main.channel.listen[0])
    if main.channel.address is None and ipaddress.ip_address(first_dialled.host).is_unspecified:
        yield f"{where}: channel.address: is missing, and nobody can dial {first_dialled}"


def _twice_problems(parts: list[_Part]) -> Iterator[str]:
    for kind in ("authority", "consumer"):
        seen: dict[str, str] = {}
        for part in parts:
            for name in getattr(part.tables, kind):
                if first := seen.get(name):
                    yield f"{part.where}: {toml.key_path((kind, name))}: {name} is in {first} already"
                seen.setdefault(name, part.where)
    taken: dict[str, str] = {}
    for part, index, table in _certificates(parts):
        here = f"{part.where}: certificate[{index}]"
        name = name_of(table)
        if not CERTIFICATE_NAME.fullmatch(name):
            yield f'{here}.name: is missing, and "{name}" cannot be a folder\'s name'
        elif first := taken.get(name):
            yield f"{here}: the name {name} is taken by {first} already"
        taken.setdefault(name, here)


def _reference_problems(main: Main, parts: list[_Part]) -> Iterator[str]:
    authorities, consumers = _names(parts, "authority"), _names(parts, "consumer")
    for part, index, table in _certificates(parts):
        here = f"{part.where}: certificate[{index}]"
        for position, name in enumerate(table.consumers):
            if name not in consumers:
                guess = toml.did_you_mean(name, consumers)
                yield f"{here}.consumers[{position}]: there is no [consumer.{name}]{guess}"
        for position, name in enumerate(table.fallback):
            if name not in authorities:
                guess = toml.did_you_mean(name, authorities)
                yield f"{here}.fallback[{position}]: there is no [authority.{name}]{guess}"
            elif name == (table.authority or _default_authority(main, authorities)):
                yield f"{here}.fallback[{position}]: {name} is its authority already"
        if table.authority is not None and table.authority not in authorities:
            guess = toml.did_you_mean(table.authority, authorities)
            yield f"{here}.authority: there is no [authority.{table.authority}]{guess}"
        elif table.authority is None and _default_authority(main, authorities) is None:
            yield f"{here}.authority: is missing, and there is no default_authority"


def _authority_problems(parts: list[_Part]) -> Iterator[str]:
    known = _names(parts, "authority")
    for part in parts:
        for name, table in part.tables.authority.items():
            here = f"{part.where}: authority.{name}"
            if (table.eab_kid is None) != (table.eab_key_file is None):
                missing = "eab_key_file" if table.eab_kid else "eab_kid"
                yield f"{here}.{missing}: is missing; external account binding takes eab_kid and eab_key_file"
            if table.staging is not None and (table.staging not in known or table.staging == name):
                guess = toml.did_you_mean(table.staging, known - {name})
                yield f"{here}.staging: there is no other [authority.{table.staging}]{guess}"


def _published_problems(main: Main, parts: list[_Part]) -> Iterator[str]:
    """Tell what an authority is known to refuse, before it is asked."""
    tables = {name: table for part in parts for name, table in part.tables.authority.items()}
    for part, index, certificate in _certificates(parts):
        first = certificate.authority or _default_authority(main, tables)
        for name in (first, *certificate.fallback):
            if name is None or name not in tables:
                continue
            own = certificate.profile if name == first else None
            profile = own or tables[name].profile
            names = tuple(map(Identifier, certificate.names))
            if why := published.of(tables[name].directory).why_not(profile, names):
                yield f"{part.where}: certificate[{index}].names: {name}: {why}"


def _file_problems(parts: list[_Part]) -> Iterator[str]:
    for part in parts:
        for name, table in part.tables.authority.items():
            for key in ("ca_file", "roots_file", "eab_key_file"):
                if (file := getattr(table, key)) is not None:
                    here = f"{part.where}: {toml.key_path(('authority', name, key))}"
                    yield from _file_problem(here, Path(part.where).parent / file)


def _file_problem(here: str, file: Path) -> Iterator[str]:
    try:
        # Whoever may write a trust anchor may be the authority.
        toml.refuse_open(file)
        file.open("rb").close()
    except OSError as error:
        yield f"{here}: {file} cannot be read: {error.strerror}"


def _certificates(parts: list[_Part]) -> Iterator[tuple[_Part, int, CertificateTable]]:
    return ((part, i, table) for part in parts for i, table in enumerate(part.tables.certificate))


def _names(parts: list[_Part], kind: str) -> set[str]:
    return {name for part in parts for name in getattr(part.tables, kind)}


def name_of(table: CertificateTable) -> str:
    """Return a certificate's name: the given one, else its first identifier."""
    return table.name or table.names[0]


def _default_authority(main: Main, known: Collection[str]) -> str | None:
    if main.default_authority is not None:
        return main.default_authority
    return next(iter(known)) if len(known) == 1 else None


def _build(path: Path, main: Main, parts: list[_Part]) -> Config:
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
        control=Listener(path=main.control.socket, mode=0o660, group=main.control.group),
        probe_interval=main.status.probe_interval,
        log_level=main.log.level,
        force_polling=main.watch.force_polling,
        desired=_desired(main, parts),
        digest=_digest(parts),
    )


def _desired(main: Main, parts: list[_Part]) -> Desired:
    default = _default_authority(main, _names(parts, "authority")) or ""
    return Desired(
        authorities=_frozen(
            {
                name: _authority(name, table, Path(part.where).parent)
                for part in parts
                for name, table in part.tables.authority.items()
            }
        ),
        certificates=_frozen(
            {name_of(table): _certificate(table, default) for _, _, table in _certificates(parts)}
        ),
        consumers=_frozen(
            {
                name: Consumer(name, group=table.group, mode=int(table.mode, 8))
                for part in parts
                for name, table in part.tables.consumer.items()
            }
        ),
    )


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


def _digest(parts: list[_Part]) -> str:
    dumped = {part.where: part.tables.model_dump(mode="json") for part in parts}
    return hashlib.sha256(json.dumps(dumped, sort_keys=True).encode()).hexdigest()
