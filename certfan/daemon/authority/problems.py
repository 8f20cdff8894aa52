"""ACME problem documents (RFC 8555 section 6.7, RFC 9457) as one line of text, a hint, an error or a fact."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from certfan.core.model import Authority, Problem
from certfan.daemon.authority.answer import Answer
from certfan.errors import AuthorityRefused

PREFIX = "urn:ietf:params:acme:error:"
LONGEST_TEXT = 500
LONGEST_URL = 2000  # one that lets a paused account go on holds a whole signed token
MAX_SUBPROBLEMS = 100
_URL = re.compile(r"https://[!-~]+")
_NAME = re.compile(r"[!-~]{1,253}")

_HINTS = {
    "accountDoesNotExist": "registered again by itself, with the same key",
    "alreadyReplaced": "ordered again without `replaces`",
    "badCSR": "check key type and names of the certificate",
    "badPublicKey": "choose another key_type",
    "badSignatureAlgorithm": "make a new account key of kind ecdsa-p256",
    "caa": "let the CAA records of the name allow this authority",
    "connection": "let the vhost of the name forward /.well-known/acme-challenge/ and open port 80 to the world",
    "dns": "publish A or AAAA records of the name, and check its DNSSEC",
    "dnssec": "check the DNSSEC of the name",
    "externalAccountRequired": "set eab_kid and eab_key_file of the authority",
    "incorrectResponse": "let the vhost of the name forward /.well-known/acme-challenge/ to this machine",
    "invalidContact": "correct contact of the authority",
    "invalidProfile": "choose a profile that the authority advertises",
    "orderNotReady": "looked at again by itself",
    "rateLimited": "waits by itself; fewer names, or another authority, help sooner",
    "rejectedIdentifier": "remove the name, or choose another authority for it",
    "serverInternal": "the authority's own fault: tried again by itself",
    "tls": "check the certificate that the name redirects to",
    "unauthorized": "check that the name points here and that its vhost forwards /.well-known/acme-challenge/",
    "unsupportedContact": "correct contact of the authority",
    "unsupportedIdentifier": "this authority does not certify such a name or address",
    "userActionRequired": "the authority wants something of you; see its web site",
}


def refusal(spec: Authority, asked: str, answer: Answer, document: Mapping[str, Any]) -> AuthorityRefused:
    """Return the error for a problem document that answered what was asked (`new order`, `finalize`)."""
    links = answer.links("terms-of-service") if kind(document) == "userActionRequired" else ()
    return AuthorityRefused(
        _one_line(f"authority {spec.name} refused {asked}: {describe(document)}"),
        type=_text(document.get("type"), "about:blank"),
        status=answer.status_code,
        subject=spec.name,
        hint=hint_for(document, links),
        not_before=answer.not_before,
        identifiers=_identifiers(document),
    )


def fact(code: str, document: object) -> Problem | None:
    """Return the problem that an order or a challenge carries, if it carries one."""
    if not isinstance(document, dict):
        return None
    return Problem(code, _one_line(describe(document)), hint_for(document))


def kind(document: Mapping[str, Any]) -> str:
    """Return the type without the prefix that all of ACME's share."""
    return _text(document.get("type"), "about:blank").removeprefix(PREFIX)


def describe(document: Mapping[str, Any]) -> str:
    """Return type, detail and every subproblem in one line."""
    return "; ".join(_parts(document))


def hint_for(document: Mapping[str, Any], links: tuple[str, ...] = ()) -> str:
    """Return what to try next; when the authority wants an action, with the whole URL where."""
    nested = document.get("subproblems")
    kinds = [kind(document), *(kind(one) for one in _mappings(nested))]
    hint = next((_HINTS[one] for one in kinds if one in _HINTS), "see the authority's documentation")
    detail = _text(document.get("detail"))
    match kinds[0]:
        case "userActionRequired":
            url = next(_shown(document.get("instance"), *links, *_urls(detail)), None)
            return f"open {url}" if url else hint
        case "rateLimited":
            url = next(_shown(*_urls(detail)), None)
            if url is None:
                return hint
            # A limit goes away by itself, a paused account (Boulder has no type of its own for it) does not.
            paused = "unpause" in url or "visit" in detail.lower()
            return f"open {url}" if paused else f"{hint}; see {url}"
    return hint


def _urls(detail: str) -> Iterator[str]:
    return (found[0].rstrip(".,;:!?)>]}\"'") for found in _URL.finditer(detail))


def _shown(*urls: object) -> Iterator[str]:
    return (url for url in urls if may_be_shown(url, LONGEST_URL))


def _identifiers(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names that the subproblems are about, each once; one that is no name at all is left out."""
    named = (one.get("identifier") for one in _mappings(document.get("subproblems")))
    values = (_text(one.get("value")) for one in named if isinstance(one, Mapping))
    return tuple(dict.fromkeys(value for value in values if _NAME.fullmatch(value)))


def _parts(document: Mapping[str, Any]) -> Iterator[str]:
    detail = _text(document.get("detail")) or _text(document.get("title"))
    yield f"{kind(document)}: {detail}" if detail else kind(document)
    for sub in _mappings(document.get("subproblems")):
        identifier = sub.get("identifier")
        name = _text(identifier.get("value")) if isinstance(identifier, Mapping) else ""
        yield " ".join(filter(None, [name, f"{kind(sub)}:", _text(sub.get("detail"))]))


def _mappings(value: object) -> list[Mapping[str, Any]]:
    if not isinstance(value, list):
        return []
    return [one for one in value[:MAX_SUBPROBLEMS] if isinstance(one, Mapping)]


def may_be_shown(url: object, longest: int) -> TypeGuard[str]:
    """Say whether a URL that came over the wire can be given to a user to open."""
    return isinstance(url, str) and len(url) <= longest and _URL.fullmatch(url) is not None


def _text(value: object, default: str = "") -> str:
    return value if isinstance(value, str) and value else default


def _one_line(text: str) -> str:
    # The text came over the wire: no line breaks, no escape sequences in logs and terminals.
    shown = "".join(c if c.isprintable() else " " for c in text[: 4 * LONGEST_TEXT])
    return " ".join(shown.split())[:LONGEST_TEXT]
