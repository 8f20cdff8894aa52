"""What an admin can ask of the authority side: revoke, look after an account, try an order where it costs nothing.

Whoever asked is named in the journal. What must never come in: when any of it is done (core.orders, core.upkeep); an
account's key in a text, an event or a log line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from datetime import datetime, timedelta
from typing import Any

from certfan import pki
from certfan.core.ledger import Ledger
from certfan.core.looks import checked_identifiers
from certfan.core.model import (
    Authority,
    Desired,
    Generation,
    Identifier,
    Problem,
    Revocation,
    RevocationReason,
)
from certfan.core.revocation import choose
from certfan.daemon.desk.actions import known
from certfan.daemon.issuing import published
from certfan.daemon.issuing.accounts import Accounts
from certfan.daemon.issuing.domains import registered_domain
from certfan.daemon.issuing.issuer import Issuer
from certfan.daemon.journal import Journal
from certfan.daemon.status.model import AccountView, LimitUsed
from certfan.daemon.store import Store
from certfan.errors import ActionRefused, AuthoritySlow, CertfanError, PairMismatch, SelfCheckFailed

TRIAL_PATIENCE = timedelta(seconds=160)

Check = Callable[[Identifier], Coroutine[Any, Any, Problem | None]]


class AuthorityActions:
    """The daemon's side of daemon.status.control.authorities.Actions.

    `check` is our own look at the way of a challenge; nothing is looked at while `self_check` says so.
    """

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        accounts: Accounts,
        issuer: Issuer,
        desired: Callable[[], Desired],
        check: Check,
        self_check: Callable[[], bool],
        ring: Callable[[], None],
        clock: Callable[[], datetime],
        trial_patience: timedelta = TRIAL_PATIENCE,
    ) -> None:
        self._store = store
        self._journal = journal
        self._accounts = accounts
        self._issuer = issuer
        self._desired = desired
        self._check = check
        self._self_check = self_check
        self._ring = ring
        self._clock = clock
        self._trial_patience = trial_patience

    # Revoking

    async def revoke(
        self, certificate: str, number: int | None, reason: RevocationReason, *, at_once: bool, uid: int
    ) -> tuple[Generation, ...]:
        """Ask that a generation is revoked, and with a compromised key every live one that has it; return them.

        What left the config can be revoked as long as it is known.
        """
        facts, desired, now = await self._store.facts(), self._desired(), self._clock()
        known(certificate, "certificate", {*desired.certificates, *facts.generations})
        found = choose(facts.generations.get(certificate, ()), number, reason, revoked=facts.revoked, now=now)
        if isinstance(found, str):
            raise ActionRefused(f"{certificate}: {found}", subject=certificate, hint="run: certfan status")
        for generation in found:
            if generation.authority not in desired.authorities:
                raise ActionRefused(
                    f"{generation} was issued by {generation.authority}, which is not in the config",
                    subject=certificate,
                    hint=f"put [authority.{generation.authority}] back into certfan.toml",
                )
        for generation in found:
            await self._store.ask_revocation(certificate, generation.number, Revocation(reason, at_once, now))
            await self._journal.warn(
                "revocation.asked", str(generation), uid=uid, reason=reason.value, at_once=at_once
            )
        self._ring()
        return found

    # Accounts

    async def account(self, authority: str) -> AccountView:
        """Return what is known of our account at an authority."""
        spec = self._authority(authority)
        account = await self._store.account(spec.name, spec.directory)
        spends = (await self._store.spends()).get(authority, ())
        ledger = Ledger.of(spec.limits, spends, domains=registered_domain)
        return AccountView(
            authority=authority,
            directory=spec.directory,
            uri=account.uri if account else None,
            thumbprint=account.thumbprint if account else None,
            contact=(account.contact or ()) if account else spec.contact,
            since=account.recorded_at if account else None,
            limits=tuple(LimitUsed.of(used) for used in ledger.used(self._clock())),
        )

    async def roll_account_key(self, authority: str, *, uid: int) -> None:
        """Ask that our account at an authority gets a new key, as soon as no order is under way there."""
        spec = self._authority(authority)
        await self._accounts.recorded(spec)
        await self._store.ask_rollover(authority, self._clock())
        await self._journal.note("rollover.asked", authority, uid=uid)
        self._ring()

    async def export_account(self, authority: str, *, uid: int) -> tuple[Authority, str, bytes]:
        """Return an authority, the URL of our account there, and its private key (PEM)."""
        spec = self._authority(authority)
        uri, key = await self._accounts.export(spec)
        await self._journal.warn("account.exported", authority, uid=uid, uri=uri)
        return spec, uri, key

    async def import_account(self, authority: str, key: bytes, directory: str | None, *, uid: int) -> str:
        """Use the account that a key (PEM) has at an authority from now on; return its URL.

        `directory` is where the key is said to have one.
        """
        spec = self._authority(authority)
        if directory not in {None, spec.directory}:
            raise ActionRefused(
                f"that account is not of {authority}, whose directory is {spec.directory}",
                subject=authority,
                hint="name the authority in certfan.toml that has the directory of the exported account",
            )
        await self._journal.warn("account.import_asked", authority, uid=uid)
        try:
            pki.key_type(key)
            return await self._accounts.adopt(spec, key)
        except PairMismatch as error:
            raise ActionRefused(
                "that is no private key as PEM",
                subject=authority,
                hint="give what `certfan account export` prints, or an unencrypted PEM key",
            ) from error

    # Trial orders

    async def trial(self, certificate: str, authority: str | None, *, uid: int) -> tuple[str, pki.Leaf]:
        """Order a certificate once at a staging authority; return that authority's name, and what came.

        Nothing of it is kept. Cancelled, it leaves an order there that ends by itself.
        """
        desired = self._desired()
        known(certificate, "certificate", desired.certificates)
        wanted = desired.certificates[certificate]
        place = self._authority(authority or self._staging(desired.authorities[wanted.authority]))
        try:
            async with asyncio.timeout(self._trial_patience.total_seconds()):
                if self._self_check():
                    await self._look(checked_identifiers(wanted))
                leaf = await self._issuer.trial(wanted, place)
        except TimeoutError:
            seconds = round(self._trial_patience.total_seconds())
            error = AuthoritySlow(
                f"{certificate}: a trial order at {place.name} was not done within {seconds} s",
                subject=certificate,
                hint=f"run: certfan check --order {certificate}",
            )
            await self._failed(certificate, place, error, uid)
            raise error from None
        except CertfanError as error:
            await self._failed(certificate, place, error, uid)
            raise
        await self._journal.note("trial.passed", certificate, uid=uid, authority=place.name)
        return place.name, leaf

    async def _failed(self, certificate: str, place: Authority, error: CertfanError, uid: int) -> None:
        await self._journal.warn(
            "trial.failed",
            certificate,
            uid=uid,
            authority=place.name,
            code=error.code,
            detail=error.text,
            hint=error.hint,
        )

    async def _look(self, identifiers: Collection[str]) -> None:
        """See whether the authority would find our answers; a broken vhost is told as such."""
        async with asyncio.TaskGroup() as group:
            looks = {
                identifier: group.create_task(
                    self._check(Identifier(identifier)), name=f"look at {identifier}"
                )
                for identifier in identifiers
            }
        for identifier, look in looks.items():
            if (problem := look.result()) is not None:
                raise SelfCheckFailed(problem.detail, subject=identifier, hint=problem.hint)

    def _staging(self, authority: Authority) -> str:
        if authority.staging is None:
            raise ActionRefused(
                f"authority {authority.name} has no staging authority to try an order at",
                subject=authority.name,
                hint=how_to_stage(authority, self._desired().authorities.values()),
            )
        return authority.staging

    def _authority(self, name: str) -> Authority:
        authorities = self._desired().authorities
        known(name, "authority", authorities)
        return authorities[name]


def how_to_stage(authority: Authority, others: Collection[Authority]) -> str:
    """Return the lines that give an authority a staging authority."""
    directory = published.of(authority.directory).staging
    there = next((one for one in others if one.directory == directory), None)
    if there is not None:
        return f'add to [authority.{authority.name}]: staging = "{there.name}"'
    if directory is None:
        return (
            f'add to [authority.{authority.name}]: staging = "NAME", where [authority.NAME] is a test authority;'
            " or name one: certfan check --order --authority NAME"
        )
    name = f"{authority.name}-staging"
    return (
        f'add to [authority.{authority.name}]: staging = "{name}", and below it:\n'
        f'[authority.{name}]\ndirectory = "{directory}"\nagree_to_terms = true'
    )
