"""What the channel asks of the daemon, as one small protocol that the composition root wires to the store."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Protocol

from certfan.errors import CertfanError
from certfan.protocol.messages import Assignments, EnrolReply, Report


class Identity(Protocol):
    """A certificate that was issued to a consumer; the store's `IdentityFact` is one."""

    @property
    def consumer(self) -> str:
        """Whose it is."""

    @property
    def used_at(self) -> datetime | None:
        """None before its first use."""

    @property
    def ended_at(self) -> datetime | None:
        """None while it counts."""


class Board(Protocol):
    """Everything behind the channel's routes. Callers were identified before any of it is asked."""

    async def identity(self, serial: str) -> Identity | None:
        """Return the identity of a serial; asked at every request, so it must be cheap."""

    async def adopt(self, cert_der: bytes) -> Identity | None:
        """Return the identity of a certificate of ours that the store has lost with a restore, known from now on."""

    async def used(self, consumer: str, serial: str) -> bool:
        """Note an identity's first use; True if that ended others of the consumer."""

    async def renew(self, consumer: str, serial: str, csr: bytes, *, trust: int = 0) -> bytes:
        """Return the certificate (PEM) that follows an identity; raises RequestInvalid, NotAuthenticated, NotAllowed.

        `trust` is the number of the statement of trust that the agent has pinned.
        """

    async def assignments(self, consumers: Collection[str]) -> Mapping[str, Assignments]:
        """Return all that each of the consumers is to have now, with the revision it has."""

    async def acknowledged(self, revisions: Mapping[str, str]) -> None:
        """Note which revision each of some consumers has; repeated after a restart of either end."""

    async def report(self, consumer: str, report: Report) -> None:
        """Take what a consumer says; an older report is dropped silently."""

    async def bundle(self, consumer: str, certificate: str, generation: int) -> Mapping[str, bytes]:
        """Return the six files of what is assigned to the consumer; raises ShareError, PkiError or UnknownName."""

    async def take_csr(self, consumer: str, certificate: str, generation: int, csr: bytes) -> None:
        """Keep the CSR (PEM) of a key that the consumer has made; raises NotAllowed, RequestInvalid."""

    async def redeem(self, token: str, csr: bytes, sealing_key: bytes | None) -> EnrolReply:
        """Turn a one-time token into an identity; raises EnrolmentRefused, RequestInvalid."""

    async def refused(self, error: CertfanError) -> None:
        """Note that a known consumer, or a token of one (its subject), asked for what it may not have."""
