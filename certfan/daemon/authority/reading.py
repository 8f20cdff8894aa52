"""Bodies of an authority's answers, checked field by field, as the values of `core.issuance`.

Stricter than the acme library where a field matters, and never surprised: `expired` is a status like any other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from certfan.core.issuance import (
    AuthorizationSeen,
    AuthorizationStatus,
    ChallengeSeen,
    ChallengeStatus,
    OrderSeen,
    OrderStatus,
)
from certfan.core.model import Identifier
from certfan.core.renewal import Window
from certfan.daemon.authority.answer import Answer
from certfan.daemon.authority.problems import fact, may_be_shown
from certfan.daemon.authority.transport import Transport

TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
MOST_AUTHORIZATIONS = 1000
MOST_CHALLENGES = 100
MOST_OF_EXPLANATION = 200  # characters of a URL that says why
S = TypeVar("S", bound=StrEnum)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the answers of one authority; every method raises AuthorityMalformed with the exact reason."""

    transport: Transport

    def directory(self, answer: Answer) -> dict[str, Any]:
        """Return a directory whose URLs that we use are there and the authority's own."""
        fields = self._object(answer, "the directory")
        for name in ("newNonce", "newAccount", "newOrder"):
            self.transport.check(fields.get(name), f"{name} of the directory")
        if not isinstance(fields.get("meta", {}), dict):
            raise self.transport.malformed("meta of the directory is no object")
        return fields

    def location(self, answer: Answer, what: str) -> str:
        """Return the URL of what was made."""
        found = answer.headers.get("Location")
        if found is None:
            self._object(answer, what)  # a web page is named as one, not as an answer that lacks a header
        return self.transport.check(found, f"the Location of {what}")

    def account_status(self, answer: Answer) -> str:
        """Return the status of an account; `valid` when it is not said."""
        return self._text(self._object(answer, "the account"), "status", "the account", default="valid")

    def order(self, answer: Answer, url: str) -> OrderSeen:
        """Read an order that lives at `url`."""
        what = "the order"
        fields = self._object(answer, what)
        status = self._status(OrderStatus, fields, what)
        authorizations = self._list(fields, "authorizations", what, MOST_AUTHORIZATIONS)
        certificate = fields.get("certificate")
        if certificate is not None or status is OrderStatus.VALID:
            certificate = self.transport.check(certificate, "certificate of the order")
        return OrderSeen(
            url,
            status,
            tuple(self.transport.check(u, "an authorization of the order") for u in authorizations),
            self.transport.check(fields.get("finalize"), "finalize of the order"),
            certificate=certificate,
            expires=self._instant(fields, "expires", what),
            problem=fact("authority.refused", fields.get("error")),
            retry_after=answer.retry_after,
        )

    def authorization(self, answer: Answer, url: str) -> AuthorizationSeen:
        """Read an authorization that lives at `url`; challenges of kinds that have no token are left out."""
        what = "the authorization"
        fields = self._object(answer, what)
        identifier = fields.get("identifier")
        if not isinstance(identifier, dict):
            raise self.transport.malformed(f"identifier of {what} is missing")
        challenges = self._list(fields, "challenges", what, MOST_CHALLENGES)
        return AuthorizationSeen(
            url,
            self._status(AuthorizationStatus, fields, what),
            Identifier(self._text(identifier, "value", f"identifier of {what}")),
            tuple(self._challenge(one) for one in challenges if self._has_token(one)),
            wildcard=fields.get("wildcard") is True,
            expires=self._instant(fields, "expires", what),
            retry_after=answer.retry_after,
        )

    def challenge(self, answer: Answer) -> ChallengeSeen:
        """Read one challenge."""
        return self._challenge(self._object(answer, "the challenge"))

    def renewal_info(self, answer: Answer) -> Window:
        """Read a suggested window (RFC 9773 section 4.2); an explanation that cannot be shown is left out."""
        what = "the renewal information"
        fields = self._object(answer, what)
        window = fields.get("suggestedWindow")
        if not isinstance(window, dict):
            raise self._wrong(fields, "suggestedWindow", what)
        start, end = (self._instant(window, name, f"suggestedWindow of {what}") for name in ("start", "end"))
        if start is None or end is None:
            raise self._wrong(window, "start" if start is None else "end", f"suggestedWindow of {what}")
        url = fields.get("explanationURL")
        return Window(
            start,
            end,
            explanation_url=url if may_be_shown(url, MOST_OF_EXPLANATION) else "",
            retry_after=answer.retry_after,
        )

    def _has_token(self, fields: object) -> bool:
        if not isinstance(fields, dict):
            raise self.transport.malformed("a challenge is no object")
        # dns-persist-01 and what may come: not ours, and no reason to refuse the rest.
        return "token" in fields or fields.get("type") in {"http-01", "dns-01", "tls-alpn-01"}

    def _challenge(self, fields: Mapping[str, Any]) -> ChallengeSeen:
        kind = self._text(fields, "type", "a challenge")
        what = f"challenge {kind}"
        token = self._text(fields, "token", what)
        if not TOKEN.fullmatch(token):
            raise self.transport.malformed(f"token of {what} is not base64url: {token!r:.150}")
        return ChallengeSeen(
            kind,
            self.transport.check(fields.get("url"), f"url of {what}"),
            self._status(ChallengeStatus, fields, what),
            token,
            fact("challenge.failed", fields.get("error")),
        )

    def _object(self, answer: Answer, what: str) -> dict[str, Any]:
        try:
            fields = answer.json()
        except ValueError as error:
            kind = answer.headers.get("Content-Type", "nothing said")
            raise self.transport.malformed(
                f"{what} at {answer.url} is not JSON (Content-Type: {kind:.80})"
            ) from error
        if not isinstance(fields, dict):
            raise self.transport.malformed(f"{what} at {answer.url} is no JSON object")
        return fields

    def _text(self, fields: Mapping[str, Any], name: str, what: str, default: str | None = None) -> str:
        value = fields.get(name, default)
        if not isinstance(value, str) or not 0 < len(value) <= 1000 or not value.isprintable():
            raise self._wrong(fields, name, what)
        return value

    def _list(self, fields: Mapping[str, Any], name: str, what: str, most: int) -> list[Any]:
        value = fields.get(name)
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(fields, name, what)
        return value

    def _status(self, statuses: Callable[[str], S], fields: Mapping[str, Any], what: str) -> S:
        try:
            return statuses(self._text(fields, "status", what))
        except ValueError:
            raise self._wrong(fields, "status", what) from None

    def _instant(self, fields: Mapping[str, Any], name: str, what: str) -> datetime | None:
        value = fields.get(name)
        if value is None:
            return None
        try:
            found = datetime.fromisoformat(value)  # TypeError: not even text
            if found.tzinfo is not None:
                return found.astimezone(UTC)
        except (ValueError, TypeError, OverflowError):
            pass
        raise self._wrong(fields, name, what)

    def _wrong(self, fields: Mapping[str, Any], name: str, what: str) -> Exception:
        if name not in fields:
            return self.transport.malformed(f"{what} has no {name}")
        return self.transport.malformed(f"{name} of {what} is wrong: {fields[name]!r:.100}")


def caa_identities(directory: Mapping[str, Any]) -> frozenset[str]:
    """Return the domains by which CAA records name an authority (RFC 8555 section 7.1.1); empty when it says none."""
    told = directory.get("meta", {}).get("caaIdentities")
    return frozenset(one for one in told if isinstance(one, str)) if isinstance(told, list) else frozenset()
