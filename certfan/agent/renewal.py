"""How an agent's identity is followed by the next one: at half-life, without a human, and never in one step.

The new key is on disk before it is sent; the present identity counts until the daemon has seen the new one used.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from certfan import log, pki
from certfan.agent.identity import IdentityFolder, Trust
from certfan.agent.link import Link
from certfan.errors import CertfanError, MessageInvalid, NotAuthenticated, PkiError
from certfan.protocol.identity import consumer_of

SPREAD = (
    0.1  # of the lifetime: agents that were enrolled together are renewed over these days after half-life
)
PAUSE = timedelta(hours=1)  # at most, after a try that failed; there are months left


class Renewal:
    """Looks after one identity folder. The instant within the spread is chosen once a life of the process."""

    def __init__(
        self,
        link: Link,
        folder: Path,
        trust: Trust,
        *,
        clock: Callable[[], datetime],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._link = link
        self._folder = folder
        self._trust = trust
        self._clock = clock
        self._jitter = jitter
        self._chosen = jitter()
        self._not_before: datetime | None = None
        self._log = log.get("renewal")

    async def look(self) -> None:
        """Renew the identity if it is time; what goes wrong is told, and tried again within the hour.

        Cancelled anywhere, the next look goes on with the same key.
        """
        now = self._clock()
        # A hold further ahead than it can be was set before the clock was put right.
        if self._not_before is not None and now < self._not_before <= now + PAUSE:
            return
        try:
            cert_pem = (self._folder / "cert.pem").read_bytes()
            # One that is not of the CA which is to stay is followed at once: it keeps the other from being dropped.
            if not pki.is_of(cert_pem, self._trust.newest_ca) or now >= self._due_at(pki.read_leaf(cert_pem)):
                await self._renew(cert_pem)
            self._not_before = None
        except (CertfanError, OSError) as error:
            self._not_before = now + PAUSE * (0.5 + self._jitter() / 2)
            self._log.warning(
                "identity.unrenewed",
                detail=str(error),
                hint=getattr(error, "hint", ""),
                again_at=self._not_before.isoformat(),
            )

    def _due_at(self, leaf: pki.Leaf) -> datetime:
        return leaf.not_before + (leaf.not_after - leaf.not_before) * (0.5 + SPREAD * self._chosen)

    async def _renew(self, present: bytes) -> None:
        with IdentityFolder(self._folder).opened() as folder:
            key_pem = folder.renewal_key()
            try:
                cert_pem = await self._link.renew(pki.make_csr_pem(key_pem))
            except MessageInvalid:
                folder.drop_renewal_key()  # it may be the key that is refused
                raise
            leaf = self._checked(key_pem, cert_pem)
            if (self._folder / "cert.pem").read_bytes() != present:
                raise NotAuthenticated("this machine was enrolled anew while its identity was renewed")
            folder.succeed(key_pem, cert_pem)
        # What is open shows the identity before; the next call shows this one.
        await self._link.close()
        self._log.info("identity.renewed", serial=leaf.serial, not_after=leaf.not_after.isoformat())

    def _checked(self, key_pem: bytes, cert_pem: bytes) -> pki.Leaf:
        """Return the leaf that came, if it is ours: nothing else may replace an identity that works."""
        try:
            leaf = pki.load_pair(key_pem, cert_pem).leaf
            pki.verify_chain(cert_pem, names=(), now=self._clock(), roots_pem=self._trust.ca_pem)
            caller = consumer_of(leaf.der)
        except (PkiError, NotAuthenticated) as error:
            raise MessageInvalid(f"renewed identity is not usable: {error}") from error
        if (caller.fleet, caller.consumer) != (self._trust.fleet, self._trust.consumer):
            raise MessageInvalid(f"renewed identity is that of {caller.consumer} of fleet {caller.fleet}")
        return leaf
