"""What is wrong with a config that is right in each of its tables: references, doubles, files, what an authority refuses.

What must never come in: the shape of a table (config_schema), a value made of it (config).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from certfan import pki, toml
from certfan.core.model import CERTIFICATE_NAME, Custody, Identifier, KeyType
from certfan.daemon.config.notify import notify_files, notify_problems
from certfan.daemon.config.schema import CertificateTable, Fragment, Main, identifier, listeners
from certfan.daemon.issuing import published
from certfan.daemon.listeners import parse_listener


@dataclass(frozen=True, slots=True)
class Part:
    """One file that could be read; `where` is its path as problems name it."""

    where: str
    tables: Fragment


def problems_of(main: Main, parts: list[Part]) -> list[str]:
    """Return everything that is wrong, each `FILE: KEY.PATH: what is wrong`. The first part is the main file's."""
    return [
        *_default_problems(main, parts),
        *_listener_problems(main, parts[0].where),
        *_status_problems(main, parts[0].where),
        *(f"{parts[0].where}: {problem}" for problem in notify_problems(main.notify)),
        *_twice_problems(parts),
        *_reference_problems(main, parts),
        *_authority_problems(parts),
        *_published_problems(main, parts),
        *_file_problems(main, parts),
    ]


def _default_problems(main: Main, parts: list[Part]) -> Iterator[str]:
    known = names(parts, "authority")
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


def _status_problems(main: Main, where: str) -> Iterator[str]:
    """Tell of a status that whoever can reach it could read."""
    status = main.status
    if status.tokens or (status.tls and status.tls.client_ca):
        return
    for one in listeners(status.listen):
        if not one.is_local:
            known = "a hash in [status.tokens] (run: certfan token NAME), or client_ca in [status.tls]"
            yield f"{where}: status.listen: {one} can be reached from other machines; say who may read: {known}"


def _twice_problems(parts: list[Part]) -> Iterator[str]:
    for kind in ("authority", "consumer"):
        seen: dict[str, str] = {}
        for part in parts:
            for name in getattr(part.tables, kind):
                if first := seen.get(name):
                    yield f"{part.where}: {toml.key_path((kind, name))}: {name} is in {first} already"
                seen.setdefault(name, part.where)
    taken: dict[str, str] = {}
    for part, index, table in certificates(parts):
        here = f"{part.where}: certificate[{index}]"
        name = name_of(table)
        if not CERTIFICATE_NAME.fullmatch(name):
            yield f'{here}.name: is missing, and "{name}" cannot be a folder\'s name'
        elif first := taken.get(name):
            yield f"{here}: the name {name} is taken by {first} already"
        taken.setdefault(name, here)


def _reference_problems(main: Main, parts: list[Part]) -> Iterator[str]:
    authorities, consumers = names(parts, "authority"), names(parts, "consumer")
    for part, index, table in certificates(parts):
        here = f"{part.where}: certificate[{index}]"
        for position, name in enumerate(table.consumers):
            if name not in consumers:
                guess = toml.did_you_mean(name, consumers)
                yield f"{here}.consumers[{position}]: there is no [consumer.{name}]{guess}"
        if table.custody is Custody.CONSUMER and len(table.consumers) > 1:
            yield (
                f'{here}.consumers: custody "consumer" takes exactly one, as its key never leaves it;'
                " write a [[certificate]] with a name of its own for each"
            )
        for position, name in enumerate(table.fallback):
            if name not in authorities:
                guess = toml.did_you_mean(name, authorities)
                yield f"{here}.fallback[{position}]: there is no [authority.{name}]{guess}"
            elif name == (table.authority or default_authority(main, parts)):
                yield f"{here}.fallback[{position}]: {name} is its authority already"
        if table.authority is not None and table.authority not in authorities:
            guess = toml.did_you_mean(table.authority, authorities)
            yield f"{here}.authority: there is no [authority.{table.authority}]{guess}"
        elif table.authority is None and default_authority(main, parts) is None:
            yield f"{here}.authority: is missing, and there is no default_authority"


def _authority_problems(parts: list[Part]) -> Iterator[str]:
    known = names(parts, "authority")
    for part in parts:
        for name, table in part.tables.authority.items():
            here = f"{part.where}: authority.{name}"
            if (table.eab_kid is None) != (table.eab_key_file is None):
                missing = "eab_key_file" if table.eab_kid else "eab_kid"
                yield f"{here}.{missing}: is missing; external account binding takes eab_kid and eab_key_file"
            if table.staging is not None and (table.staging not in known or table.staging == name):
                guess = toml.did_you_mean(table.staging, known - {name})
                yield f"{here}.staging: there is no other [authority.{table.staging}]{guess}"


def _published_problems(main: Main, parts: list[Part]) -> Iterator[str]:
    """Tell what an authority is known to refuse, before it is asked."""
    tables = {name: table for part in parts for name, table in part.tables.authority.items()}
    for part, index, certificate in certificates(parts):
        first = certificate.authority or default_authority(main, parts)
        for name in (first, *certificate.fallback):
            if name is None or name not in tables:
                continue
            own = certificate.profile if name == first else None
            profile = own or tables[name].profile
            names = tuple(map(Identifier, certificate.names))
            if why := published.of(tables[name].directory).why_not(profile, names):
                yield f"{part.where}: certificate[{index}].names: {name}: {why}"


def _file_problems(main: Main, parts: list[Part]) -> Iterator[str]:
    for key, name in main.status.tls or ():
        if name is not None:
            here = f"{parts[0].where}: status.tls.{key}"
            yield from _file_problem(here, Path(parts[0].where).parent / name, secret=key == "key")
    if main.log.ca_file is not None:
        file = Path(parts[0].where).parent / main.log.ca_file
        yield from _file_problem(f"{parts[0].where}: log.ca_file", file, secret=False)
    for key, name, secret in notify_files(main.notify):
        yield from _file_problem(
            f"{parts[0].where}: {key}", Path(parts[0].where).parent / name, secret=secret
        )
    for part in parts:
        for name, table in part.tables.authority.items():
            for key in ("ca_file", "roots_file", "eab_key_file"):
                if (file := getattr(table, key)) is not None:
                    here = f"{part.where}: {toml.key_path(('authority', name, key))}"
                    yield from _file_problem(
                        here, Path(part.where).parent / file, secret=key == "eab_key_file"
                    )


def _file_problem(here: str, file: Path, *, secret: bool) -> Iterator[str]:
    try:
        if not secret:
            # Whoever may write a trust anchor may be the authority.
            toml.refuse_open(file)
        elif file.stat().st_mode & 0o077:
            # Only its mode is judged: it belongs to the daemon's user, whoever reads the config now.
            yield f"{here}: {file} holds a secret that others can read; run: chmod 600 {file}"
        file.open("rb").close()
    except OSError as error:
        yield f"{here}: {file} cannot be read: {error.strerror}"


def certificates(parts: list[Part]) -> Iterator[tuple[Part, int, CertificateTable]]:
    """Return every [[certificate]] with its file and its place there."""
    return ((part, i, table) for part in parts for i, table in enumerate(part.tables.certificate))


def names(parts: list[Part], kind: str) -> set[str]:
    """Return the names of all tables of a kind."""
    return {name for part in parts for name in getattr(part.tables, kind)}


def name_of(table: CertificateTable) -> str:
    """Return a certificate's name: the given one, else its first identifier."""
    return table.name or table.names[0]


def default_authority(main: Main, parts: list[Part]) -> str | None:
    """Return whom a certificate comes from that names nobody: the only one that is nobody's staging authority."""
    if main.default_authority is not None:
        return main.default_authority
    tables = {name: table for part in parts for name, table in part.tables.authority.items()}
    found = tables.keys() - {table.staging for table in tables.values()}
    return next(iter(found)) if len(found) == 1 else None


def why_not_asked(leaf: pki.Leaf) -> str | None:
    """Return why no config could ask for what a leaf has, or None."""
    if leaf.key_type not in set(KeyType):
        return f"its key is {leaf.key_type}, not one of {', '.join(KeyType)}"
    for name in leaf.names:
        try:
            identifier(name)
        except ValueError as error:
            return str(error)
    return None
