"""Which resource an exchange is about, and whether it may: signatures, nonces, whose it is (RFC 8555 section 6)."""

from __future__ import annotations

import random
import re
import secrets
from dataclasses import dataclass
from typing import Any

from tests.lab.faulty import signing
from tests.lab.faulty.accounts import Accounts
from tests.lab.faulty.answers import Answer, Refused, json_answer, refused
from tests.lab.faulty.certificates import Certificates
from tests.lab.faulty.faults import Kind
from tests.lab.faulty.ordering import Ordering
from tests.lab.faulty.records import Account, Authorization, Behaviour, Issued, Records

_JOSE = "application/jose+json"
_UNSIGNED = {Kind.DIRECTORY, Kind.NEW_NONCE, Kind.RENEWAL_INFO}
_PATHS = {
    "/directory": Kind.DIRECTORY,
    "/new-nonce": Kind.NEW_NONCE,
    "/new-account": Kind.NEW_ACCOUNT,
    "/new-order": Kind.NEW_ORDER,
    "/key-change": Kind.KEY_CHANGE,
    "/revoke-cert": Kind.REVOKE_CERT,
}
_PATTERNS = (
    (re.compile(r"/renewal-info/[^/]+"), Kind.RENEWAL_INFO),
    (re.compile(r"/account/\d+"), Kind.ACCOUNT),
    (re.compile(r"/order/\d+"), Kind.ORDER),
    (re.compile(r"/order/\d+/finalize"), Kind.FINALIZE),
    (re.compile(r"/authorization/\d+"), Kind.AUTHORIZATION),
    (re.compile(r"/challenge/\d+/[a-z0-9-]+"), Kind.CHALLENGE),
    (re.compile(r"/certificate/\d+(/\d+)?"), Kind.CERTIFICATE),
)


def kind_of(path: str) -> Kind:
    """Say what a path is about."""
    return _PATHS.get(path) or next(
        (kind for pattern, kind in _PATTERNS if pattern.fullmatch(path)), Kind.UNKNOWN
    )


@dataclass(frozen=True, slots=True)
class Request:
    """What came, before anything of it is believed."""

    number: int
    method: str
    path: str
    content_type: str
    body: bytes
    kind: Kind


class Nonces:
    """Every nonce is good once, unless the dice or a test say otherwise."""

    def __init__(self, behaviour: Behaviour, seed: int) -> None:
        self._behaviour, self._dice = behaviour, random.Random(seed)
        self.good: set[str] = set()
        self.reject_next = 0

    def make(self) -> str:
        """Return a new one."""
        nonce = secrets.token_urlsafe(16)
        self.good.add(nonce)
        return nonce

    def use(self, nonce: Any) -> None:
        """Spend one; raises Refused."""
        good = nonce in self.good
        self.good.discard(nonce)
        unlucky = self._dice.randrange(100) < self._behaviour.nonce_reject
        if good and self.reject_next:
            self.reject_next -= 1
            unlucky = True
        if unlucky or not good:
            raise refused(
                "badNonce", detail="told so by the test" if good else "not a nonce of ours, or used"
            )


@dataclass(frozen=True, slots=True)
class Routes:
    """Verifies requests and hands them to the resources."""

    origin: str
    records: Records
    behaviour: Behaviour
    nonces: Nonces
    ordering: Ordering
    accounts: Accounts
    certificates: Certificates

    def names(self, request: Request, payload: Any) -> tuple[str, ...]:
        """Return the identifiers that a request is about, before anything of it is believed."""
        url = self.origin + request.path
        match request.kind:
            case Kind.NEW_ORDER if isinstance(payload, dict):
                return tuple(str(one.get("value")) for one in payload.get("identifiers", []))
            case Kind.ORDER | Kind.FINALIZE if order := self.records.orders.get(
                url.removesuffix("/finalize")
            ):
                return order.names
            case Kind.AUTHORIZATION | Kind.CHALLENGE if found := self._authorization_of(request.path):
                return (found.identifier[1],)
            case Kind.CERTIFICATE if issued := self._issued_at(request.path):
                return self.records.orders[issued.order].names
            case Kind.RENEWAL_INFO if known := self.records.by_cert_id(request.path.rpartition("/")[2]):
                return known.names
        return ()

    def process(self, request: Request) -> Answer:
        """Do what was asked, or answer why not."""
        try:
            if request.kind in _UNSIGNED:
                return self._unsigned(request)
            jws, account = self._verified(request)
            return self._signed(request, jws, account)
        except Refused as why:
            return why.answer

    def _unsigned(self, request: Request) -> Answer:
        if request.method not in {"GET", "HEAD"}:
            raise refused("malformed", 405, "this is for GET")
        match request.kind:
            case Kind.NEW_NONCE:
                return Answer(200 if request.method == "HEAD" else 204)
            case Kind.RENEWAL_INFO if self.behaviour.renewal_info:
                return self.certificates.renewal_info(request.path.rpartition("/")[2])
            case Kind.DIRECTORY:
                return json_answer(self._directory())
        raise refused("malformed", 404, "nothing is here")

    def _directory(self) -> dict[str, Any]:
        made = {Kind.NEW_NONCE, Kind.NEW_ACCOUNT, Kind.NEW_ORDER, Kind.KEY_CHANGE, Kind.REVOKE_CERT}
        urls = {str(kind): self.origin + path for path, kind in _PATHS.items() if kind in made}
        if self.behaviour.renewal_info:
            urls[Kind.RENEWAL_INFO] = f"{self.origin}/renewal-info"
        meta = {
            "termsOfService": "https://example.org/terms",
            "externalAccountRequired": bool(self.behaviour.external_accounts),
            "profiles": {name: profile.description for name, profile in self.behaviour.profiles.items()},
        }
        return {**urls, "meta": meta}

    def _verified(self, request: Request) -> tuple[signing.Jws, Account | None]:
        """Verify everything that RFC 8555 section 6 asks of a request, and say whose it is (None: a bare key's)."""
        if request.method != "POST":
            raise refused("malformed", 405, "this is for POST")
        if request.content_type != _JOSE:
            raise refused("malformed", 415, f"Content-Type is not {_JOSE}")
        jws = signing.read(request.body)
        jwk, kid = jws.protected.get("jwk"), jws.protected.get("kid")
        by_jwk = isinstance(jwk, dict)
        if by_jwk == isinstance(kid, str):
            raise refused("malformed", detail="not exactly one of jwk and kid")
        if by_jwk and request.kind not in {Kind.NEW_ACCOUNT, Kind.REVOKE_CERT}:
            raise refused("malformed", detail="this needs a kid")
        if not by_jwk and request.kind is Kind.NEW_ACCOUNT:
            raise refused("malformed", detail="this needs a jwk")
        account = None if by_jwk else self.records.accounts.get(str(kid))
        if not by_jwk and account is None:
            raise refused("accountDoesNotExist", detail="no such account")
        jws.verify(account.jwk if account else dict(jwk or {}))
        if jws.protected.get("url") != self.origin + request.path:
            raise refused("unauthorized", 403, "the url of the signature is another one")
        self.nonces.use(jws.protected.get("nonce"))
        if account is not None and account.status != "valid":
            raise refused("unauthorized", 403, f"the account is {account.status}")
        return jws, account

    def _signed(self, request: Request, jws: signing.Jws, account: Account | None) -> Answer:
        match request.kind:
            case Kind.NEW_ACCOUNT:
                return self.accounts.new(jws)
            case Kind.REVOKE_CERT:
                return self.certificates.revoke(account, jws)
            case Kind.UNKNOWN:
                raise refused("malformed", 404, "nothing is here")
        assert account is not None
        return self._of_account(request, jws, account)

    def _of_account(self, request: Request, jws: signing.Jws, account: Account) -> Answer:
        url = self.origin + request.path
        match request.kind:
            case Kind.ACCOUNT:
                return self.accounts.update(_own(self.records.accounts.get(url), account, "url"), jws)
            case Kind.KEY_CHANGE:
                return self.accounts.change_key(account, jws)
            case Kind.NEW_ORDER:
                return self.ordering.new(account, jws)
            case Kind.ORDER:
                return self.ordering.look(_own(self.records.orders.get(url), account))
            case Kind.FINALIZE:
                order = self.records.orders.get(url.removesuffix("/finalize"))
                return self.ordering.finalize(_own(order, account), jws)
            case Kind.CERTIFICATE:
                issued = _own(self._issued_at(request.path), account)
                return self.certificates.download(issued, int((request.path.split("/")[3:] or ["0"])[0]))
        authorization = _own(self._authorization_of(request.path), account)
        if request.kind is Kind.AUTHORIZATION:
            return self.ordering.look_at_authorization(authorization, jws)
        challenge = next((one for one in authorization.challenges if one.url == url), None)
        if challenge is None:
            raise refused("malformed", 404, "no such challenge")
        return self.ordering.answer(account, authorization, challenge, jws)

    def _authorization_of(self, path: str) -> Authorization | None:
        return self.records.authorizations.get(f"{self.origin}/authorization/{path.split('/')[2]}")

    def _issued_at(self, path: str) -> Issued | None:
        return self.records.certificates.get(f"{self.origin}/certificate/{path.split('/')[2]}")


def _own(found: Any, account: Account, attribute: str = "account") -> Any:
    if found is None:
        raise refused("malformed", 404, "nothing is here")
    if getattr(found, attribute) != account.url:
        raise refused("unauthorized", 403, "it belongs to another account")
    return found
