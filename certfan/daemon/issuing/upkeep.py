"""What authorities are asked beside orders: when to renew, to revoke, to tidy up; and our own look at a challenge's way.

Joins store, state folder and authority, as the issuer does. What must never come in: when any of it is due (core.upkeep).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import assert_never

from certfan import pki
from certfan.core.issuance import AuthorizationStatus
from certfan.core.model import (
    Authority,
    Desired,
    Generation,
    Identifier,
    Leftover,
    Problem,
    RevocationReason,
)
from certfan.core.renewal import renewal_info
from certfan.core.steps import (
    AskRenewal,
    CheckPath,
    GiveUpOrder,
    Revoke,
    RollAccountKey,
    TidyOrders,
    UpkeepStep,
)
from certfan.core.subjects import subject_of
from certfan.core.upkeep import LEFTOVER_LIFE
from certfan.daemon.issuing.accounts import Accounts, AcmeClient
from certfan.daemon.issuing.ordering import ACME_ERROR, GONE, Tokens
from certfan.daemon.journal import Journal
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store, StoreFacts
from certfan.errors import ActionRefused, AuthorityRefused

Check = Callable[[Identifier], Awaitable[Problem | None]]


class Upkeep:
    """Carries out one step of upkeep at a time; each is repeatable, and cut off at any point it is done again."""

    def __init__(
        self,
        *,
        store: Store,
        state: StateFolder,
        journal: Journal,
        accounts: Accounts,
        tokens: Tokens,
        check: Check,
        clock: Callable[[], datetime],
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._state = state
        self._journal = journal
        self._accounts = accounts
        self._tokens = tokens
        self._check = check
        self._clock = clock
        self._dice = dice

    async def do(self, desired: Desired, step: UpkeepStep) -> None:
        """Carry a step out; one that failed before has failed no more then.

        Raises:
            AuthorityError, ActionRefused: it could not be done.
        """
        match step:
            case CheckPath():
                await self.check_path(step)
            case AskRenewal():
                await self.ask_renewal(desired, step)
            case Revoke():
                await self.revoke(desired, step)
            case GiveUpOrder():
                await self.give_up(step)
            case TidyOrders():
                await self.tidy(desired, step)
            case RollAccountKey():
                await self.roll_account_key(desired, step)
            case _:
                assert_never(step)
        await self._store.clear_attempt(subject_of(step, desired))

    async def check_path(self, step: CheckPath) -> None:
        """Look as the authority would, and remember what was seen; a failure is a fact, not an error."""
        problem = await self._check(Identifier(step.identifier))
        turned = await self._store.record_check(step.identifier, problem, self._clock())
        if turned and problem is not None:
            await self._journal.warn(
                "path.broken", step.identifier, code=problem.code, detail=problem.detail, hint=problem.hint
            )
        elif turned:
            await self._journal.note("path.mended", step.identifier)

    async def ask_renewal(self, desired: Desired, step: AskRenewal) -> None:
        """Ask the authority that issued a generation when to renew it (RFC 9773), and choose the instant.

        Raises:
            AuthorityError: it did not say.
        """
        facts = await self._store.facts()
        generation = _generation(facts, step.certificate, step.generation)
        chain = self._state.read_chain(step.certificate, step.generation)
        cert_id = pki.renewal_id(chain) if chain is not None else None
        window = None
        if cert_id is not None:
            client = await self._accounts.client(_authority(desired, generation))
            window = await client.renewal_info(cert_id)
        before = facts.renewal_infos.get((step.certificate, step.generation))
        now = self._clock()
        info = renewal_info(generation, window, before, now, dice=self._dice())
        await self._store.put_renewal_info(info)
        if window is not None and (before is None or before.chosen != info.chosen):
            await self._journal.note(
                "renewal.suggested",
                str(generation),
                start=info.start.isoformat(),
                end=info.end.isoformat(),
                chosen=info.chosen.isoformat(),
                explanation=info.explanation_url,
            )

    async def revoke(self, desired: Desired, step: Revoke) -> None:
        """Have a generation revoked, for the reason that was asked for.

        A compromised key revokes itself, which makes the authority refuse it for ever.

        Raises:
            AuthorityError: it did not do so.
            ActionRefused: its authority is not in the config.
        """
        wish = (await self._store.revocations()).get((step.certificate, step.generation))
        if wish is None:
            return
        generation = _generation(await self._store.facts(), step.certificate, step.generation)
        if step.expired:  # no authority revokes it, and nobody trusts it; its key stays spent
            await self._store.mark_revoked(step.certificate, step.generation, self._clock())
            await self._journal.note("revocation.needless", str(generation), reason=wish.reason.value)
            return
        client = await self._accounts.client(_authority(desired, generation))
        files = self._state.read_generation(step.certificate, step.generation)
        der = pki.read_leaf(files["fullchain.pem"]).der
        key_pem = files.get("privkey.pem")  # none where a consumer alone has it: our account revokes then
        own = key_pem if wish.reason is RevocationReason.KEY_COMPROMISE else None
        try:
            await client.revoke(der, wish.reason.code, key_pem=own)
        except AuthorityRefused as error:
            if own is not None or key_pem is None or error.type != f"{ACME_ERROR}unauthorized":
                raise
            # Another account of ours has ordered it; whoever holds its key may revoke it too.
            await client.revoke(der, wish.reason.code, key_pem=key_pem)
        await self._store.mark_revoked(step.certificate, step.generation, self._clock())
        await self._journal.warn("generation.revoked", str(generation), reason=wish.reason.value)

    async def roll_account_key(self, desired: Desired, step: RollAccountKey) -> None:
        """Give the account there a new key; what waits to be fetched is answered with it.

        Raises:
            AuthorityError: the old key is still in force.
        """
        authority = desired.authorities[step.authority]
        # A change that a crash cut off is completed by the first who asks for the client: the wish is then fulfilled.
        await self._accounts.client(authority)
        if step.authority in (await self._store.facts()).rollovers:
            await self._accounts.roll_key(authority)
        self._tokens.replace(await self._store.tokens())

    async def give_up(self, step: GiveUpOrder) -> None:
        """Close an order that nobody wants any more; its tokens are answered no longer."""
        problem = Problem("authority.refused", f"{step.certificate}: it has left the config")
        await self._store.abandon_issuance(step.certificate, step.generation, problem, self._clock())
        await self._journal.note("order.given_up", f"{step.certificate}@{step.generation}")
        self._tokens.replace(await self._store.tokens())

    async def tidy(self, desired: Desired, step: TidyOrders) -> None:
        """Deactivate what orders that were given up left pending; what another order waits for is left alone.

        Raises:
            AuthorityError: it did not do so; what was done is remembered.
        """
        client = await self._accounts.client(desired.authorities[step.authority])
        for leftover in await self._store.leftovers():
            if leftover.authority == step.authority:
                await self._tidy_one(client, leftover)
                await self._store.drop_leftover(leftover.order_url)

    async def _tidy_one(self, client: AcmeClient, leftover: Leftover) -> None:
        if leftover.recorded_at + LEFTOVER_LIFE <= self._clock():
            return
        try:
            for url in (await client.order(leftover.order_url)).authorizations:
                seen = await client.authorization(url)
                waited_for = any(self._tokens.key_authorization(c.token) for c in seen.challenges)
                if seen.status is AuthorizationStatus.PENDING and not waited_for:
                    await client.deactivate(url)
                    await self._journal.note(
                        "authorization.deactivated", str(seen.identifier), order=leftover.order_url
                    )
        except AuthorityRefused as error:
            # It does not know the order any more, or it is another account's: nothing of ours is pending.
            if error.status not in GONE and not 400 <= error.status < 429:
                raise


def _generation(facts: StoreFacts, certificate: str, number: int) -> Generation:
    return next(g for g in facts.generations[certificate] if g.number == number)


def _authority(desired: Desired, generation: Generation) -> Authority:
    found = desired.authorities.get(generation.authority)
    if found is None:
        raise ActionRefused(
            f"{generation} was issued by {generation.authority}, which is not in the config",
            subject=str(generation),
            hint=f"put [authority.{generation.authority}] back into certfan.toml",
        )
    return found
