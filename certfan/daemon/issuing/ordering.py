"""Carries one order through its authority, move by move.

What has to outlive the process is written down through the `Memory` before the next move. What must never come in: a
decision about an order (core.issuance), keys, files, the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import assert_never

from certfan.core.issuance import (
    Answer,
    AuthorizationSeen,
    AuthorizationStatus,
    ChallengeSeen,
    Download,
    Finalize,
    GiveUp,
    Issuance,
    LookAtAuthorization,
    LookAtOrder,
    NewOrder,
    OrderSeen,
    OrderStatus,
    StartOver,
    Wait,
    kept,
    next_move,
)
from certfan.core.model import Identifier, Problem
from certfan.core.pace import Pace, presumed
from certfan.daemon.issuing.accounts import AcmeClient
from certfan.errors import (
    AuthorityMalformed,
    AuthorityRefused,
    AuthoritySlow,
    AuthorityUnreachable,
    ChallengeFailed,
    OrderUnanswered,
)

# How long one try may hold its place among an authority's orders without getting any further.
PATIENCE = timedelta(minutes=5)
GONE = frozenset({404, 410})
# A proxy in front of an authority may say 404 for a moment; starting over then would waste an order.
BELIEVED_LOST = timedelta(hours=1)
ACME_ERROR = "urn:ietf:params:acme:error:"
# What an authority says of `replaces` that it will not take: the same order is good without it.
# Pebble 2.10 says serverInternal of a certificate that it does not know, at every retry.
NOT_REPLACED = frozenset({"alreadyReplaced", "conflict", "malformed", "serverInternal", "unauthorized"})
NOT_READY = "orderNotReady"
# What it may say instead of an order that only we take to be ready; the look that follows tells whether it meant that.
NOT_READY_EITHER = frozenset({NOT_READY, "malformed", "unauthorized"})


class Memory:
    """Where an order under way writes down what the next process must know; a call is durable when it returns.

    What was answered and fetched may be durable later, with what is written down next.

    This one forgets it all, as for a trial: a process that dies has lost an order that nobody wanted.
    """

    async def order_made(self, url: str) -> None:
        """The order exists; forgetting its URL would cost a slot of the rate limit."""

    async def not_replaced(self) -> None:
        """The authority does not take it as the replacement of its predecessor."""

    async def token_live(self, token: str, answer: str, identifier: Identifier) -> None:
        """Whoever asks for the token is to get this answer from now on."""

    async def answered(self, challenge_url: str) -> None:
        """The authority was told to try a challenge."""

    async def fetched(self, places: Mapping[str, datetime]) -> None:
        """The authority came through these places, each at that instant first."""

    async def given_up(self, problem: Problem, failed: Collection[Identifier]) -> None:
        """The order led nowhere, and its tokens are live no more; the authorizations of `failed` were refused."""


class Tokens:
    """What the responder has to answer, and which orders wait for it to be fetched."""

    def __init__(self) -> None:
        self._answers: dict[str, str] = {}
        # An authority may show one pending authorization, and so one token, to two orders.
        self._waiting: dict[str, tuple[Order, ...]] = {}

    def replace(self, answers: Mapping[str, str]) -> None:
        """Answer these, and what orders wait for, and nothing else."""
        waited_for = {token: self._answers[token] for token in self._waiting}
        self._answers = {**waited_for, **answers}

    def key_authorization(self, token: str) -> str | None:
        """Return the answer to a live token."""
        return self._answers.get(token)

    def fetched(self, token: str, place: Callable[[], str]) -> None:
        """Note that somebody was given a token's answer; `place` is asked only if an order waits for it."""
        for order in self._waiting.get(token, ()):
            order.note_fetch(token, place())

    def put(self, token: str, answer: str, order: Order) -> None:
        """Answer a token from now on; its order hears of every fetch."""
        self._answers[token] = answer
        self._waiting[token] = (*self._waiting.get(token, ()), order)

    def drop(self, order: Order) -> None:
        """End the answers that no other order waits for."""
        for token in self.stop_waiting(order):
            if token not in self._waiting:
                self._answers.pop(token, None)

    def stop_waiting(self, order: Order) -> list[str]:
        """Tell an order of no more fetches; its tokens, which are returned, stay live."""
        own = [token for token, orders in self._waiting.items() if order in orders]
        for token in own:
            if others := tuple(one for one in self._waiting.pop(token) if one is not order):
                self._waiting[token] = others
        return own


@dataclass(slots=True, eq=False)
class Order:
    """One try under way, as far as this process has seen it."""

    client: AcmeClient
    csr: bytes = field(repr=False)  # DER
    issuance: Issuance
    memory: Memory = field(repr=False)
    tokens: Tokens = field(repr=False)
    clock: Callable[[], datetime] = field(repr=False)
    profile: str | None = field(default=None, kw_only=True)
    preferred_chain: str | None = field(default=None, kw_only=True)
    _seen: OrderSeen | None = None
    _last: OrderSeen | None = None  # also after a wait, when nothing counts as seen
    _authorizations: Mapping[str, AuthorizationSeen] = field(default_factory=dict)
    paces: dict[str, Pace] = field(default_factory=dict, kw_only=True, repr=False)  # by authority
    _tokens: set[str] = field(default_factory=set)  # that this process has told the authority to fetch
    _fetched: set[str] = field(default_factory=set)
    _fetched_at: float = 0.0  # the last time, by the loop's clock
    _fetch: asyncio.Event = field(default_factory=asyncio.Event)
    _quiet: timedelta | None = None  # that the next fetches are followed by; None: its authority's pace
    _proves: timedelta | None = None  # the quiet that the next answer says something of
    _places: dict[str, datetime | None] = field(default_factory=dict)  # None: told
    moved_at: datetime | None = None  # when it last got further

    async def carry(self) -> None:
        """Return when the authority has issued the certificate, and the order takes no place there any more.

        Repeatable at any point, in another process too. Cancelled, what was written down stands.

        Raises:
            AuthorityError, ChallengeFailed: the try failed; `Memory.given_up` has heard of it unless it stays open.
            Its tokens stay live either way, until `Tokens.drop`.
        """
        self.moved_at = self.clock()
        if self.issuance.order_url is None:  # it begins now: to wait for a place makes no order old
            self.issuance = replace(self.issuance, begun_at=self.moved_at)
        while not self.is_issued:
            await self._advance()

    async def chain(self) -> bytes:
        """Return the chain (PEM), as it was downloaded; only that it is a chain has been checked.

        For an order that was carried; for the rest as `carry`.
        """
        while (chain := await self._advance()) is None:
            pass
        return chain

    @property
    def is_issued(self) -> bool:
        """Whether the authority has said that there is a certificate."""
        return self._last is not None and self._last.status is OrderStatus.VALID

    def note_fetch(self, token: str, place: str) -> None:
        """Note that the answer to one of its tokens went out."""
        self._places.setdefault(place, self.clock())
        self._fetched.add(token)
        self._fetched_at = asyncio.get_running_loop().time()
        self._fetch.set()

    async def _advance(self) -> bytes | None:
        """Make one move; return the chain when that was the last."""
        move = next_move(self.issuance, self._seen, self._authorizations, self.clock())
        try:
            match move:
                case NewOrder():
                    await self._new_order()
                case LookAtOrder(url):
                    self._look(await self.client.order(url))
                case LookAtAuthorization(url):
                    seen = await self.client.authorization(url)
                    self._authorizations = {**self._authorizations, url: seen}
                case Answer(url, challenge):
                    await self._answer(self._authorizations[url], challenge)
                case Wait(until):
                    await self._wait(until)
                case Finalize(url):
                    await self._tell_places()
                    assert self.issuance.order_url is not None
                    self._look(await self.client.finalize(url, self.csr, order_url=self.issuance.order_url))
                case Download(url):
                    return await self.client.certificate(url, issuer=self.preferred_chain)
                case StartOver(problem) | GiveUp(problem):
                    await self._fail(problem)
                case _:
                    assert_never(move)
        except AuthorityRefused as error:
            await self._after_refusal(move, error)
        except AuthorityMalformed as error:
            await self._after_nonsense(move, error)
        return None

    @property
    def _is_presumed(self) -> bool:
        return self._seen is not self._last

    def _look(self, seen: OrderSeen) -> None:
        """Take in another look at the order."""
        if self._last is None or self._last.status is not seen.status:
            self.moved_at = self.clock()
        self._learn(ready=seen.status is not OrderStatus.PENDING)
        self._authorizations = kept(self._last, seen, self._authorizations)
        self._seen = self._last = seen

    @property
    def _pace(self) -> Pace:
        return self.paces.get(self.issuance.authority, Pace())

    def _learn(self, *, ready: bool) -> None:
        """Take in whether the authority was asked too early, the first time that it was after its fetches."""
        if self._proves is not None:
            self.paces[self.issuance.authority] = self._pace.after(self._proves, ready=ready)
            self._proves = None

    async def _new_order(self) -> None:
        try:
            seen = await self.client.new_order(
                self.csr, profile=self.profile, replaces=self.issuance.replaces
            )
        except AuthorityUnreachable as error:
            if not error.was_sent:
                raise
            raise OrderUnanswered(error.text, subject=error.subject, hint=error.hint) from error
        await self.memory.order_made(seen.url)
        self.issuance = replace(self.issuance, order_url=seen.url)
        self._look(seen)

    async def _answer(self, authorization: AuthorizationSeen, challenge: ChallengeSeen) -> None:
        answer = self.client.key_authorization(challenge.token)
        await self.memory.token_live(challenge.token, answer, authorization.identifier)
        self.tokens.put(challenge.token, answer, self)
        self._tokens.add(challenge.token)
        await self.client.answer(challenge.url)
        await self.memory.answered(challenge.url)
        self.moved_at = self.clock()
        self.issuance = replace(self.issuance, answered=self.issuance.answered | {challenge.url})

    async def _wait(self, until: datetime) -> None:
        """Wait until the instant, or until the authority has fetched and then been quiet for a moment."""
        now = self.clock()
        if self.moved_at is not None and now - self.moved_at >= PATIENCE:
            name, authority = self.issuance.certificate, self.issuance.authority
            raise AuthoritySlow(
                f"{name}: {authority} has not moved its order for {PATIENCE.seconds // 60} minutes",
                subject=name,
                hint=f"the order stays open and is looked at again by itself; at once: certfan renew {name}",
            )
        seconds, self._seen = max((until - now).total_seconds(), 0), None
        if self._last is not None and self._last.status is not OrderStatus.PENDING:
            await asyncio.sleep(seconds)  # what it does now needs no more fetches
            return
        try:
            async with asyncio.timeout(seconds):
                quiet = await self._fetched_and_quiet()
        except TimeoutError:
            self._fetch.clear()
            return
        if self._quiet is None:
            self._proves = quiet
            if self._pace.is_prompt:
                self._seen = presumed(self.issuance, self._last, self._authorizations, self._fetched)
        self._quiet = quiet * 2

    async def _fetched_and_quiet(self) -> timedelta:
        """Return once the authority has come for all that this process told it of, and then not for as long as is returned.

        Where it was asked too early, that is counted from now on, unless it has said when to ask again.
        """
        quiet, time = self._quiet or self._pace.quiet, asyncio.get_running_loop().time
        if self._quiet is not None and self._has_come and (self._last is None or not self._last.retry_after):
            self._fetched_at = time()
            self._fetch.set()
        while True:
            await self._fetch.wait()
            if (left := self._fetched_at + quiet.total_seconds() - time()) > 0:
                await asyncio.sleep(left)
                continue
            self._fetch.clear()
            if self._has_come:
                return quiet

    @property
    def _has_come(self) -> bool:
        """Whether the authority has come for all that this process told it of."""
        return self._tokens <= self._fetched

    async def _after_refusal(self, move: object, error: AuthorityRefused) -> None:
        """Keep the order where waiting may help; else forget it, so that the next try begins anew."""
        kind = error.type.removeprefix(ACME_ERROR)
        match move:
            case Finalize() if kind == NOT_READY or (kind in NOT_READY_EITHER and self._is_presumed):
                self._learn(ready=False)
                self._seen = None
                return
            case NewOrder() if self.issuance.replaces is not None and kind in NOT_REPLACED:
                await self.memory.not_replaced()
                self.issuance = replace(self.issuance, replaces=None, exempt=False)
                return
        if kind != "rateLimited" and (error.status in GONE or error.status < 500):
            await self.give_up(Problem(error.code, error.text, error.hint, error.not_before))
        raise error

    async def _after_nonsense(self, move: object, error: AuthorityMalformed) -> None:
        """Forget an order that has been gone for long: some authorities say so with a bare 404."""
        is_old = self.clock() - self.issuance.begun_at >= BELIEVED_LOST
        if isinstance(move, LookAtOrder) and error.status in GONE and is_old:
            await self.give_up(Problem(error.code, error.text, error.hint))
        raise error

    async def give_up(self, problem: Problem, failed: Collection[Identifier] = ()) -> None:
        """Have it written down that the order led nowhere, and answer for it no more."""
        await self.memory.given_up(problem, failed)
        self.tokens.drop(self)

    async def _fail(self, problem: Problem) -> None:
        await self._tell_places()
        failed = [
            one.identifier
            for one in self._authorizations.values()
            if one.status is AuthorizationStatus.INVALID
        ]
        await self.give_up(problem, failed)
        raise ChallengeFailed(
            problem.detail,
            subject=self.issuance.certificate,
            hint=problem.hint,
            not_before=problem.not_before,
        )

    async def _tell_places(self) -> None:
        """Tell through which vhosts the authority came; each place once, when it came first."""
        if places := {place: at for place, at in self._places.items() if at is not None}:
            self._places = dict.fromkeys(self._places)
            await self.memory.fetched(places)
