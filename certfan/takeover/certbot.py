"""certbot's folder, as 1.x to 5.x write it: renewal/NAME.conf, live/NAME, accounts/HOST/PATH/ID.

https://eff-certbot.readthedocs.io/en/stable/using.html#where-are-my-certificates
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from josepy import jwk
from josepy.errors import Error as JoseError

from certfan.errors import TreeUnreadable
from certfan.takeover.tree import (
    FoundAccount,
    FoundPair,
    Tree,
    Way,
    contacts_of,
    read_bytes,
    read_json,
    read_text,
    text_of,
    usable,
)

LETSENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"  # what an old file means that names no server
_DEEPEST = 8  # folders between accounts/ and an account
_HOOKS = ("pre_hook", "post_hook", "renew_hook")
_STOP = "systemctl disable --now certbot.timer snap.certbot.renew.timer; and look into /etc/cron.d/certbot"

Sections = Mapping[str, Mapping[str, str]]


def is_one(root: Path) -> bool:
    """Say whether a folder is certbot's."""
    return (root / "renewal").is_dir()


def read(root: Path) -> Tree:
    """Read all of it; whatever cannot be used is named in `left_out`."""
    at = root / "accounts"
    accounts, odd = usable(_account_places(at), partial(_account, at), lambda place: f"account {place.name}")
    pairs, broken = usable(
        sorted((root / "renewal").glob("*.conf")), partial(_pair, root), lambda conf: conf.stem
    )
    return Tree(
        "certbot",
        root,
        accounts=accounts,
        pairs=pairs,
        left_out=(*odd, *broken),
        stop=_STOP,
        stop_some=f"leave its timer on, and move NAME.conf of each of the others out of {root / 'renewal'}",
    )


def _account_places(accounts: Path) -> Iterator[Path]:
    # The folder of one server may be a link to that of another, whose accounts are reused.
    for folder, inner, names in os.walk(accounts, followlinks=True):
        inner.sort()
        if len(Path(folder).relative_to(accounts).parts) >= _DEEPEST:
            inner.clear()
        if "private_key.json" in names:
            yield Path(folder)


def _account(accounts: Path, place: Path) -> FoundAccount:
    directory = "https://" + place.parent.relative_to(accounts).as_posix()
    try:
        known: Any = jwk.JWK.from_json(read_json(place / "private_key.json"))
        key_pem = known.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    except (ValueError, TypeError, AttributeError, KeyError, JoseError) as error:
        raise TreeUnreadable(f"{place / 'private_key.json'}: is no private key as JWK") from error
    said = read_json(place / "regr.json")
    return FoundAccount(
        directory, text_of(said, "uri"), key_pem, where=place, contact=contacts_of(said.get("body"))
    )


def _pair(root: Path, conf: Path) -> FoundPair:
    sections = _sections(read_text(conf))
    params, live = sections.get("renewalparams", {}), root / "live" / conf.stem
    if not live.is_dir():  # moved by hand: the file says where
        live = Path(sections.get("", {}).get("privkey", str(live / "privkey.pem"))).parent
    roots = sorted(set(sections.get("webroot_map", {}).values())) or _list(params.get("webroot_path", ""))
    return FoundPair(
        conf.stem,
        read_bytes(live / "privkey.pem"),
        read_bytes(live / "fullchain.pem"),
        directory=params.get("server", LETSENCRYPT),
        way=Way(
            params.get("authenticator", "unknown"),
            tuple(roots),
            tuple(f"{hook} = {params[hook]}" for hook in _HOOKS if params.get(hook)),
        ),
        where=live,
        account=params.get("account", ""),
        profile=params.get("required_profile") or params.get("preferred_profile"),
    )


def _sections(text: str) -> Sections:
    """Read certbot's ini with its nested sections; what it writes has one value a line."""
    found: dict[str, dict[str, str]] = {"": {}}
    here = found[""]
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            here = found.setdefault(line.strip("[] "), {})
        elif not line.startswith("#") and "=" in line:
            key, _, value = line.partition("=")
            here[key.strip()] = value.strip().strip("\"'")
    return found


def _list(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]
