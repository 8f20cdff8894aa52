"""`certfan doctor`, with the daemon's eyes: authorities, DNS and CAA, the path of every vhost, share, clock, files, agents.

What must never come in: what a finding means (core.findings), and a change of anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from typing import Any, TypeAlias

from certfan import __version__
from certfan.core.findings import FileSeen, Finding, Grade, caa_finding, of_problem, too_open, version_finding
from certfan.core.looks import checked_identifiers
from certfan.core.model import Authority, Certificate, Identifier, Problem
from certfan.core.rotation import Phase
from certfan.daemon.challenges.caa import FindCaa
from certfan.daemon.status.model import Page
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.status.view import view
from certfan.errors import CertfanError

PATIENCE = 20.0  # seconds for one look at something outside

Tell = Callable[[Finding], Awaitable[None]]
_Answer: TypeAlias = tuple[frozenset[str], Finding]
Look = Callable[[Authority], Awaitable[frozenset[str]]]
Check = Callable[[Identifier], Awaitable[Problem | None]]


class Doctor:
    """Looks at everything. `look` asks an authority how CAA records name it, `files` are those of the state folder."""

    def __init__(
        self,
        *,
        things: Callable[[], Awaitable[StateOfThings]],
        look: Look,
        check: Check,
        self_check: Callable[[], bool],
        find_caa: FindCaa,
        files: Callable[[], Collection[FileSeen]],
        uid: int,
    ) -> None:
        self._things = things
        self._look = look
        self._check = check
        self._self_check = self_check
        self._find_caa = find_caa
        self._files = files
        self._uid = uid

    async def examine(self, tell: Tell) -> None:
        """Tell every finding as soon as it is known. Cancelled, nothing is left behind.

        Raises:
            ExceptionGroup: of what `tell` raised; nothing more is looked at then.
        """
        things = await self._things()
        for finding in (*_own(things), *await self._permissions(), *_known(things), *_followed(things)):
            await tell(finding)
        certificates = things.desired.certificates.values()
        async with asyncio.TaskGroup() as group:
            asked = {
                one.name: group.create_task(self._authority(one), name=f"look at {one.name}")
                for one in things.desired.authorities.values()
            }
            looks = [*self._paths(certificates), *self._caa(certificates, asked, things)]
            tasks = [group.create_task(look, name="look") for look in looks]
            for answered in asyncio.as_completed(asked.values()):
                await tell((await answered)[1])
            for ended in asyncio.as_completed(tasks):
                await tell(await ended)

    async def _permissions(self) -> list[Finding]:
        files = await asyncio.to_thread(self._files)
        found = list(too_open(files, uid=self._uid))
        return found or [
            Finding(Grade.OK, "permissions", "state", f"{len(files)} files of the state folder are closed")
        ]

    async def _authority(self, authority: Authority) -> _Answer:
        """Return how CAA records name an authority, and whether it answers."""
        name = authority.name
        try:
            async with asyncio.timeout(PATIENCE):
                told = await self._look(authority)
        except TimeoutError:
            detail = f"{name} has not answered in {PATIENCE:.0f} s"
            hint = f"run: curl -v {authority.directory}"
            return frozenset(), Finding(Grade.BAD, "authority", name, detail, hint)
        except CertfanError as error:
            return frozenset(), Finding(Grade.BAD, "authority", name, error.text, error.hint)
        return told, Finding(Grade.OK, "authority", name, f"{name} answers at {authority.directory}")

    def _paths(self, certificates: Collection[Certificate]) -> Iterator[Coroutine[Any, Any, Finding]]:
        identifiers = sorted({i for one in certificates for i in checked_identifiers(one)})
        if not self._self_check() and identifiers:
            yield _told(
                Finding(
                    Grade.WARN,
                    "path",
                    "self_check",
                    'the path of no vhost is looked at: `self_check = "off"` in [http01]',
                    "certfan check --order NAME tries one where it costs nothing",
                )
            )
            return
        yield from (self._path(identifier) for identifier in identifiers)

    async def _path(self, identifier: str) -> Finding:
        problem = await self._check(Identifier(identifier))
        well = f"{identifier} leads to our own responder over every address"
        return of_problem("path", identifier, problem, well)

    def _caa(
        self,
        certificates: Collection[Certificate],
        asked: Mapping[str, asyncio.Task[_Answer]],
        things: StateOfThings,
    ) -> Iterator[Coroutine[Any, Any, Finding]]:
        names = {(i.value, one.authority) for one in certificates for i in one.identifiers if i.kind == "dns"}
        for identifier, authority in sorted(names):
            account = things.accounts.get(authority)
            yield self._allowed(identifier, authority, asked[authority], account.uri if account else None)

    async def _allowed(
        self, identifier: str, authority: str, asked: asyncio.Task[_Answer], account: str | None
    ) -> Finding:
        seen = await self._find_caa(identifier.removeprefix("*."))
        identities, _ = await asked
        return caa_finding(identifier, seen, authority=authority, identities=identities, account=account)


def _followed(things: StateOfThings) -> Iterator[Finding]:
    """Yield whether the internal CA is the only one that is believed."""
    ca = things.internal_ca
    if ca is None:
        return
    if ca.phase is Phase.SETTLED:
        yield Finding(Grade.OK, "ca", "ca", f"the internal CA is good until {ca.not_after:%Y-%m-%d}")
    else:
        yield Finding(
            Grade.WARN, "ca", "ca", f"another internal CA follows, and {ca.told}", "run: certfan ca show"
        )


async def _told(finding: Finding) -> Finding:
    return finding


def _own(things: StateOfThings) -> Iterator[Finding]:
    for problem in things.config_problems:
        yield of_problem("config", "config", problem, "")
    if not things.config_problems:
        yield Finding(Grade.OK, "config", "config", "the config in force is what is written")
    yield of_problem("clock", "clock", things.clock_problem, "the clock of this machine can be believed")
    well = "the share answers, and is the one that it should be"
    yield of_problem("share", "share", things.share_problem, well)


def _known(things: StateOfThings) -> Iterator[Finding]:
    """Yield what the status says of certificates, authorities and consumers; a broken path is looked at anew."""
    page = view(things)
    paths = {path.identifier for one in page.certificates for path in one.broken_paths}
    told = {"config", "clock", "share", "ca", *paths}
    troubled = [one for one in page.problems if one.subject not in told]
    for one in troubled:
        yield Finding(Grade.BAD, _area(one.subject, page), one.subject, one.detail, one.hint)
    for consumer in page.consumers:
        if consumer.version and (odd := version_finding(consumer.name, consumer.version, __version__)):
            yield odd
    if not troubled:
        proven = f"{page.summary.proven} of {page.summary.endpoints} endpoints are proven"
        yield Finding(Grade.OK, "agents", "agents", proven)


def _area(subject: str, page: Page) -> str:
    if subject.rpartition("/")[2] in {one.name for one in page.consumers}:
        return "agents"
    return "authority" if subject in {one.name for one in page.authorities} else "certificates"
