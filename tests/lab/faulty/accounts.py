"""Accounts (RFC 8555 section 7.3): made, found, bound, changed, given a new key, deactivated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count
from typing import Any

from tests.lab.faulty import signing
from tests.lab.faulty.answers import Answer, Refused, json_answer, problem, refused
from tests.lab.faulty.records import Account, Behaviour, Records


@dataclass(frozen=True, slots=True)
class Accounts:
    """What can be done with accounts; `origin` is the authority's."""

    origin: str
    records: Records
    behaviour: Behaviour
    numbers: count[int]

    def new(self, jws: signing.Jws) -> Answer:
        """Make an account, or find that of the key."""
        jwk, asked = jws.protected["jwk"], jws.fields
        known = self.records.account_of(signing.thumbprint(jwk))
        if known is not None:
            if known.status != "valid":
                raise refused("unauthorized", 403, f"the account of this key is {known.status}")
            return self._shown(known).adding(Location=known.url)
        if asked.get("onlyReturnExisting") is True:
            raise refused("accountDoesNotExist", detail="no account has this key")
        if asked.get("termsOfServiceAgreed") is not True:
            raise refused("userActionRequired", 403, "agree to the terms of service")
        account = Account(
            url=f"{self.origin}/account/{next(self.numbers)}",
            jwk=jwk,
            thumbprint=signing.thumbprint(jwk),
            contact=_contacts(asked.get("contact", [])),
            external=self._bound(asked.get("externalAccountBinding"), jws),
        )
        self.records.accounts[account.url] = account
        return self._shown(account, 201).adding(Location=account.url)

    def update(self, account: Account, jws: signing.Jws) -> Answer:
        """Change contacts or deactivate; without a payload only look."""
        asked = jws.fields if jws.payload else {}
        if asked.get("status") == "deactivated":
            account.status = "deactivated"
        elif "contact" in asked:
            account.contact = _contacts(asked["contact"])
        return self._shown(account)

    def change_key(self, account: Account, jws: signing.Jws) -> Answer:
        """Put another key in place of the account's (section 7.3.5)."""
        inner = signing.read(jws.fields)
        jwk = inner.protected.get("jwk")
        if not isinstance(jwk, dict) or "nonce" in inner.protected:
            raise refused("malformed", detail="the inner JWS must have a jwk and no nonce")
        inner.verify(jwk)
        if inner.protected.get("url") != jws.protected["url"]:
            raise refused("malformed", detail="the inner url is another one")
        if inner.fields.get("account") != account.url:
            raise refused("malformed", detail="the inner JWS is about another account")
        if inner.fields.get("oldKey") != account.jwk:
            raise refused("malformed", detail="oldKey is not the account's key")
        other = self.records.account_of(signing.thumbprint(jwk))
        if other is not None:
            taken = problem("malformed", 409, "the key is that of an account")
            raise Refused(taken.adding(Location=other.url))
        account.jwk, account.thumbprint = jwk, signing.thumbprint(jwk)
        return self._shown(account)

    def _shown(self, account: Account, status: int = 200) -> Answer:
        fields = {"status": account.status, "contact": account.contact, "orders": f"{account.url}/orders"}
        return json_answer(fields, status)

    def _bound(self, binding: Any, outer: signing.Jws) -> str | None:
        known = self.behaviour.external_accounts
        if binding is None:
            if known:
                raise refused("externalAccountRequired", 403, "an external account is needed")
            return None
        jws = signing.read(binding)
        kid = jws.protected.get("kid")
        if kid not in known:
            raise refused("unauthorized", 403, f"no external account {kid!r:.80}")
        jws.verify_mac(known[kid])
        if jws.protected.get("url") != outer.protected["url"] or "nonce" in jws.protected:
            raise refused("malformed", detail="the binding has another url, or a nonce")
        if json.loads(jws.payload) != outer.protected["jwk"]:
            raise refused("malformed", detail="the binding is for another key")
        return kid


def _contacts(found: Any) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise refused("malformed", detail="contact is no list of texts")
    for one in found:
        if not one.startswith("mailto:"):
            raise refused("unsupportedContact", detail=f"{one!r:.80} is no mailto")
        if one.count("@") != 1 or "," in one or "?" in one:
            raise refused("invalidContact", detail=f"{one!r:.80} is not one address")
    return found
