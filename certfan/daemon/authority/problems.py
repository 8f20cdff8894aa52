"""ACME problem documents (RFC 8555 section 6.7, RFC 9457) as one line of text, a hint, an error or a fact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from certfan.core.model import Authority, Problem
from certfan.daemon.authority.answer import Answer
from certfan.errors import AuthorityRefused

PREFIX = "urn:ietf:params:acme:error:"
LONGEST_TEXT = 500
MAX_SUBPROBLEMS = 100

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
    "externalAccountRequired": "this authority wants external account binding; choose another one",
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
    )


def fact(code: str, document: object) -> Problem | None:
    """Return the problem that an order or a challenge carries, if it carries one."""
    if not isinstance(document, Mapping):
        return None
    return Problem(code, _one_line(describe(document)), hint_for(document))


def kind(document: Mapping[str, Any]) -> str:
    """Return the type without the prefix that all of ACME's share."""
    return _text(document.get("type"), "about:blank").removeprefix(PREFIX)


def describe(document: Mapping[str, Any]) -> str:
    """Return type, detail and every subproblem in one line."""
    return "; ".join(_parts(document))


def hint_for(document: Mapping[str, Any], links: tuple[str, ...] = ()) -> str:
    """Return what to try next; when the authority wants an action, with the URL where."""
    nested = document.get("subproblems")
    kinds = [kind(document), *(kind(one) for one in _mappings(nested))]
    hint = next((_HINTS[one] for one in kinds if one in _HINTS), "see the authority's documentation")
    url = next((u for u in (document.get("instance"), *links) if _may_be_shown(u)), None)
    return f"open {url}" if kinds[0] == "userActionRequired" and url else hint


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


def _may_be_shown(url: object) -> bool:
    return isinstance(url, str) and url.startswith("https://") and len(url) <= 200 and url.isprintable()


def _text(value: object, default: str = "") -> str:
    return value if isinstance(value, str) and value else default


def _one_line(text: str) -> str:
    # The text came over the wire: no line breaks, no escape sequences in logs and terminals.
    shown = "".join(c if c.isprintable() else " " for c in text[: 4 * LONGEST_TEXT])
    return " ".join(shown.split())[:LONGEST_TEXT]
