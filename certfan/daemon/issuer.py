"""Carries one order at a time from intent to a verified generation: joins state folder, store and authority.

The order of effects is the design's: key, intent, order URL, tokens, answer, CSR, chain, generation; each durable
before the next. What must never come in: a decision about an order (core.issuance) or about when to try again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import assert_never

from certfan import pki
from certfan.core.issuance import (
    Answer,
    AuthorizationSeen,
    ChallengeSeen,
    Download,
    Finalize,
    GiveUp,
    Issuance,
    LookAtAuthorization,
    LookAtOrder,
    NewOrder,
    OrderSeen,
    StartOver,
    Wait,
    kept,
    next_move,
)
from certfan.core.model import Authority, Certificate, Desired, Generation, Problem
from certfan.daemon.accounts import Accounts, AcmeClient
from certfan.daemon.journal import Journal
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store
from certfan.errors import AuthorityRefused, ChallengeFailed, PairMismatch, PkiError

# A CA validates from several places; look once none of them has come for this long.
AFTER_LAST_FETCH = timedelta(milliseconds=30)
GONE = frozenset({404, 410})
ACME_ERROR = "urn:ietf:params:acme:error:"
ACCOUNT_LOST = f"{ACME_ERROR}accountDoesNotExist"


@dataclass(slots=True)
class _Order:
    """One try under way, as far as this process has seen it."""

    certificate: Certificate
    client: AcmeClient
    csr: bytes
    issuance: Issuance
    key: bytes = field(repr=False)
    seen: OrderSeen | None = None
    last: OrderSeen | None = None  # also after a wait, when nothing counts as seen
    authorizations: Mapping[str, AuthorizationSeen] = field(default_factory=dict)
    fetched: asyncio.Event = field(default_factory=asyncio.Event)
    places: list[tuple[datetime, str]] = field(default_factory=list)

    def look(self, seen: OrderSeen) -> None:
        """Take in another look at the order."""
        self.authorizations = kept(self.last, seen, self.authorizations)
        self.seen = self.last = seen


class Issuer:
    """Turns wanted certificates into generations, and knows what the responder has to answer."""

    def __init__(
        self,
        *,
        store: Store,
        state: StateFolder,
        journal: Journal,
        accounts: Accounts,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._state = state
        self._journal = journal
        self._accounts = accounts
        self._clock = clock
        self._tokens: dict[str, str] = {}
        self._waiting: dict[str, _Order] = {}  # by token

    async def open(self) -> None:
        """Read the tokens that earlier processes promised to answer."""
        self._tokens = dict(await self._store.tokens())

    def key_authorization(self, token: str) -> str | None:
        """Return the answer to a live token."""
        return self._tokens.get(token)

    def fetched(self, token: str, place: str) -> None:
        """Note that somebody was given a token's answer; never blocks."""
        if order := self._waiting.get(token):
            order.places.append((self._clock(), place))
            order.fetched.set()

    async def issue(self, desired: Desired, name: str, *, floor: int) -> Generation:
        """Get a new generation, numbered above `floor` and all we know, or resume the order open for it.

        Repeatable at any point. Cancelled, what was recorded stands and the next call goes on from there.

        Raises:
            AuthorityError, ChallengeFailed, ChainInvalid, PairMismatch: the try failed; the key is kept.
        """
        try:
            return await self._issue(desired, name, floor)
        except AuthorityRefused as error:
            if error.type != ACCOUNT_LOST:
                raise
            # It has lost us, not refused the names: registered anew at once, nobody has to wait for that.
            await self._journal.warn("account.lost", error.subject, detail=error.text, hint=error.hint)
            return await self._issue(desired, name, floor)

    async def _issue(self, desired: Desired, name: str, floor: int) -> Generation:
        certificate = desired.certificates[name]
        authority = desired.authorities[certificate.authority]
        issuance = await self._begin(certificate, floor)
        # Born before anybody hears of it, and kept by every later try of this generation.
        key = self._state.generation_key(
            name, issuance.generation, lambda: pki.make_key(certificate.key_type)
        )
        csr = pki.make_csr(key, [str(i) for i in certificate.identifiers])
        client = await self._accounts.client(authority)
        order = _Order(certificate, client, csr, issuance, key)
        try:
            while (chain := await self._advance(order)) is None:
                pass
            return await self._keep(order, chain, authority)
        finally:
            self._stop_waiting(order)

    async def _begin(self, certificate: Certificate, floor: int) -> Issuance:
        """Return the open try for exactly this definition, begun now unless there is one."""
        for open_one in await self._store.open_issuances():
            if open_one.certificate != certificate.name:
                continue
            if _fits(open_one, certificate) and self._key_fits(certificate, open_one.generation):
                return open_one
            problem = Problem("authority.refused", f"{certificate.name}: its definition has changed")
            await self._store.abandon_issuance(
                open_one.certificate, open_one.generation, problem, self._clock()
            )
        number = await self._next_number(certificate, floor)
        self._state.generation_key(certificate.name, number, lambda: pki.make_key(certificate.key_type))
        return await self._store.begin_issuance(
            certificate.name, number, certificate.authority, certificate.identifiers, self._clock()
        )

    async def _next_number(self, certificate: Certificate, floor: int) -> int:
        """Return the number above all generations; one that a failed try made a fitting key for is used."""
        known = [g.number for g in (await self._store.generations()).get(certificate.name, ())]
        complete = [
            number
            for number in self._state.generation_numbers(certificate.name)
            if "fullchain.pem" in self._state.read_generation(certificate.name, number)
        ]
        number = 1 + max([floor, *known, *complete])
        while not self._key_fits(certificate, number):
            number += 1
        return number

    def _key_fits(self, certificate: Certificate, number: int) -> bool:
        """Whether a generation's key is of the wanted type, or not yet made."""
        key = self._state.read_generation(certificate.name, number).get("privkey.pem")
        return key is None or pki.key_type(key) == certificate.key_type

    async def _advance(self, order: _Order) -> bytes | None:
        """Make one move; return the chain (PEM) when that was the last."""
        move = next_move(order.issuance, order.seen, order.authorizations, self._clock())
        try:
            match move:
                case NewOrder():
                    await self._new_order(order)
                case LookAtOrder(url):
                    order.look(await order.client.order(url))
                case LookAtAuthorization(url):
                    seen = await order.client.authorization(url)
                    order.authorizations = {**order.authorizations, url: seen}
                case Answer(url, challenge):
                    await self._answer(order, order.authorizations[url], challenge)
                case Wait(until):
                    await self._wait(order, until)
                    order.seen = None
                case Finalize(url):
                    await self._note_places(order)
                    assert order.issuance.order_url is not None
                    order.look(
                        await order.client.finalize(url, order.csr, order_url=order.issuance.order_url)
                    )
                case Download(url):
                    return await order.client.certificate(url)
                case StartOver(problem) | GiveUp(problem):
                    await self._note_places(order)
                    await self._abandon(order, problem)
                    raise ChallengeFailed(
                        problem.detail,
                        subject=order.certificate.name,
                        hint=problem.hint,
                        not_before=problem.not_before,
                    )
                case _:
                    assert_never(move)
        except AuthorityRefused as error:
            await self._after_refusal(order, move, error)
        return None

    async def _new_order(self, order: _Order) -> None:
        seen = await order.client.new_order(order.csr, profile=order.certificate.profile)
        name, number = order.certificate.name, order.issuance.generation
        # The order outlives this process; forgetting its URL would cost a slot of the rate limit.
        await self._store.record_order_url(name, number, seen.url, self._clock())
        order.issuance = replace(order.issuance, order_url=seen.url)
        order.look(seen)
        await self._journal.note("order.created", f"{name}@{number}", url=seen.url)

    async def _answer(
        self, order: _Order, authorization: AuthorizationSeen, challenge: ChallengeSeen
    ) -> None:
        name, number = order.certificate.name, order.issuance.generation
        answer = order.client.key_authorization(challenge.token)
        await self._store.record_token(
            challenge.token, answer, name, str(authorization.identifier), self._clock()
        )
        self._tokens[challenge.token] = answer
        self._waiting[challenge.token] = order
        await order.client.answer(challenge.url)
        await self._store.record_answered(name, number, challenge.url)
        order.issuance = replace(order.issuance, answered=order.issuance.answered | {challenge.url})

    async def _wait(self, order: _Order, until: datetime) -> None:
        """Wait until the instant, or until the authority has fetched and then been quiet for a moment."""
        try:
            async with asyncio.timeout(max((until - self._clock()).total_seconds(), 0)):
                await order.fetched.wait()
                while order.fetched.is_set():
                    order.fetched.clear()
                    await asyncio.sleep(AFTER_LAST_FETCH.total_seconds())
        except TimeoutError:
            order.fetched.clear()

    async def _after_refusal(self, order: _Order, move: object, error: AuthorityRefused) -> None:
        """Keep the order where waiting may help; else forget it, so that the next try begins anew."""
        kind = error.type.removeprefix(ACME_ERROR)
        if kind == "orderNotReady" and isinstance(move, Finalize):
            order.seen = None
            return
        if error.type == ACCOUNT_LOST:
            await self._accounts.forget(order.client)
        if kind != "rateLimited" and (error.status in GONE or error.status < 500):
            await self._abandon(order, Problem(error.code, error.text, error.hint, error.not_before))
        raise error

    async def _abandon(self, order: _Order, problem: Problem) -> None:
        name = order.certificate.name
        await self._store.abandon_issuance(name, order.issuance.generation, problem, self._clock())
        await self._drop_tokens(order)

    async def _keep(self, order: _Order, fullchain: bytes, authority: Authority) -> Generation:
        """Verify what came, make it durable beside its key, and record it."""
        name, number = order.certificate.name, order.issuance.generation
        pair = await self._verified(order, fullchain, authority)
        leaf = pair.leaf
        self._state.save_chain(
            name, number, cert=pair.cert_pem, chain=pair.chain_pem, fullchain=pair.fullchain_pem
        )
        generation = Generation(
            name,
            number,
            fingerprint=leaf.fingerprint,
            serial=leaf.serial,
            identifiers=frozenset(order.certificate.identifiers),
            key_type=order.certificate.key_type,
            authority=authority.name,
            not_before=leaf.not_before,
            not_after=leaf.not_after,
            issued_at=self._clock(),
        )
        await self._store.record_generation(generation)
        await self._drop_tokens(order)
        await self._journal.note(
            "generation.issued", str(generation), serial=leaf.serial, not_after=leaf.not_after.isoformat()
        )
        return generation

    async def _verified(self, order: _Order, fullchain: bytes, authority: Authority) -> pki.Pair:
        roots = (
            await asyncio.to_thread(Path(authority.roots_file).read_bytes) if authority.roots_file else None
        )
        names = [str(i) for i in order.certificate.identifiers]
        try:
            pair = pki.load_pair(order.key, fullchain)
            pki.verify_chain(pair.fullchain_pem, names=names, now=self._clock(), roots_pem=roots)
        except PkiError as error:
            name = order.certificate.name
            error.hint = (
                f"check roots_file of authority {authority.name} and the clock; run: certfan renew {name}"
            )
            if isinstance(error, PairMismatch):  # nothing here can make it ours: the next try orders anew
                error.hint = f"{authority.name} mixed up two orders; tried again by itself, or run: certfan renew {name}"
                await self._abandon(order, Problem(error.code, error.text, error.hint))
            raise
        return pair

    async def _note_places(self, order: _Order) -> None:
        """Tell through which vhosts the authority came; each place once, when it came first."""
        first: dict[str, datetime] = {}
        for at, place in order.places:
            first.setdefault(place, at)
        order.places.clear()
        for place, at in first.items():
            await self._journal.note("challenge.fetched", order.certificate.name, at=at, through=place)

    async def _drop_tokens(self, order: _Order) -> None:
        await self._store.drop_tokens(order.certificate.name)
        self._tokens = dict(await self._store.tokens())
        self._stop_waiting(order)

    def _stop_waiting(self, order: _Order) -> None:
        self._waiting = {token: one for token, one in self._waiting.items() if one is not order}


def _fits(issuance: Issuance, certificate: Certificate) -> bool:
    same_names = frozenset(issuance.identifiers) == frozenset(certificate.identifiers)
    return same_names and issuance.authority == certificate.authority
