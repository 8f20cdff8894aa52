"""What is to become of a foreign tree beside our config: who is adopted as what, what the config lacks. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from certfan import pki
from certfan.core.model import CERTIFICATE_NAME, Authority, Desired
from certfan.errors import PkiError
from certfan.takeover.tree import FoundAccount, FoundPair, LeftOut, Tree

LETSENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
LETSENCRYPT_STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"
# What is good and cannot be asked for is ordered anew in a form that can, or renewed where it came from.
_INSTEAD = "a [[certificate]] with each host by its own name, of a key type and name that are possible, can replace it"
_KNOWN = {LETSENCRYPT: "letsencrypt", LETSENCRYPT_STAGING: "letsencrypt-staging"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """A pair that is good, the certificate whose generation it becomes, and whether the config has that already."""

    name: str
    found: FoundPair
    pair: pki.Pair
    authority: str
    in_config: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that would be done. `authorities` are those the config lacks, each with its directory."""

    tree: Tree
    authorities: Mapping[str, str]
    accounts: Mapping[str, FoundAccount]  # by our name of the authority
    adoptions: tuple[Adoption, ...]
    left_out: tuple[LeftOut, ...]


def make(
    tree: Tree,
    desired: Desired,
    *,
    why_not: Callable[[pki.Leaf], str | None],
    roots: Callable[[Authority], bytes],
    now: datetime,
) -> Plan:
    """Hold a tree against the config. `why_not` says what the config could not ask for."""
    places = _places(tree, desired)
    found, left_out = _accounts(tree, places)
    adoptions: dict[str, Adoption] = {}
    for one in sorted(tree.pairs, key=lambda pair: pair.name):
        authority = places[one.directory]
        spec = desired.authorities.get(authority, Authority(authority, one.directory))
        judged = _judged(one, spec, desired, why_not, roots, now)
        if isinstance(judged, LeftOut):
            left_out.append(judged)
            continue
        other = adoptions.get(judged.name, judged)
        older, newer = sorted((other, judged), key=lambda adoption: adoption.pair.leaf.not_before)
        adoptions[judged.name] = newer
        if older is not newer:
            left_out.append(LeftOut(older.found.name, f"{newer.found.name} has the same names and is newer"))
    return Plan(
        tree=tree,
        authorities={name: place for place, name in places.items() if name not in desired.authorities},
        accounts=found,
        adoptions=tuple(adoptions.values()),
        left_out=(*tree.left_out, *left_out),
    )


def _accounts(tree: Tree, places: Mapping[str, str]) -> tuple[dict[str, FoundAccount], list[LeftOut]]:
    """Return the account that is adopted at each authority, and those that are not."""
    found: dict[str, FoundAccount] = {}
    left_out = []
    for directory, name in places.items():
        for account in tree.accounts_at(directory):
            chosen = found.setdefault(name, account)
            if chosen is not account:
                why = f"{name} has another one, {chosen.where.name}"
                left_out.append(LeftOut(f"account {account.where.name}", why))
    return found, left_out


def _places(tree: Tree, desired: Desired) -> dict[str, str]:
    """Return our name for each authority of the tree, by its directory: the config's, else one that is free."""
    ours = {one.directory: name for name, one in sorted(desired.authorities.items(), reverse=True)}
    found: dict[str, str] = {}
    taken = set(desired.authorities)
    for directory in dict.fromkeys(
        (*(p.directory for p in tree.pairs), *(a.directory for a in tree.accounts))
    ):
        name = ours.get(directory) or _free(directory, taken)
        taken.add(name)
        found[directory] = name
    return found


def _free(directory: str, taken: set[str]) -> str:
    host = re.sub(r"[^a-z0-9]+", "-", (urlsplit(directory).hostname or "ca").lower()).strip("-")
    name = _KNOWN.get(directory, host[:50] or "ca")
    return next(
        one for n in range(1, len(taken) + 2) if (one := f"{name}-{n}" if n > 1 else name) not in taken
    )


def _judged(
    found: FoundPair,
    authority: Authority,
    desired: Desired,
    why_not: Callable[[pki.Leaf], str | None],
    roots: Callable[[Authority], bytes],
    now: datetime,
) -> Adoption | LeftOut:
    try:
        pair = pki.load_foreign_pair(found.key_pem, found.fullchain_pem, now=now, roots_pem=roots(authority))
    except PkiError as error:
        return LeftOut(found.name, error.text)
    if (why := why_not(pair.leaf)) is not None:
        return LeftOut(found.name, why, hint=_INSTEAD, stays=True)
    names = set(pair.leaf.names)
    asked = [one for one in desired.certificates.values() if {str(i) for i in one.identifiers} == names]
    fitting = [one for one in asked if one.key_type == pair.leaf.key_type]
    if asked and not fitting:
        return LeftOut(
            found.name,
            f"certificate {asked[0].name} of the config asks for {asked[0].key_type}, not {pair.leaf.key_type}",
        )
    if fitting:
        name = next((one.name for one in fitting if one.name == found.name), fitting[0].name)
        return Adoption(name=name, found=found, pair=pair, authority=authority.name, in_config=True)
    name = next((n for n in (found.name.lower(), pair.leaf.names[0]) if CERTIFICATE_NAME.fullmatch(n)), "")
    if not name:
        why = "that cannot be the name of a certificate here"
        return LeftOut(found.name, why, hint=_INSTEAD, stays=True)
    if name in desired.certificates:
        why = f"certificate {name} of the config is for other names"
        return LeftOut(found.name, why, hint=f"rename {name} in the config", stays=True)
    return Adoption(name=name, found=found, pair=pair, authority=authority.name, in_config=False)
