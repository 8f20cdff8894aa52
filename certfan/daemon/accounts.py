"""One account an authority: its key made first, registered once, reused by URL at every start."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from certfan import pki
from certfan.core.issuance import AuthorizationSeen, ChallengeSeen, OrderSeen
from certfan.core.model import Authority
from certfan.core.renewal import Window
from certfan.daemon.journal import Journal
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store


class AcmeClient(Protocol):
    """One account at one authority; one method is one exchange. daemon.authority.AcmeAuthority is the real one."""

    async def look(self) -> None:
        """See whether the authority answers at all."""

    async def register(self) -> str:
        """Return the account's URL, made now unless the key has one."""

    async def find_account(self) -> str | None:
        """Return the account's URL; None: the key has no account there."""

    async def update_contacts(self) -> None:
        """Give the account the contacts of the authority's spec."""

    async def change_key(self, new_key_pem: bytes) -> None:
        """Give the account another key, and sign with that from then on."""

    async def new_order(
        self, csr_der: bytes, *, profile: str | None = None, replaces: str | None = None
    ) -> OrderSeen:
        """Order the names of a request, as the successor of a certificate by its certID."""

    async def order(self, url: str) -> OrderSeen:
        """Look at an order."""

    async def authorization(self, url: str) -> AuthorizationSeen:
        """Look at an authorization."""

    async def answer(self, challenge_url: str) -> ChallengeSeen:
        """Have the authority try a challenge."""

    async def finalize(self, url: str, csr_der: bytes, *, order_url: str) -> OrderSeen:
        """Send the request of a ready order."""

    async def certificate(self, url: str, *, issuer: str | None = None) -> bytes:
        """Return the chain, PEM, leaf first: the one that ends in `issuer` if it is offered, else the default."""

    async def renewal_info(self, cert_id: str) -> Window | None:
        """Return when the authority wants a certificate renewed; None: it never says."""

    async def revoke(self, cert_der: bytes, reason: int, *, key_pem: bytes | None = None) -> None:
        """Revoke a certificate, signed by the account or by the certificate's own key."""

    async def deactivate(self, authorization_url: str) -> None:
        """Give an authorization up."""

    def key_authorization(self, token: str) -> str:
        """Return what answers a challenge."""

    async def close(self) -> None:
        """Close the connections."""


# Account key (PEM) and, once known, account URL in; a client out.
Connect = Callable[[Authority, bytes, str | None], AcmeClient]


class Accounts:
    """Hands out a connected client for an authority; all orders there share it."""

    def __init__(
        self,
        *,
        store: Store,
        state: StateFolder,
        journal: Journal,
        connect: Connect,
        make_key: Callable[[], bytes],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._state = state
        self._journal = journal
        self._connect = connect
        self._make_key = make_key
        self._clock = clock
        self._clients: dict[Authority, AcmeClient] = {}
        # A lock each: an authority that does not answer keeps nobody from another one.
        self._connecting: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def client(self, authority: Authority) -> AcmeClient:
        """Return the client of our account there, registered now if it never was. Repeatable.

        Cancelled, an account may exist that is not recorded; the same key finds it again.

        Raises:
            AuthorityError: it could not be registered.
        """
        async with self._connecting[authority.name]:
            if client := self._clients.get(authority):
                return client
            # On disk before the authority hears of it, so that a lost answer costs no second account.
            key = self._state.account_key(authority.name, self._make_key)
            account = await self._store.account(authority.name, authority.directory)
            client = self._connect(authority, key, account.uri if account else None)
            try:
                if account is None:
                    await self._register(authority, client, key)
            except BaseException:
                await client.close()
                raise
            self._clients[authority] = client
            return client

    async def look(self, authority: Authority) -> None:
        """See whether an authority answers; only its directory is asked for. Repeatable.

        Raises:
            AuthorityError: it does not, or not in ACME.
        """
        known = self._clients.get(authority)
        key = self._state.account_key(authority.name, self._make_key)
        client = known or self._connect(authority, key, None)
        try:
            await client.look()
        finally:
            if known is None:
                await client.close()

    async def _register(self, authority: Authority, client: AcmeClient, key: bytes) -> None:
        uri = await client.register()
        thumbprint = pki.public_key_hash(key)
        await self._store.record_account(authority.name, authority.directory, uri, thumbprint, self._clock())
        await self._journal.note("account.registered", authority.name, uri=uri)

    async def forget(self, client: AcmeClient) -> None:
        """Register again at the next use, with the same key: the authority has lost the account."""
        for spec in [spec for spec, one in self._clients.items() if one is client]:
            # First, so that the next of many orders that hear of it finds it done.
            del self._clients[spec]
            await self._store.forget_account(spec.name, spec.directory)
            await client.close()

    async def close(self) -> None:
        """Close the connections to all authorities; repeatable."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()
