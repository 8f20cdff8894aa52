"""dehydrated's folders: config (shell, of which only plain `NAME=value` lines are read), certs/NAME, accounts/ID.

https://github.com/dehydrated-io/dehydrated/blob/master/docs/per-certificate-config.md
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

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

# What its config may say instead of a URL.
_NAMED = {
    "letsencrypt": "https://acme-v02.api.letsencrypt.org/directory",
    "letsencrypt-test": "https://acme-staging-v02.api.letsencrypt.org/directory",
    "zerossl": "https://acme.zerossl.com/v2/DV90",
    "buypass": "https://api.buypass.com/acme/directory",
    "buypass-test": "https://api.test4.buypass.no/acme/directory",
    "google": "https://dv.acme-v02.api.pki.goog/directory",
    "google-test": "https://dv.acme-v02.test-api.pki.goog/directory",
}
_LINE = re.compile(r"""\s*(?:export\s+)?([A-Z_0-9]+)=(?:"([^"]*)"|'([^']*)'|([^\s#;]*))\s*(?:#.*)?""")
_STOP = "remove dehydrated from cron: look into /etc/cron.d, /etc/cron.daily and `systemctl list-timers`"

Settings = Mapping[str, str]


def is_one(root: Path) -> bool:
    """Say whether a folder is dehydrated's: of its config, or of what it got."""
    return (root / "domains.txt").is_file() or (root / "certs").is_dir()


def read(root: Path) -> Tree:
    """Read all of it; whatever cannot be used is named in `left_out`."""
    settings = _settings(root)
    there = sorted(_folders(Path(settings["ACCOUNTDIR"])))
    accounts, odd = usable(there, _account, lambda place: f"account {place.name}")
    read_pair = partial(_pair, directory=_directory(settings, accounts), settings=settings)
    pairs, broken = usable(sorted(_folders(Path(settings["CERTDIR"]))), read_pair, lambda place: place.name)
    return Tree(
        "dehydrated",
        root,
        accounts=accounts,
        pairs=pairs,
        left_out=(*odd, *broken),
        stop=_STOP,
        stop_some=f"leave its cron job on, and take the others out of {root / 'domains.txt'}",
    )


def _settings(root: Path) -> dict[str, str]:
    """Return what its config says, with the defaults of what is used here."""
    found = _assigned(root / "config", {"BASEDIR": str(root)})
    more = found.get("CONFIG_D")
    for file in sorted(Path(more).glob("*.sh")) if more else ():
        found = _assigned(file, found)
    base = found["BASEDIR"]
    defaults = {
        "CERTDIR": f"{base}/certs",
        "ACCOUNTDIR": f"{base}/accounts",
        "WELLKNOWN": "/var/www/dehydrated",
        "CHALLENGETYPE": "http-01",
    }
    return {**defaults, **found}


def _assigned(file: Path, before: Settings) -> dict[str, str]:
    """Return what a file assigns, after what was assigned before; anything but plain lines is left alone."""
    found = dict(before)
    if not file.is_file():
        return found
    for line in read_text(file).splitlines():
        if match := _LINE.fullmatch(line):
            value = next((text for text in match.groups()[1:] if text is not None), "")
            found[match[1]] = re.sub(r"\$\{?([A-Z_0-9]+)\}?", lambda name: found.get(name[1], name[0]), value)
    return found


def _folders(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (one for one in path.iterdir() if one.is_dir())


def _directory(settings: Settings, accounts: Sequence[FoundAccount]) -> str:
    ca = settings.get("CA", "")
    if not ca:  # its default; a folder without a config has at most an account that tells
        return accounts[0].directory if len(accounts) == 1 else _NAMED["letsencrypt"]
    return _NAMED.get(ca, ca)


def _account(place: Path) -> FoundAccount:
    # The folder is the directory's URL, base64url without padding; a newline came along.
    try:
        padded = place.name + "=" * (-len(place.name) % 4)
        directory = base64.urlsafe_b64decode(padded).decode().strip()
    except (binascii.Error, UnicodeDecodeError):
        directory = ""
    if not directory.startswith("https://"):
        raise TreeUnreadable(f"{place}: does not say of which authority it is")
    uri = text_of(read_json(place / "account_id.json"), "url")
    mail = contacts_of(read_json(place / "registration_info.json"))
    return FoundAccount(directory, uri, read_bytes(place / "account_key.pem"), where=place, contact=mail)


def _pair(place: Path, directory: str, settings: Settings) -> FoundPair:
    own = _assigned(place / "config", settings)
    is_http = own["CHALLENGETYPE"] == "http-01"
    return FoundPair(
        place.name,
        read_bytes(place / "privkey.pem"),
        read_bytes(place / "fullchain.pem"),
        directory=directory,
        way=Way(
            "webroot" if is_http else own["CHALLENGETYPE"],
            (own["WELLKNOWN"],) if is_http else (),
            (f"HOOK = {own['HOOK']}",) if own.get("HOOK") else (),
        ),
        where=place,
        profile=own.get("ACME_PROFILE") or None,
    )
