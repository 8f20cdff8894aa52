"""What the endpoints of this consumer were last seen to serve, and which looks say something of the last reload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

from certfan import log
from certfan.core.agent_steps import Probe
from certfan.core.model import Endpoint, Health, Proof
from certfan.errors import ProbeRefused, ProbeUnreachable
from certfan.probe import probe

AT_ONCE = 16
SETTLING = timedelta(seconds=3)  # ejabberd takes up to 1.1 s, nginx 0.1 s after its reload returned
SETTLING_STEP = timedelta(milliseconds=200)

Place = tuple[str, Endpoint]  # certificate, and an endpoint that is to show it


class Prober:
    """Dials endpoints and keeps the latest proof of each."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._proofs: dict[Place, Proof] = {}
        self._shown: dict[Place, Proof] = {}
        self._reloading: frozenset[str] = frozenset()
        self._ended: dict[str, datetime] = {}
        self._log = log.get("prober")

    @property
    def proofs(self) -> Mapping[Place, Proof]:
        """The latest proofs that began after the last reload of their certificate ended."""
        return dict(self._proofs)

    @property
    def shown(self) -> Mapping[Place, Proof]:
        """The latest proofs, older ones while a reload is under way included: what is reported."""
        return dict(self._shown)

    def reload_begins(self, certificates: Iterable[str]) -> None:
        """Whatever was seen of these certificates until now says nothing any more."""
        self._reloading = frozenset(certificates)
        self._proofs = {place: p for place, p in self._proofs.items() if place[0] not in self._reloading}

    def reload_ended(self) -> None:
        """What is seen from now on counts."""
        self._ended |= dict.fromkeys(self._reloading, self._clock())
        self._reloading = frozenset()

    async def look(self, step: Probe, wanted: str | None) -> None:
        """Dial all endpoints of a step. `wanted` is the fingerprint that the local pair should make them show."""
        async with asyncio.TaskGroup() as group:
            for endpoint in step.endpoints:
                place = (step.certificate, endpoint)
                group.create_task(self._look_at(place, wanted), name=f"probe {endpoint}")

    async def _look_at(self, place: Place, wanted: str | None) -> None:
        certificate, endpoint = place
        async with self._at_once:
            at = self._clock()
            proof = await _proof_of(endpoint, at)
            while proof.fingerprint != wanted and self._may_not_have_settled(certificate):
                await asyncio.sleep(SETTLING_STEP.total_seconds())
                at = self._clock()
                proof = await _proof_of(endpoint, at)
        if certificate in self._reloading or at < self._ended.get(certificate, at):
            return
        self._proofs[place] = self._shown[place] = proof
        if proof.health is not Health.SERVED:
            self._log.warning(
                "endpoint.unproven", endpoint=str(endpoint), health=proof.health, detail=proof.detail
            )

    def _may_not_have_settled(self, certificate: str) -> bool:
        """Whether a reload that returned may still have to take effect."""
        ended = self._ended.get(certificate)
        return ended is not None and timedelta(0) <= self._clock() - ended < SETTLING


async def _proof_of(endpoint: Endpoint, at: datetime) -> Proof:
    try:
        leaf = await probe(endpoint.protocol, endpoint.address, endpoint.port, endpoint.server_name)
    except ProbeRefused as error:
        return Proof(endpoint, Health.REFUSED, at, detail=error.text)
    except ProbeUnreachable as error:
        return Proof(endpoint, Health.UNREACHABLE, at, detail=error.text)
    return Proof(
        endpoint,
        Health.SERVED,
        at,
        fingerprint=leaf.fingerprint,
        not_after=leaf.not_after,
        not_before=leaf.not_before,
        placeholder=leaf.placeholder,
    )
