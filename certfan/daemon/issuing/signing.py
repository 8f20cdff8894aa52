"""Consumers that make their own keys: asked for a signing request, and judged by what they send.

The number is written down before the consumer hears of it, its CSR before anybody acts on it. What must never come in:
when one is wanted (core.orders), what is ordered with it (material).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from certfan import pki
from certfan.core.custody import SigningRequest, fits
from certfan.core.keys import key_to_reuse, spent_keys
from certfan.core.model import Certificate, Desired, Problem
from certfan.core.steps import AskCsr
from certfan.daemon.issuing.material import Stock
from certfan.daemon.journal import Journal
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store, StoreFacts
from certfan.errors import NotAllowed, PkiError, RequestInvalid

_LISTED = (
    "the consumer's list says which one is; an agent that sends others wants: systemctl restart certfan-agent"
)


async def ask(
    step: AskCsr, desired: Desired, store: Store, state: StateFolder, *, floor: int, now: datetime
) -> None:
    """Write down which number and key a consumer is asked for; its list of assignments says so from then on.

    Repeatable: asked again for the same, the number is another one only when this one was used meanwhile.
    """
    certificate = desired.certificates.get(step.certificate)
    if certificate is None or certificate.holder != step.consumer:
        return  # the config has changed while the step waited for its turn
    facts = await store.facts()
    generations = facts.generations.get(certificate.name, ())
    spent = spent_keys(generations, {*facts.revoked, *facts.revocations})
    before = facts.signing_requests.get(certificate.name)
    # What was asked for otherwise may be answered still: it gets a number of its own.
    floor = max(floor, before.generation if before is not None else 0)
    like = key_to_reuse(certificate, generations, spent, now)
    asked = SigningRequest(
        certificate.name,
        step.consumer,
        generation=Stock(state).next_number(certificate, generations, spent, floor),
        identifiers=frozenset(certificate.identifiers),
        key_type=certificate.key_type,
        asked_at=now,
        key=like.key if like is not None and like.holder == step.consumer else "",
    )
    await store.ask_csr(asked)
    await store.clear_attempt(f"{certificate.name}/{step.consumer}")


class CsrDesk:
    """Takes what consumers send, or says why not."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        desired: Callable[[], Desired],
        ring: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._journal = journal
        self._desired = desired
        self._ring = ring
        self._clock = clock

    async def take(self, consumer: str, certificate: str, generation: int, csr_pem: bytes) -> None:
        """Keep a CSR that was asked for; durable on return, and the same one may come again.

        Raises:
            NotAllowed: it was not asked of this consumer, or not any more.
            RequestInvalid: it is not what was asked for; the status says so until a good one comes.
        """
        wanted = self._desired().certificates.get(certificate)
        subject = f"{certificate}/{consumer}"
        if wanted is None or wanted.holder != consumer:
            raise NotAllowed(
                f"{consumer} is not to make the key of {certificate}",
                subject=subject,
                hint=f'see custody and consumers of {certificate} in certfan.toml; "consumer" has the key made there',
            )
        facts = await self._store.facts()
        asked = facts.signing_requests.get(certificate)
        try:
            request = pki.read_server_csr(csr_pem)
            if self._came_before(facts, asked, wanted, generation, request):
                return
            if asked is None or asked.generation != generation or asked.csr is not None:
                raise NotAllowed(
                    f"no CSR for {certificate}@{generation} is wanted now", subject=subject, hint=_LISTED
                )
            await self._judge(facts, asked, wanted, request)
        except PkiError as error:
            if asked is not None and asked.generation == generation and asked.csr is None:
                await self._refuse(asked, error)
            raise
        if await self._store.record_csr(asked, request.der):
            self._journal.tell(
                "csr.taken", f"{certificate}@{generation}", consumer=consumer, key=request.key.spki_hash
            )
            self._ring()

    def _came_before(
        self,
        facts: StoreFacts,
        asked: SigningRequest | None,
        wanted: Certificate,
        generation: int,
        request: pki.ServerRequest,
    ) -> bool:
        """Whether it is one that we have, whose answer was lost on the way."""
        known = {g.number: g.key for g in facts.generations.get(wanted.name, ())}
        if asked is not None and asked.generation == generation and asked.csr is not None:
            known[generation] = pki.read_csr(asked.csr).spki_hash
        return known.get(generation) == request.key.spki_hash

    async def _judge(
        self, facts: StoreFacts, asked: SigningRequest, wanted: Certificate, request: pki.ServerRequest
    ) -> None:
        name = wanted.name
        if not fits(asked, wanted, facts.generations.get(name, ())):
            raise NotAllowed(
                f"the CSR for {name} is asked for anew", subject=f"{name}/{asked.consumer}", hint=_LISTED
            )
        names = tuple(sorted(map(str, wanted.identifiers)))
        if request.names != names:
            # What it asks for instead is a stranger's text.
            raise RequestInvalid(f"CSR for {name} asks for other names than {', '.join(names)}", subject=name)
        if request.key.key_type != asked.key_type:
            raise RequestInvalid(
                f"CSR for {name} has a key of type {request.key.key_type}, not {asked.key_type}", subject=name
            )
        if request.key.spki_hash != asked.key and request.key.spki_hash in {
            *_keys(facts),
            *(one.spki for one in await self._store.identities(asked.consumer)),
        }:
            raise RequestInvalid(f"CSR for {name} has a key that is in use elsewhere, or was", subject=name)

    async def _refuse(self, asked: SigningRequest, error: PkiError) -> None:
        hint = f"bring the agent on {asked.consumer} to the daemon's release, and look who sends CSRs there"
        problem = Problem(error.code, error.text, error.hint or hint)
        if asked.problem != problem:
            await self._store.refuse_csr(asked, problem)
            subject = f"{asked.certificate}/{asked.consumer}"
            await self._journal.warn("csr.refused", subject, detail=error.text, hint=problem.hint)


def _keys(facts: StoreFacts) -> Iterator[str]:
    """Tell every key that a certificate has, had, or is to have."""
    for generations in facts.generations.values():
        yield from (g.key for g in generations)
    for one in facts.signing_requests.values():
        if one.csr is not None:
            yield pki.read_csr(one.csr).spki_hash
