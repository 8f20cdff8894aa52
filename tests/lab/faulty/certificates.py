"""Certificates once issued: handed out, revoked (RFC 8555 sections 7.4.2 and 7.6), renewal suggested (RFC 9773)."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding

from tests.lab.faulty import signing
from tests.lab.faulty.answers import CHAIN, Answer, json_answer, refused
from tests.lab.faulty.records import Account, Behaviour, Issued, Records

REASONS = {0, 1, 3, 4, 5}


@dataclass(frozen=True, slots=True)
class Certificates:
    """What can be done with certificates."""

    records: Records
    behaviour: Behaviour

    def download(self, issued: Issued, which: int) -> Answer:
        """Hand out one chain, with links to the others."""
        if which >= len(issued.chains):
            raise refused("malformed", 404, "no such chain")
        answer = Answer(200, issued.chains[which], CHAIN)
        for other in range(len(issued.chains)):
            if other != which:
                url = f"{issued.url}/{other}" if other else issued.url
                answer = answer.adding(Link=f'<{url}>;rel="alternate"')
        return answer

    def revoke(self, account: Account | None, jws: signing.Jws) -> Answer:
        """Revoke; without an account the request carries the certificate's own key."""
        try:
            der = signing.decoded(jws.fields["certificate"])
        except (KeyError, ValueError, TypeError):
            raise refused("malformed", detail="there is no certificate") from None
        found = (
            c for c in self.records.certificates.values() if c.certificate.public_bytes(Encoding.DER) == der
        )
        issued = next(found, None)
        if issued is None:
            raise refused("malformed", 404, "no certificate of ours")
        if not self._may_revoke(account, jws, issued):
            raise refused("unauthorized", 403, "neither its account, nor its key, nor all its names")
        reason = jws.fields.get("reason", 0)
        if reason not in REASONS:
            raise refused("badRevocationReason", detail=f"reason {reason!r:.20}")
        if issued.revoked is not None:
            raise refused("alreadyRevoked", detail="it is revoked already")
        issued.revoked = reason
        return Answer(200)

    def renewal_info(self, cert_id: str) -> Answer:
        """Say when a certificate should be renewed."""
        issued = self.records.by_cert_id(cert_id)
        if issued is None:
            raise refused("malformed", 404, "no such certificate")
        window, wait = issued.suggested, self.behaviour.renewal_retry_after
        fields = {
            "suggestedWindow": {
                "start": f"{window.start:%Y-%m-%dT%H:%M:%SZ}",
                "end": f"{window.end:%Y-%m-%dT%H:%M:%SZ}",
            },
            "explanationURL": window.explanation_url,
        }
        return json_answer(fields).adding(Retry_After=None if wait is None else str(wait))

    def _may_revoke(self, account: Account | None, jws: signing.Jws, issued: Issued) -> bool:
        if account is None:
            own = signing.spki(issued.certificate.public_key())
            return signing.spki(signing.public_key(jws.protected["jwk"])) == own
        held = {
            one.identifier[1]
            for one in self.records.authorizations.values()
            if one.account == account.url and one.status == "valid"
        }
        return issued.account == account.url or set(issued.names) <= held
