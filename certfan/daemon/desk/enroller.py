"""One-time tokens and what they are redeemed for: joins the internal CA and the store.

A token exists in the printed line alone; the store has its hash.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta

from certfan import pki
from certfan.daemon.store import IdentityFact, Store
from certfan.errors import EnrolmentRefused
from certfan.protocol.identity import consumer_of, make_line
from certfan.protocol.messages import EnrolReply

TOKEN_LIFETIME = timedelta(minutes=15)
_TOKEN_BYTES = 16  # 128 bit


class Enroller:
    """Hands out enrolment lines and honours them. `address` is what agents dial: host:port."""

    def __init__(
        self, ca: pki.InternalCA, store: Store, *, clock: Callable[[], datetime], address: str
    ) -> None:
        self._ca = ca
        self._store = store
        self._clock = clock
        self._address = address
        self._issuer: Callable[[int], pki.InternalCA] = lambda _: self._ca

    def take_over(self, ca: pki.InternalCA, issuer: Callable[[int], pki.InternalCA]) -> None:
        """Use another CA from now on; `issuer` says which one an agent gets that has pinned a statement of trust."""
        self._ca = ca
        self._issuer = issuer

    async def add(self, consumer: str) -> str:
        """Return a line that enrols one agent of `consumer` within 15 minutes. Earlier lines keep their time.

        Cancelled, a token may be open that nobody knows.
        """
        now = self._clock()
        token = base64.b32encode(secrets.token_bytes(_TOKEN_BYTES)).decode().rstrip("=").lower()
        await self._store.add_consumer(consumer, now)
        await self._store.open_enrolment(consumer, token_hash(token), now + TOKEN_LIFETIME, now)
        return make_line(self._address, token, self._ca.cert_pem)

    async def redeem(self, token: str, csr: bytes, *, sealing_key: bytes | None = None) -> EnrolReply:
        """Issue a consumer certificate for the key of a request (PEM or DER).

        `sealing_key` is the public key that the consumer's private keys may be sealed to.

        The same key may ask again while the token lives, and gets the same certificate.

        Raises:
            EnrolmentRefused: the token is unknown, expired, or spent by another key.
            RequestInvalid: the request is not signed by its own key, or the key is of another kind.
        """
        now = self._clock()
        request = pki.read_csr(csr)
        enrolment = await self._store.enrolment(token_hash(token))
        if enrolment is None:
            raise EnrolmentRefused(
                "enrolment token is not known",
                hint="run: certfan consumer add NAME on the daemon's machine, and use its line",
            )
        cert_pem, leaf = self._ca.issue_consumer(csr, enrolment.consumer, now)
        identity = _fact(leaf, enrolment.consumer, spki=request.spki_hash, cert_pem=cert_pem)
        stored = await self._store.redeem(token_hash(token), request.spki_hash, now, identity, sealing_key)
        return EnrolReply(
            certificate=stored.decode("ascii"),
            ca=self._ca.cert_pem.decode("ascii"),
            fleet=self._ca.fleet,
            consumer=enrolment.consumer,
        )

    async def renew(self, consumer: str, serial: str, csr: bytes, *, trust: int = 0) -> bytes:
        """Issue the successor (PEM) of a live identity for the new key of a request; repeatable with that key.

        `trust` is the number of the statement that the agent has pinned: it decides which CA may issue it.
        Both count until the successor is used for the first time.

        Raises:
            RequestInvalid: the request is not signed by its own key, or the key is an old one or of another kind.
            NotAuthenticated: the identity has ended.
        """
        now = self._clock()
        request = pki.read_csr(csr)
        cert_pem, leaf = self._issuer(trust).issue_consumer(csr, consumer, now)
        successor = _fact(leaf, consumer, spki=request.spki_hash, cert_pem=cert_pem)
        return await self._store.renew_identity(serial, now, successor)

    async def adopt(self, cert_der: bytes) -> IdentityFact | None:
        """Take in an identity of our CA that the store has lost with a restore; None if it cannot be one.

        TLS has verified the certificate, and this CA signs only what the store holds at that time.
        """
        leaf = pki.read_leaf(cert_der)
        consumer = consumer_of(cert_der).consumer
        cert_pem = ssl.DER_cert_to_PEM_cert(cert_der).encode()
        found = _fact(leaf, consumer, spki=pki.certified_key_hash(cert_der), cert_pem=cert_pem)
        adopted = await self._store.adopt_identity(found, pki.issued_at(leaf), self._clock())
        return found if adopted else None


def _fact(leaf: pki.Leaf, consumer: str, *, spki: str, cert_pem: bytes) -> IdentityFact:
    return IdentityFact(
        leaf.serial,
        consumer,
        spki=spki,
        certificate_pem=cert_pem,
        not_before=leaf.not_before,
        not_after=leaf.not_after,
    )


def token_hash(token: str) -> str:
    """Return what is stored of a token."""
    return hashlib.sha256(token.encode()).hexdigest()
