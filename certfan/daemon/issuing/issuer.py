"""Turns wanted certificates into generations: joins state folder, store and authority.

The order of effects is the design's: key, intent, order URL, tokens, answer, CSR, chain, generation; each durable
before the next. What must never come in: a decision about an order (core.issuance) or about when to try again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path

from certfan import pki, tls
from certfan.core.issuance import Issuance, is_spoilt
from certfan.core.keys import key_to_reuse, spent_keys
from certfan.core.model import Authority, Certificate, Desired, Generation, Problem
from certfan.core.steps import Issue
from certfan.core.subjects import order_subject
from certfan.daemon.issuing.accounts import Accounts
from certfan.daemon.issuing.memory import Written
from certfan.daemon.issuing.ordering import ACME_ERROR, Memory, Order, Tokens
from certfan.daemon.journal import Journal
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store, StoreFacts
from certfan.errors import AuthorityMalformed, AuthorityRefused, ChainInvalid, PkiError

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
        clock: Callable[[], datetime],
    ) -> None:
        self.tokens = Tokens()
        self._store = store
        self._state = state
        self._journal = journal
        self._accounts = accounts
        self._clock = clock
        self._under_way: dict[str, Order] = {}

    @property
    def moved(self) -> Mapping[str, datetime]:
        """When each order that is under way last got further, by certificate."""
        return {name: one.moved_at for name, one in self._under_way.items() if one.moved_at is not None}

    async def open(self) -> None:
        """Read the tokens that are live by what is written down; repeatable."""
        self.tokens.replace(await self._store.tokens())

    async def issue(self, desired: Desired, step: Issue, *, floor: int) -> Generation:
        """Get a new generation, numbered above `floor` and all we know, or resume the order open for it.

        Repeatable at any point. Cancelled, what was recorded stands and the next call goes on from there.

        Raises:
            AuthorityError, ChallengeFailed, ChainInvalid, PairMismatch: the try failed; the key is kept.
        """
        try:
            return await self._issue(desired, step, floor)
        except AuthorityRefused as error:
            if error.type != ACCOUNT_LOST:
                raise
            # It has lost us, not refused the names: registered anew at once, nobody has to wait for that.
            await self._journal.warn("account.lost", error.subject, detail=error.text, hint=error.hint)
            return await self._issue(desired, step, floor)

    async def trial(self, certificate: Certificate, authority: Authority) -> pki.Leaf:
        """Go the whole way once at another authority, with a key that is thrown away; nothing of it is kept.

        Returns what the leaf says. Cancelled, it leaves an order there that ends by itself.

        Raises:
            AuthorityError, ChallengeFailed, ChainInvalid, PairMismatch: what an order would run into.
        """
        key = await asyncio.to_thread(pki.make_key, certificate.key_type)
        issuance = Issuance(certificate.name, 0, authority.name, certificate.identifiers, self._clock())
        order = await self._order(certificate, authority, issuance, key, Memory())
        try:
            pair = _matched(key, await order.carry(), certificate)
        finally:
            self.tokens.drop(order)
        roots = await asyncio.to_thread(_roots, authority) if authority.roots_file else None
        pki.verify_chain(pair.fullchain_pem, names=pair.leaf.names, now=self._clock(), roots_pem=roots)
        return pair.leaf

    async def _issue(self, desired: Desired, step: Issue, floor: int) -> Generation:
        certificate, authority = desired.certificates[step.certificate], desired.authorities[step.authority]
        issuance, key = await self._begin(certificate, step, floor)
        memory = Written(issuance, self._store, self._journal, self._clock)
        order = await self._order(certificate, authority, issuance, key, memory)
        self._under_way[certificate.name] = order
        try:
            generation = await self._keep(order, certificate, authority, key, await order.carry())
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
        key: bytes,
        memory: Memory,
    ) -> Order:
        csr = pki.make_csr(key, [str(i) for i in certificate.identifiers])
        client = await self._accounts.client(authority)
        # Its profile is one of the config's authority; a fallback, or a trial, knows others.
        own = certificate.profile if authority.name == certificate.authority else None
        return Order(
            client,
            csr,
            issuance,
            memory,
            self.tokens,
            self._clock,
            profile=own or authority.profile,
            preferred_chain=authority.preferred_chain,
        )

    async def _begin(self, certificate: Certificate, step: Issue, floor: int) -> tuple[Issuance, bytes]:
        """Return the open try for exactly this definition, begun now unless there is one, and its key.

        The key is durable before anybody hears of it, and kept by every later try of this generation. Whatever waits
        for the disk does so in a thread: answers to challenges never wait for an order.
        """
        name = certificate.name
        facts, reported = await self._store.facts_and_number(name)
        floor = max(floor, reported)
        generations = facts.generations.get(name, ())
        spent = spent_keys(generations, {*facts.revoked, *facts.revocations})
        for open_one in facts.issuances:
            if open_one.certificate != name:
                continue
            number = open_one.generation
            if _fits(open_one, certificate, step) and self._key_fits(certificate, number, spent):
                return open_one, await asyncio.to_thread(self._key, certificate, number, None)
            problem = Problem("authority.refused", f"{name}: its definition or its authority has changed")
            await self._store.abandon_issuance(name, open_one.generation, problem, self._clock())
            await self.open()  # or its tokens would be answered, and its authorizations kept, for ever
        like = key_to_reuse(certificate, generations, spent, self._clock())
        number, key = await asyncio.to_thread(self._next, certificate, generations, spent, floor, like)
        replaces = self._predecessor(certificate, step.authority, facts)
        begun = await self._store.begin_issuance(
            name,
            number,
            step.authority,
            certificate.identifiers,
            self._clock(),
            replaces=replaces,
            exempt=step.exempt and replaces is not None,
        )
        return begun, key

    def _next(
        self,
        certificate: Certificate,
        known: Collection[Generation],
        spent: Collection[str],
        floor: int,
        like: Generation | None,
    ) -> tuple[int, bytes]:
        number = self._next_number(certificate, known, spent, floor)
        return number, self._key(certificate, number, like)

    def _key(self, certificate: Certificate, number: int, like: Generation | None) -> bytes:
        """Have a key for a number: the one it has, that of an earlier generation, or a new one."""

        def make() -> bytes:
            if like is not None:
                earlier = self._state.read_generation(like.certificate, like.number).get("privkey.pem")
                if earlier is not None:
                    return earlier
            return pki.make_key(certificate.key_type)

        return self._state.generation_key(certificate.name, number, make)

    def _next_number(
        self, certificate: Certificate, known: Collection[Generation], spent: Collection[str], floor: int
    ) -> int:
        """Return the number above all generations; one that a failed try made a fitting key for is used."""
        complete = [
            number
            for number in self._state.generation_numbers(certificate.name)
            if "fullchain.pem" in self._state.read_generation(certificate.name, number)
        ]
        number = 1 + max([floor, *(g.number for g in known), *complete])
        while not self._key_fits(certificate, number, spent):
            number += 1
        return number

    def _key_fits(self, certificate: Certificate, number: int, spent: Collection[str]) -> bool:
        """Whether a generation's key is of the wanted type and may be used, or is not yet made."""
        key = self._state.read_generation(certificate.name, number).get("privkey.pem")
        if key is None:
            return True
        return pki.key_type(key) == certificate.key_type and pki.public_key_hash(key) not in spent

    def _predecessor(self, certificate: Certificate, authority: str, facts: StoreFacts) -> str | None:
        """Return what the authority calls the generation that the new one replaces (RFC 9773 section 5)."""
        generations = facts.generations.get(certificate.name, ())
        if not generations or generations[-1].authority != authority:
            return None
        newest = generations[-1]
        shares = newest.identifiers & frozenset(certificate.identifiers)
        is_revoked = (newest.certificate, newest.number) in facts.revoked
        if not shares or is_revoked or newest.not_after <= self._clock():
            return None
        cert_pem = self._state.read_generation(newest.certificate, newest.number).get("cert.pem")
        return pki.renewal_id(cert_pem) if cert_pem is not None else None

    async def _keep(
        self, order: Order, certificate: Certificate, authority: Authority, key: bytes, fullchain: bytes
    ) -> Generation:
        """Verify what came, make it durable beside its key, and record it."""
        name, number = certificate.name, order.issuance.generation
        pair = await self._pair(order, certificate, authority, key, fullchain)
        leaf = pair.leaf
        try:
            await asyncio.to_thread(self._verify_and_save, pair, name, number, authority)
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
            key=pki.public_key_hash(key),
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

    async def _pair(
        self, order: Order, certificate: Certificate, authority: Authority, key: bytes, fullchain: bytes
    ) -> pki.Pair:
        name = certificate.name
        try:
            return _matched(key, fullchain, certificate)
        except PkiError as error:  # nothing here can make it ours: the next try orders anew
            error.hint = f"{authority.name} answered with the wrong chain; tried again by itself, or run: certfan renew {name}"
            await order.give_up(Problem(error.code, error.text, error.hint))
            raise

    def _verify_and_save(self, pair: pki.Pair, name: str, number: int, authority: Authority) -> None:
        roots, names = _roots(authority), pair.leaf.names
        pki.verify_chain(pair.fullchain_pem, names=names, now=self._clock(), roots_pem=roots)
        self._state.save_chain(
            name, number, cert=pair.cert_pem, chain=pair.chain_pem, fullchain=pair.fullchain_pem
        )


def _matched(key: bytes, fullchain: bytes, certificate: Certificate) -> pki.Pair:
    """Return the chain with its key, if it is for this key and these names."""
    pair = pki.load_pair(key, fullchain)
    wanted = tuple(sorted(map(str, certificate.identifiers)))
    if pair.leaf.names != wanted:
        raise ChainInvalid(
            f"certificate is for {', '.join(pair.leaf.names) or 'no name'}, not {', '.join(wanted)}"
        )
    return pair


def _roots(authority: Authority) -> bytes:
    """Return what the authority's chains must end in, as PEM: its own roots, else the system's."""
    if authority.roots_file is None:
        return tls.system_roots_pem()
    try:
        return Path(authority.roots_file).read_bytes()
    except OSError as error:
        raise ChainInvalid(
            f"roots of authority {authority.name}: {authority.roots_file} cannot be read: {error.strerror}",
            subject=authority.name,
        ) from error


def _fits(issuance: Issuance, certificate: Certificate, step: Issue) -> bool:
    same_names = frozenset(issuance.identifiers) == frozenset(certificate.identifiers)
    return same_names and issuance.authority == step.authority
