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
from certfan.daemon.store import AccountFact, Store
from certfan.errors import ActionRefused, AuthorityRefused


class AcmeClient(Protocol):
    """One account at one authority; one method is one exchange. daemon.authority.AcmeAuthority is the real one."""

    async def look(self) -> frozenset[str]:
        """See whether the authority answers at all; return the domains by which CAA records name it."""

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
            await self._settle_key(authority)
            # On disk before the authority hears of it, so that a lost answer costs no second account.
            key = self._state.account_key(authority.name, self._make_key)
            account = await self._store.account(authority.name, authority.directory)
            client = self._connect(authority, key, account.uri if account else None)
            try:
                if account is None:
                    await self._register(authority, client, key)
                elif account.contact != authority.contact:
                    await self._tell_contact(authority, client)
            except BaseException:
                await client.close()
                raise
            self._clients[authority] = client
            return client

    async def look(self, authority: Authority) -> frozenset[str]:
        """See whether an authority answers; only its directory is asked for. Repeatable.

        Returns the domains by which CAA records name it.

        Raises:
            AuthorityError: it does not, or not in ACME.
        """
        known = self._clients.get(authority)
        key = self._state.account_key(authority.name, self._make_key)
        client = known or self._connect(authority, key, None)
        try:
            return await client.look()
        finally:
            if known is None:
                await client.close()

    async def _register(self, authority: Authority, client: AcmeClient, key: bytes) -> None:
        uri = await client.register()
        await self._record(authority, uri, key)
        await self._journal.note("account.registered", authority.name, uri=uri)

    async def _record(self, authority: Authority, uri: str, key: bytes) -> None:
        thumbprint, now = pki.public_key_hash(key), self._clock()
        await self._store.record_account(authority.name, authority.directory, uri, thumbprint, now)
        await self._store.record_contact(authority.name, authority.directory, authority.contact)

    async def _tell_contact(self, authority: Authority, client: AcmeClient) -> None:
        """Have the authority know the config's contacts; a refusal of them holds up no order."""
        try:
            await client.update_contacts()
        except AuthorityRefused as error:
            if error.type.endswith(":accountDoesNotExist"):
                raise
            await self._journal.warn(
                "account.contact_refused", authority.name, detail=error.text, hint=error.hint
            )
        else:
            await self._store.record_contact(authority.name, authority.directory, authority.contact)
            await self._journal.note("account.updated", authority.name, contact=list(authority.contact))

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

    # A new key for an account (RFC 8555 section 7.3.5)

    async def roll_key(self, authority: Authority) -> None:
        """Give our account there a new key; the old one is gone afterwards. Repeatable, and completed after a crash.

        No order may be under way there: its challenges are answered with the old key.

        Raises:
            AuthorityError: it did not take the new key; the old one is still in force.
        """
        client = await self.client(authority)
        async with self._connecting[authority.name]:
            fresh = self._state.next_account_key(authority.name, self._make_key)
            try:
                await client.change_key(fresh)
            except BaseException:
                # It may have taken the key: the next client finds out which of both counts.
                self._clients.pop(authority, None)
                await client.close()
                raise
            await self._promote(authority, client, fresh)

    async def _settle_key(self, authority: Authority) -> None:
        """Find out whether a new key that a crash left undecided has come into force."""
        fresh = self._state.read_next_account_key(authority.name)
        if fresh is None:
            return
        client = self._connect(authority, fresh, None)
        try:
            if await client.find_account() is not None:
                await self._promote(authority, client, fresh)
        finally:
            await client.close()

    async def _promote(self, authority: Authority, client: AcmeClient, fresh: bytes) -> None:
        """Make the new key the key: first what is answered with it, then the file, which ends the old one."""
        old = self._connect(authority, self._state.account_key(authority.name, self._make_key), None)
        live = await self._store.tokens()
        ours = [token for token, answer in live.items() if answer == old.key_authorization(token)]
        await old.close()
        answers = {token: client.key_authorization(token) for token in ours}
        thumbprint = pki.public_key_hash(fresh)
        await self._store.change_account_key(authority.name, authority.directory, thumbprint, answers)
        self._state.promote_account_key(authority.name)
        await self._journal.note("account.key_changed", authority.name, thumbprint=thumbprint)

    # Taking an account along

    async def recorded(self, authority: Authority) -> AccountFact:
        """Return what is known of our account there.

        Raises:
            ActionRefused: there is no account yet.
        """
        account = await self._store.account(authority.name, authority.directory)
        if account is None:
            raise ActionRefused(
                f"there is no account at {authority.name} yet",
                subject=authority.name,
                hint="it is made with the first order",
            )
        return account

    async def export(self, authority: Authority) -> tuple[str, bytes]:
        """Return our account's URL and its private key (PEM).

        Raises:
            ActionRefused: there is no account yet.
            AuthorityError: a crash left a new key undecided, and it does not say which one counts.
        """
        account = await self.recorded(authority)
        async with self._connecting[authority.name]:
            await self._settle_key(authority)
            return account.uri, self._state.account_key(authority.name, self._make_key)

    async def adopt(self, authority: Authority, key: bytes) -> str:
        """Use the account that a key has at an authority from now on; return its URL. Repeatable.

        The key that was used before is kept beside it.

        Raises:
            PairMismatch: it is no private key.
            ActionRefused: the authority knows no account of that key.
            AuthorityError: it does not say.
        """
        async with self._connecting[authority.name]:
            await self._settle_key(
                authority
            )  # of the account that was used before: it is kept with the key that counts
            client = self._connect(authority, key, None)
            try:
                uri = await client.find_account()
            finally:
                await client.close()
            if uri is None:
                raise ActionRefused(
                    f"{authority.name} knows no account of that key",
                    subject=authority.name,
                    hint=f"check that the key is of an account at {authority.directory}",
                )
            for spec in [spec for spec in self._clients if spec.name == authority.name]:
                await self._clients.pop(spec).close()
            # The new key was wished for the account that was used before.
            await self._store.drop_rollover(authority.name)
            # A crash from here on: whichever key lies there then finds its own account.
            await self._store.forget_account(authority.name, authority.directory)
            self._state.replace_account_key(authority.name, key, self._clock())
            await self._record(authority, uri, key)
            await self._journal.note("account.adopted", authority.name, uri=uri)
            return uri
