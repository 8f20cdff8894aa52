"""Takes over pairs that another program got: each becomes the next generation of a certificate. Orders nothing.

Whoever asked is named in the journal. What must never come in: where the pair came from (the command line read it
there), a key in a text, an event or a log line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from datetime import datetime

from certfan import pki, tls
from certfan.core import policy
from certfan.core.model import CERTIFICATE_NAME, Authority, Desired, Generation, Identifier, KeyType, Reason
from certfan.core.steps import Key
from certfan.daemon.config.checks import why_not_asked
from certfan.daemon.desk.actions import known
from certfan.daemon.journal import Journal
from certfan.daemon.publishing.laying import lay
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store
from certfan.errors import ActionRefused, MessageInvalid, PkiError


class Adoptions:
    """The daemon's side of daemon.status.control.adoption.Actions."""

    def __init__(
        self,
        *,
        store: Store,
        state: StateFolder,
        journal: Journal,
        desired: Callable[[], Desired],
        highest: Callable[[str], Awaitable[int]],
        in_flight: Callable[[], Collection[Key]],
        reread_tokens: Callable[[], Awaitable[None]],
        ring: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._state = state
        self._journal = journal
        self._desired = desired
        self._highest = highest
        self._in_flight = in_flight
        self._reread_tokens = reread_tokens
        self._ring = ring
        self._clock = clock
        self._one_by_one = asyncio.Lock()  # or two of the same pair would get two numbers

    async def adopted(self, name: str, fingerprint: str) -> tuple[int, bool]:
        """Return the number that a leaf has, or would get, as a generation of a certificate, and whether it has it."""
        _checked(name)
        for one in (await self._store.facts()).generations.get(name, ()):
            if one.fingerprint == fingerprint:
                return one.number, True
        return 1 + await self._highest(name), False

    async def adopt(
        self, name: str, key_pem: bytes, fullchain_pem: bytes, authority: str, *, uid: int
    ) -> tuple[int, bool]:
        """Make a pair the next generation of a certificate, unless it is one; return its number, and whether it was new.

        Repeatable at any point. What is not in the config is kept like what has left it.

        Raises:
            UnknownName: there is no such authority.
            MessageInvalid: the name is none.
            ActionRefused: the pair is not good, or the config would have it ordered anew at once.
        """
        _checked(name)
        known(authority, "authority", self._desired().authorities)
        spec = self._desired().authorities[authority]
        pair = await asyncio.to_thread(self._judged, name, key_pem, fullchain_pem, spec)
        async with self._one_by_one:
            number, is_known = await self.adopted(name, pair.leaf.fingerprint)
            if is_known:
                return number, False
            made = _generation(name, pair, authority, self._clock())
            self._refuse_what_is_ordered(made)
            floor = await self._highest(name)
            number = await asyncio.to_thread(lay, self._state, name, _files(pair), floor)
            await self._store.record_adopted(replace(made, number=number))
            await self._reread_tokens()  # an order that was closed by it took its tokens along
        subject = f"{name}@{number}"
        await self._journal.note(
            "generation.adopted",
            subject,
            uid=uid,
            serial=pair.leaf.serial,
            not_after=pair.leaf.not_after.isoformat(),
            authority=authority,
        )
        self._ring()
        return number, True

    def _judged(self, name: str, key_pem: bytes, fullchain_pem: bytes, spec: Authority) -> pki.Pair:
        try:
            pair = pki.load_foreign_pair(
                key_pem,
                fullchain_pem,
                now=self._clock(),
                roots_pem=tls.roots_pem(spec.roots_file, authority=spec.name),
            )
        except PkiError as error:
            hint = f"renew it once more where it comes from, or set roots_file of authority {spec.name}"
            raise ActionRefused(f"{name}: {error.text}", subject=name, hint=hint) from error
        if (why := why_not_asked(pair.leaf)) is not None:
            raise ActionRefused(
                f"{name}: {why}", subject=name, hint="have it ordered anew: put it into the config"
            )
        return pair

    def _refuse_what_is_ordered(self, made: Generation) -> None:
        """Refuse what an order is under way for, or would follow for another reason than its age."""
        if (made.certificate,) in self._in_flight():
            raise ActionRefused(
                f"an order for {made.certificate} is under way",
                subject=made.certificate,
                hint="run: certfan status",
            )
        wanted = self._desired().certificates.get(made.certificate)
        reason = policy.why_issue(wanted, (made,), made.issued_at) if wanted else None
        if reason not in {None, Reason.RENEWAL_DUE}:
            raise ActionRefused(
                f"{made.certificate}: the config asks for something else ({reason}), so it would be ordered at once",
                subject=made.certificate,
                hint=f'give certificate {made.certificate} in the config the names and key_type of the pair, and custody = "share"',
            )


def _files(pair: pki.Pair) -> dict[str, bytes]:
    return {"privkey.pem": pair.key_pem, "fullchain.pem": pair.fullchain_pem}


def _generation(name: str, pair: pki.Pair, authority: str, now: datetime) -> Generation:
    leaf = pair.leaf
    return Generation(
        name,
        0,
        fingerprint=leaf.fingerprint,
        serial=leaf.serial,
        identifiers=frozenset(Identifier(one) for one in leaf.names),
        key_type=KeyType(leaf.key_type),
        authority=authority,
        not_before=leaf.not_before,
        not_after=leaf.not_after,
        issued_at=now,
        key=pki.public_key_hash(pair.key_pem),
    )


def _checked(name: str) -> None:
    if not CERTIFICATE_NAME.fullmatch(name):
        raise MessageInvalid(f"{name[:100]!r} cannot be a certificate's name")
