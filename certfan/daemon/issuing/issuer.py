"""Turns wanted certificates into generations: joins state folder, store and authority.

The order of effects is the design's: key, intent, order URL, tokens, answer, CSR, chain, generation; each durable
before the next. What must never come in: a decision about an order (core.issuance) or about when to try again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from certfan import pki, tls
from certfan.core.custody import SigningRequest, fits
from certfan.core.issuance import Issuance, is_spoilt
from certfan.core.keys import key_to_reuse
from certfan.core.model import Authority, Certificate, Desired, Generation, Problem
from certfan.core.pace import Pace
from certfan.core.steps import Issue
from certfan.core.subjects import order_subject
from certfan.daemon.disk import Disk
from certfan.daemon.issuing.accounts import Accounts
from certfan.daemon.issuing.known import Known
from certfan.daemon.issuing.material import Material, Stock
from certfan.daemon.issuing.memory import Written
from certfan.daemon.issuing.ordering import ACME_ERROR, Memory, Order, Tokens
from certfan.daemon.issuing.places import Places
from certfan.daemon.journal import Journal
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store
from certfan.errors import AuthorityMalformed, AuthorityRefused, ChainInvalid, PkiError, RequestInvalid

ACCOUNT_LOST = f"{ACME_ERROR}accountDoesNotExist"


class Issuer:
    """Gets generations, and trial orders; `tokens` is what the responder has to answer."""

    def __init__(
        self,
        *,
        store: Store,
        state: StateFolder,
        journal: Journal,
        accounts: Accounts,
        disk: Disk,
        clock: Callable[[], datetime],
    ) -> None:
        self.tokens = Tokens()
        self._store = store
        self._state = state
        self._stock = Stock(state)
        self._journal = journal
        self._accounts = accounts
        self._disk = disk
        self._clock = clock
        self._places = Places(clock)
        self._under_way: dict[str, Order] = {}
        self._paces: dict[str, Pace] = {}  # of each authority

    @property
    def moved(self) -> Mapping[str, datetime]:
        """When each order that is at its authority last got further, by certificate."""
        return {name: one.moved_at for name, one in self._under_way.items() if one.moved_at is not None}

    def let_in(self, desired: Desired) -> None:
        """Let orders go to their authority in the place of those that stand still by now, as many as the config grants."""
        self._places.let_in({name: one.orders_at_once for name, one in desired.authorities.items()})

    async def open(self) -> None:
        """Read the tokens that are live by what is written down; repeatable."""
        self.tokens.replace(await self._store.tokens())

    async def issue(
        self, desired: Desired, step: Issue, *, floor: int, known: Known | None = None
    ) -> Generation:
        """Get a new generation, numbered above `floor` and all we know, or resume the order open for it.

        `known` spares a read of the facts; it is of a moment at which no order for the certificate was under way.
        Repeatable at any point. Cancelled, what was recorded stands and the next call goes on from there.

        Raises:
            AuthorityError, ChallengeFailed, ChainInvalid, PairMismatch: the try failed; the key is kept.
        """
        try:
            return await self._issue(desired, step, floor, known)
        except AuthorityRefused as error:
            if error.type != ACCOUNT_LOST:
                raise
            # It has lost us, not refused the names: registered anew at once, nobody has to wait for that.
            await self._journal.warn("account.lost", error.subject, detail=error.text, hint=error.hint)
            return await self._issue(desired, step, floor, None)

    async def trial(self, certificate: Certificate, authority: Authority) -> pki.Leaf:
        """Go the whole way once at another authority, with a key that is thrown away; nothing of it is kept.

        Returns what the leaf says. Cancelled, it leaves an order there that ends by itself.

        Raises:
            AuthorityError, ChallengeFailed, ChainInvalid, PairMismatch: what an order would run into.
        """
        key = await asyncio.to_thread(pki.make_key, certificate.key_type)
        material = Material.of_key(key, certificate)
        issuance = Issuance(certificate.name, 0, authority.name, certificate.identifiers, self._clock())
        order = await self._order(certificate, authority, issuance, material, Memory())
        try:
            await order.carry()
            chain = material.matched(await order.chain(), certificate)
        finally:
            self.tokens.drop(order)
        roots = await asyncio.to_thread(_roots, authority) if authority.roots_file else None
        chain.verify(now=self._clock(), roots_pem=roots)
        return chain.leaf

    async def _issue(self, desired: Desired, step: Issue, floor: int, known: Known | None) -> Generation:
        certificate, authority = desired.certificates[step.certificate], desired.authorities[step.authority]
        issuance, material = await self._begin(certificate, step, floor, known)
        memory = Written(issuance, self._store, self._journal, self._clock)
        order = await self._order(certificate, authority, issuance, material, memory)
        self._under_way[certificate.name] = order
        try:
            async with self._places.one(order, authority.orders_at_once):
                await order.carry()
            fullchain = await order.chain()
            generation = await self._keep(order, certificate, authority, material, fullchain)
            self.tokens.drop(order)
        except (AuthorityMalformed, ChainInvalid) as error:
            await self._give_up_spoilt(order, certificate, Problem(error.code, error.text, error.hint))
            raise
        except AuthorityRefused as error:
            if error.type == ACCOUNT_LOST:
                await self._accounts.forget(order.client)
            raise
        finally:
            del self._under_way[certificate.name]
            self.tokens.stop_waiting(order)
        if issuance.answered:  # by an earlier process, whose tokens this order does not know
            await self.open()
        return generation

    async def _give_up_spoilt(self, order: Order, certificate: Certificate, problem: Problem) -> None:
        subject = order_subject(certificate, order.issuance.authority)
        before = (await self._store.attempts()).get(subject)
        if order.is_issued and is_spoilt(order.issuance, before, problem):
            await order.give_up(problem)

    async def _order(
        self,
        certificate: Certificate,
        authority: Authority,
        issuance: Issuance,
        material: Material,
        memory: Memory,
    ) -> Order:
        client = await self._accounts.client(authority)
        # Its profile is one of the config's authority; a fallback, or a trial, knows others.
        own = certificate.profile if authority.name == certificate.authority else None
        return Order(
            client,
            material.csr,
            issuance,
            memory,
            self.tokens,
            self._clock,
            profile=own or authority.profile,
            preferred_chain=authority.preferred_chain,
            paces=self._paces,
        )

    async def _begin(
        self, certificate: Certificate, step: Issue, floor: int, known: Known | None
    ) -> tuple[Issuance, Material]:
        """Return the open try for exactly this definition, begun now unless there is one, and what it is ordered with.

        The key is durable before anybody hears of it, and kept by every later try of this generation. Whatever waits
        for the disk does so beside the loop: answers to challenges never wait for an order.
        """
        name = certificate.name
        run = asyncio.to_thread if certificate.key_type.is_slow else self._disk.run
        known = known or Known.of(await self._store.facts(), name)
        generations, spent = known.generations, known.spent
        asked = self._answered(certificate, known)
        csr = asked.csr if asked else None
        if (open_one := known.open_one) is not None:
            number = open_one.generation
            if _fits(open_one, certificate, step) and (asked is None or asked.generation == number):
                going_on = await run(self._stock.begun, certificate, number, spent, csr)
                if going_on is not None:
                    return open_one, going_on
            why = f"{name}: its definition or its authority has changed, or its key cannot be read"
            problem = Problem("authority.refused", why)
            await self._store.abandon_issuance(name, open_one.generation, problem, self._clock())
            await self.open()  # or its tokens would be answered, and its authorizations kept, for ever
        if asked is not None:
            number, material = await self._take(certificate, asked, generations, spent, floor)
        else:
            like = key_to_reuse(certificate, generations, spent, self._clock())
            number, material = await run(self._next, certificate, generations, spent, floor, like)
        replaces = self._predecessor(certificate, step.authority, known)
        begun = await self._store.begin_issuance(
            name,
            number,
            step.authority,
            certificate.identifiers,
            self._clock(),
            replaces=replaces,
            exempt=step.exempt and replaces is not None,
        )
        if begun is None:  # a consumer is ahead of what we remember
            return await self._begin(
                certificate, step, max(floor, await self._store.reported_number(name)), None
            )
        return begun, material

    def _next(
        self,
        certificate: Certificate,
        known: Collection[Generation],
        spent: Collection[str],
        floor: int,
        like: Generation | None,
    ) -> tuple[int, Material]:
        number = self._stock.next_number(certificate, known, spent, floor)
        return number, self._stock.keyed(certificate, number, like)

    def _answered(self, certificate: Certificate, known: Known) -> SigningRequest | None:
        """Return what the consumer that is to have the key alone has signed; None where the key is our own."""
        if not certificate.holder:
            return None
        asked = known.asked
        if asked is None or not asked.csr or not fits(asked, certificate, known.generations):
            raise RequestInvalid(
                f"{certificate.name}: the CSR of {certificate.holder} is not here yet",
                subject=certificate.name,
            )
        return asked

    async def _take(
        self,
        certificate: Certificate,
        asked: SigningRequest,
        generations: Collection[Generation],
        spent: Collection[str],
        floor: int,
    ) -> tuple[int, Material]:
        """Return the number that a consumer's CSR was asked for, and what is ordered with it.

        Raises:
            RequestInvalid: the number, or the key, was used meanwhile; it is asked for another one.
        """
        assert asked.csr is not None
        name, number = certificate.name, asked.generation
        is_free = number > max([floor, *(g.number for g in generations)])
        going_on = None
        if is_free:
            going_on = await self._disk.run(self._stock.begun, certificate, number, spent, asked.csr)
        if going_on is None or going_on.key in spent:
            await self._store.drop_csr(name, number)
            raise RequestInvalid(
                f"{name}@{number}: the number or the key that {asked.consumer} was asked for is used already",
                subject=name,
            )
        return number, going_on

    def _predecessor(self, certificate: Certificate, authority: str, known: Known) -> str | None:
        """Return what the authority calls the generation that the new one replaces (RFC 9773 section 5)."""
        if not known.generations or known.generations[-1].authority != authority:
            return None
        newest = known.generations[-1]
        shares = newest.identifiers & frozenset(certificate.identifiers)
        if not shares or newest.number in known.revoked or newest.not_after <= self._clock():
            return None
        chain = self._state.read_chain(newest.certificate, newest.number)
        return pki.renewal_id(chain) if chain is not None else None

    async def _keep(
        self,
        order: Order,
        certificate: Certificate,
        authority: Authority,
        material: Material,
        fullchain: bytes,
    ) -> Generation:
        """Verify what came, make it durable beside its key or request, and record it."""
        name, number = certificate.name, order.issuance.generation
        chain = await self._chain(order, certificate, authority, material, fullchain)
        leaf = chain.leaf
        try:
            await self._disk.run(self._verify_and_save, chain, name, number, authority)
        except PkiError as error:
            error.hint = (
                f"check roots_file of authority {authority.name} and the clock; run: certfan renew {name}"
            )
            raise
        generation = Generation(
            name,
            number,
            fingerprint=leaf.fingerprint,
            serial=leaf.serial,
            identifiers=frozenset(certificate.identifiers),
            key_type=certificate.key_type,
            authority=authority.name,
            not_before=leaf.not_before,
            not_after=leaf.not_after,
            issued_at=self._clock(),
            key=material.key,
            holder="" if material.key_pem else certificate.holder,
        )
        await self._store.record_generation(generation)
        self._journal.tell(
            "generation.issued",
            str(generation),
            serial=leaf.serial,
            not_after=leaf.not_after.isoformat(),
            authority=authority.name,
        )
        return generation

    async def _chain(
        self,
        order: Order,
        certificate: Certificate,
        authority: Authority,
        material: Material,
        fullchain: bytes,
    ) -> pki.Chain:
        name = certificate.name
        try:
            return material.matched(fullchain, certificate)
        except PkiError as error:  # nothing here can make it ours: the next try orders anew
            error.hint = f"{authority.name} answered with the wrong chain; tried again by itself, or run: certfan renew {name}"
            await order.give_up(Problem(error.code, error.text, error.hint))
            raise

    def _verify_and_save(self, chain: pki.Chain, name: str, number: int, authority: Authority) -> None:
        chain.verify(now=self._clock(), roots_pem=_roots(authority))
        self._state.save_chain(name, number, chain.fullchain_pem)


def _roots(authority: Authority) -> bytes:
    return tls.roots_pem(authority.roots_file, authority=authority.name)


def _fits(issuance: Issuance, certificate: Certificate, step: Issue) -> bool:
    same_names = frozenset(issuance.identifiers) == frozenset(certificate.identifiers)
    return same_names and issuance.authority == step.authority
