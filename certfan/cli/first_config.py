"""The text of a first certfan.toml out of a few answers; the daemon's own reading says whether it is good."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

AUTHORITIES = {
    "letsencrypt": "https://acme-v02.api.letsencrypt.org/directory",
    "letsencrypt-staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What was answered, as it was typed."""

    fleet: str
    address: str
    share: str
    mount: bool
    authority: str
    contact: str
    consumers: tuple[str, ...]  # NAME or NAME=ADDRESS
    certificates: tuple[tuple[str, ...], ...]


def first_config(answers: Answers) -> str:
    """Return the whole file."""
    return "\n".join(
        (*_daemon(answers), *_authorities(answers), *_consumers(answers), *_certificates(answers))
    )


def _quoted(text: str) -> str:
    # A JSON string is a basic string of TOML; DEL apart, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _listener(address: str, port: int) -> str:
    return _quoted(f"[{address}]:{port}" if ":" in address else f"{address}:{port}")


def _daemon(answers: Answers) -> Iterator[str]:
    yield "# certfan: the daemon's config, with conf.d/*.toml beside it. `certfan check` tells every problem of all files."
    yield "# Saved changes are taken over at once; only what is bound or opened at start needs `systemctl restart certfan`."
    yield ""
    yield "# A short word for all your machines together; it stands in the names of certfan's own internal certificates."
    yield f"fleet = {_quoted(answers.fleet)}"
    yield ""
    yield "# Keys and facts. On a local disk, never on the share. `certfan backup` makes one file of it."
    yield 'state = "/var/lib/certfan"'
    yield ""
    if answers.authority == "letsencrypt":
        yield "# Which authority a certificate comes from that names none; needed as there are several."
        yield 'default_authority = "letsencrypt"'
        yield ""
    yield "[share]"
    yield f"path = {_quoted(answers.share)}   # where the volume is mounted, read-write on this machine"
    yield f"require_mount = {'true' if answers.mount else 'false'}   # refuse a bare directory"
    yield ""
    yield "[http01]"
    yield "# Where every vhost proxies /.well-known/acme-challenge/ to; see: certfan snippet apache"
    yield f"listen = [{_listener(answers.address, 8055)}]"
    yield "# Before an order we fetch our own answer through every vhost. Off where this machine cannot reach the public"
    yield "# addresses of its own network (hairpin NAT)."
    yield '# self_check = "off"'
    yield ""
    yield "[channel]"
    yield "# Where agents dial, over TLS 1.3 with certfan's own certificates. Keep it on the internal side."
    yield f"listen = [{_listener(answers.address, 8057)}]"
    yield ""
    yield "[status]"
    yield "# /livez, /readyz, /metrics, /api/v1; read-only."
    yield 'listen = ["127.0.0.1:8056"]'
    yield ""
    yield "[control]"
    yield 'group = "certfan-admin"   # who may use the command line'
    yield ""


def _authorities(answers: Answers) -> Iterator[str]:
    name = answers.authority if answers.authority in AUTHORITIES else "authority"
    yield f"[authority.{name}]"
    yield f"directory = {_quoted(AUTHORITIES.get(answers.authority, answers.authority))}"
    if answers.contact:
        contact = answers.contact if ":" in answers.contact else f"mailto:{answers.contact}"
        yield f"contact = [{_quoted(contact)}]"
    yield "agree_to_terms = true   # you have read its terms of service"
    if name == "authority":
        yield '# ca_file = "ca.pem"        # what its HTTPS is verified by, instead of the system\'s roots'
        yield '# roots_file = "roots.pem"  # what its chains must end in, instead of the system\'s roots'
    if name == "letsencrypt":
        yield 'staging = "staging"     # where `certfan check --order` tries certificates at no cost'
        yield ""
        yield "[authority.staging]"
        yield f"directory = {_quoted(AUTHORITIES['letsencrypt-staging'])}"
        yield "agree_to_terms = true"
    yield ""


def _consumers(answers: Answers) -> Iterator[str]:
    yield "# One for each VM with an agent. Group (name or number) and mode are those of its key files on the share."
    for one in answers.consumers:
        name, _, address = one.partition("=")
        yield f"[consumer.{_quoted(name)}]"
        yield 'group = "certfan"'
        if address:
            yield f"address = [{_quoted(address)}]   # from where it mounts its folder, for `certfan share setup`"
    if not answers.consumers:
        yield "# [consumer.web1]"
        yield '# group = "certfan"'
    yield ""


def _certificates(answers: Answers) -> Iterator[str]:
    yield "# The first name names the certificate and its folder. Any number of these, here or in conf.d/*.toml."
    names = [one.partition("=")[0] for one in answers.consumers]
    for one in answers.certificates:
        yield "[[certificate]]"
        yield f"names = [{', '.join(map(_quoted, one))}]"
        yield f"consumers = [{', '.join(map(_quoted, names))}]"
    if not answers.certificates:
        yield "# [[certificate]]"
        yield '# names = ["www.example.org", "example.org"]'
        yield '# consumers = ["web1"]'
    yield ""
