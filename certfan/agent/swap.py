"""One group of pairs goes live, whole or not at all: lay, move pointers, test, reload, see it run, else go back.

A crash at any instant is repaired by the same request again: what was live before is on disk before a pointer
moves, and stays there until the group has ended. What must never come in: who asked, and whether a bundle is genuine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from certfan import log, pki
from certfan.agent import reloader
from certfan.agent.config import AgentConfig, Service
from certfan.agent.installer import Laid
from certfan.agent.journal import Journal, Owed
from certfan.agent.own_keys import OwnKeys
from certfan.agent.places import Places
from certfan.agent.reloader import Running
from certfan.core.model import Problem
from certfan.errors import CertfanError, PairRefused, ServiceDown, ServiceError

HOOKS_THAT_SPEAK = 20  # of one answer: what they said has to fit into it


class ServiceState(StrEnum):
    """How a service came out of a swap."""

    RELOADED = "reloaded"  # or started, when it was dead
    CONFIG_TEST_FAILED = "config_test_failed"
    RELOAD_FAILED = "reload_failed"
    DOWN = "down"
    UNTOUCHED = "untouched"  # another service's config test failed first
    UNCONCERNED = "unconcerned"  # loads none of the certificates


@dataclass(frozen=True, slots=True)
class ServiceOutcome:
    """One service's part of an answer. A service that was down before has a problem and failed nothing."""

    name: str
    certificates: tuple[str, ...]
    state: ServiceState
    problem: Problem | None = None


PIN = b'{"pin": "trust"}\n'  # the one request that names no certificate


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request. `problem` is None when all of it is live and each concerned service took it.

    `installed` is what live/NAME points at now: a generation, 0 for a placeholder, None for nothing. `hooks` are
    the hooks that failed, by certificate: what they belong to is live and loaded all the same.
    """

    services: tuple[ServiceOutcome, ...] = ()
    installed: Mapping[str, int | None] = field(default_factory=dict)
    rolled_back: bool = False
    problem: Problem | None = None
    hooks: Mapping[str, Problem] = field(default_factory=dict)
    installed_at: datetime | None = None  # when the last pointer had moved
    reloaded_at: datetime | None = None  # when the last reload had returned
    csr: str = ""  # PEM, of a request for one

    def encode(self) -> bytes:
        """Return the answer as one line of JSON; instants as ISO 8601."""
        return json.dumps(asdict(self), default=datetime.isoformat).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A pair to go live; without one, a placeholder."""

    certificate: str
    generation: int = 0
    pair: pki.Pair | None = field(default=None, repr=False)


class Swap:
    """Carries out one request under the lock that its caller holds."""

    def __init__(self, config: AgentConfig, places: Places, clock: Callable[[], datetime]) -> None:
        self._config = config
        self._places = places
        self._installer = places.installer
        self._journal = Journal(self._installer.generations)
        self._clock = clock
        self._log = log.get("apply")
        self._outcomes: dict[str, tuple[ServiceState, Problem | None]] = {}
        self._hooks_failed: dict[str, Problem] = {}
        self._installed_at: datetime | None = None
        self._reloaded_at: datetime | None = None

    async def run(self, wanted: Sequence[Wanted]) -> Answer:
        """Bring a group live.

        Killed or cancelled midway, the same request completes or undoes it.
        """
        try:
            laid = await self._lay(wanted)
        except CertfanError as error:
            return Answer(installed=self._installed(wanted), problem=_problem(error))
        owed = self._journal.read()
        names = sorted({*laid, *owed.former})
        services = [s for s in self._config.services if any(s.concerns(name) for name in names)]
        former = {name: self._folder(name) for name in laid} | dict(owed.former)
        owed = Owed(former, owed.ran | await self._which_run(services))
        self._journal.write(owed)
        try:
            for name, one in laid.items():
                self._installer.point(name, one)
            await self._stand_up(services, set(laid))
        except CertfanError as error:
            await self._restore(owed)
            self._journal.clear()
            return Answer(installed=self._installed(wanted), rolled_back=True, problem=_problem(error))
        self._installed_at = self._clock()
        worse = await self._load(services, owed)
        if worse:
            await self._go_back(services, owed, reload=worse is ServiceState.DOWN)
        else:
            await self._hooks(wanted, services)
        self._journal.clear()
        if worse is ServiceState.CONFIG_TEST_FAILED:
            await self._blame(services)
        if not worse:
            for name in names:
                self._prune(name)
        return self._answer(wanted, services=services, rolled_back=bool(worse))

    def _prune(self, certificate: str) -> None:
        """Remove what nobody goes back to, keys last."""
        self._installer.prune(certificate)

        def in_use() -> list[str]:
            laid = (self._installer.read(certificate, one) for one in self._installer.stored(certificate))
            return [pki.public_key_hash(pair.key_pem) for pair in laid if pair is not None]

        OwnKeys(self._config.install_to).prune(certificate, in_use)

    async def _lay(self, wanted: Sequence[Wanted]) -> dict[str, Laid]:
        """Write every folder; no pointer moves. A placeholder that is live stays the one it is."""
        laid = {}
        # Whatever stands in the way of one is found before anything is written.
        live = {one.certificate: self._installer.pointer(one.certificate) for one in wanted}
        for one in wanted:
            name = one.certificate
            now_live = live[name]
            if one.pair is not None:
                laid[name] = await self._places.lay(name, one.generation, one.pair)
            elif now_live is not None and now_live.generation == 0:
                laid[name] = now_live
            else:
                laid[name] = self._places.lay_placeholder(name)
        return laid

    async def _stand_up(self, services: Sequence[Service], sure: Collection[str]) -> None:
        """Let no service that is about to read its pairs find a pointer into a share that is gone, `sure` ones apart.

        Known limit: what the share takes away while a service reads is met by its config test, or by the roll-back.
        """
        for name, laid in self._installer.pointers().items():
            if laid.mounted and name not in sure and any(service.concerns(name) for service in services):
                self._installer.point(name, await self._places.standing(name, laid))

    async def _load(self, services: Sequence[Service], owed: Owed) -> ServiceState | None:
        """Test once, reload once, watch; return what became worse, if anything did."""
        if not await self._test(services):
            return ServiceState.CONFIG_TEST_FAILED
        for service in services:
            await self._reload(service)
        self._reloaded_at = self._clock()
        await asyncio.sleep(reloader.SETTLE.total_seconds())
        for service in services:
            if service.name in owed.ran:
                await self._watch(service)
        died = any(
            state is ServiceState.DOWN for name, (state, _) in self._outcomes.items() if name in owed.ran
        )
        return ServiceState.DOWN if died else None

    async def _test(self, services: Sequence[Service]) -> bool:
        for service in services:
            try:
                await reloader.test(service)
            except ServiceError as error:
                self._note(service, ServiceState.CONFIG_TEST_FAILED, error)
        return not self._outcomes

    async def _blame(self, services: Sequence[Service]) -> None:
        """Test again with the former pairs: what passes now is held against the new ones.

        Known limit: so is what somebody mended between the two.
        """
        failed = [s for s in services if s.name in self._outcomes]
        for service in failed:
            try:
                await reloader.test(service)
            except ServiceError:
                return
        for service in failed:
            _, problem = self._outcomes[service.name]
            assert problem is not None
            told = f"{problem.detail} with the new pairs, and passes with the former ones"
            refused = replace(problem, code=PairRefused.code, detail=told)
            self._note(service, ServiceState.CONFIG_TEST_FAILED, refused)

    async def _reload(self, service: Service) -> None:
        match await reloader.state(service):
            case Running.STOPPED:
                down = ServiceDown(
                    f"{service.name} is stopped, so the pair was laid and nothing reloaded",
                    subject=service.name,
                    hint=f"run: {' '.join(service.start)}",
                )
                self._note(service, ServiceState.DOWN, down)
                return
            case Running.RUNS:
                change = reloader.reload
            case Running.DEAD:
                change = reloader.start
        try:
            await change(service)
            self._note(service, ServiceState.RELOADED)
        except ServiceError as error:
            self._note(service, ServiceState.RELOAD_FAILED, error)

    async def _watch(self, service: Service) -> None:
        try:
            await reloader.must_run(service)
        except ServiceError as error:
            _, before = self._outcomes[service.name]
            self._note(service, ServiceState.DOWN, before or error)

    async def _go_back(self, services: Sequence[Service], owed: Owed, *, reload: bool) -> None:
        """Restore every pointer; what runs takes the former pairs again, what died is started."""
        await self._restore(owed)
        await self._stand_up(services, set(owed.former))
        self._log.warning("group.rolled_back", certificates=sorted(owed.former))
        for service in services:
            try:
                if await reloader.state(service) is not Running.RUNS:
                    if service.name in owed.ran:
                        await reloader.start(service)
                elif reload:
                    await reloader.reload(service)
            except ServiceError as error:
                self._note(service, ServiceState.DOWN, error)

    async def _restore(self, owed: Owed) -> None:
        for name, folder in owed.former.items():
            former = Laid.parse(folder) if folder else None
            self._installer.point(name, await self._places.standing(name, former))

    async def _hooks(self, wanted: Sequence[Wanted], services: Sequence[Service]) -> None:
        """Run hooks for what was really loaded; one that fails is told and holds up nobody."""
        for service in services:
            if self._outcomes[service.name][0] is not ServiceState.RELOADED:
                continue
            for one in wanted:
                if one.pair is None or not service.concerns(one.certificate):
                    continue
                try:
                    await reloader.hook(
                        service, self._environment(one.certificate, one.generation, one.pair, service)
                    )
                except ServiceError as error:
                    self._note(service, ServiceState.RELOADED, error)
                    told = _problem(error)
                    if len(self._hooks_failed) >= HOOKS_THAT_SPEAK:
                        told = replace(told, output="")
                    self._hooks_failed.setdefault(one.certificate, told)

    def _environment(
        self, certificate: str, generation: int, pair: pki.Pair, service: Service
    ) -> Mapping[str, str]:
        return {
            "RENEWED_LINEAGE": str(self._installer.live_path(certificate)),
            "RENEWED_DOMAINS": " ".join(pair.leaf.names),
            "CERTFAN_CERTIFICATE": certificate,
            "CERTFAN_GENERATION": str(generation),
            "CERTFAN_FINGERPRINT": pair.leaf.fingerprint,
            "CERTFAN_SERVICE": service.name,
        }

    async def _which_run(self, services: Sequence[Service]) -> frozenset[str]:
        states = {service.name: await reloader.state(service) for service in services}
        return frozenset(name for name, state in states.items() if state is Running.RUNS)

    def _folder(self, certificate: str) -> str | None:
        laid = self._installer.pointer(certificate)
        return str(laid) if laid else None

    def _note(
        self, service: Service, state: ServiceState, problem: CertfanError | Problem | None = None
    ) -> None:
        told = _problem(problem) if isinstance(problem, CertfanError) else problem
        self._outcomes[service.name] = (state, told)
        write = self._log.info if told is None else self._log.warning
        facts = {} if told is None else {"code": told.code, "detail": told.detail, "output": told.output}
        write(f"service.{state.value}", service=service.name, **facts)

    def _installed(self, wanted: Sequence[Wanted]) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for one in wanted:
            try:
                found[one.certificate] = self._installer.current(one.certificate)
            except ServiceError:
                found[one.certificate] = None
        return found

    def _answer(self, wanted: Sequence[Wanted], *, services: Sequence[Service], rolled_back: bool) -> Answer:
        concerned = {service.name for service in services}
        outcomes = []
        for service in self._config.services:
            nothing = ServiceState.UNTOUCHED if service.name in concerned else ServiceState.UNCONCERNED
            state, problem = self._outcomes.get(service.name, (nothing, None))
            names = tuple(one.certificate for one in wanted if service.concerns(one.certificate))
            outcomes.append(ServiceOutcome(service.name, names, state, problem))
        failed = {ServiceState.CONFIG_TEST_FAILED, ServiceState.RELOAD_FAILED}
        failed |= {ServiceState.DOWN} if rolled_back else set()
        first = next((one.problem for one in outcomes if one.state in failed), None)
        return Answer(
            tuple(outcomes),
            self._installed(wanted),
            rolled_back,
            first,
            hooks=self._hooks_failed,
            installed_at=self._installed_at,
            reloaded_at=self._reloaded_at,
        )


def _problem(error: CertfanError) -> Problem:
    return Problem(error.code, error.text, error.hint, error.not_before, getattr(error, "output", ""))
