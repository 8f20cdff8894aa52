"""How an agent follows when the daemon's internal CA is replaced: fetches what to believe, has root pin it.

Root verifies the signature again by what it has pinned; nothing here decides whom to believe. Before a CA is dropped, every
bundle that only it vouches for is fetched anew, or the boot unit would find nothing that it may lay.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from certfan import files, log, pki
from certfan.agent.identity import Trust
from certfan.agent.link import Link
from certfan.agent.privileged import Privileged
from certfan.agent.staging import Staging
from certfan.errors import ApplyUnavailable, CertfanError, NotAllowed
from certfan.protocol.trust import TrustStatement, open_statement

STATEMENT = "trust.json"
PAUSE = timedelta(minutes=1)  # after a try that failed


class Rotation:
    """Looks after what this machine believes. `repinned` is called when root has pinned something else."""

    def __init__(
        self,
        link: Link,
        trust: Trust,
        state: Path,
        *,
        privileged: Privileged,
        staging: Callable[[Trust], Staging],
        repinned: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._link = link
        self._trust = trust
        self._state = state
        self._privileged = privileged
        self._staging = staging
        self._repinned = repinned
        self._clock = clock
        self._not_before: datetime | None = None
        self._log = log.get("rotation")

    async def look(self) -> None:
        """Follow if the daemon has said that there is something else to believe. Cancelled anywhere, the next look does.

        What goes wrong is told, and tried again in a minute.
        """
        now = self._clock()
        if self._link.trust_offered <= self._trust.number:
            return
        if self._not_before is not None and now < self._not_before <= now + PAUSE:
            return
        try:
            await self._follow()
        except (CertfanError, OSError) as error:
            self._not_before = now + PAUSE
            hint = getattr(error, "hint", "")
            self._log.warning("trust.unchanged", detail=str(error), hint=hint)

    async def _follow(self) -> None:
        told = await self._link.trust()
        trust = self._trust
        statement = open_statement(told, ca_pem=trust.ca_pem, fleet=trust.fleet, number=trust.number)
        if set(pki.anchors(trust.ca_pem)) - set(pki.anchors(statement.ca.encode())):
            await self._fetch_anew(trust.following(statement))
        files.write_private(self._state / STATEMENT, told)
        answer = await self._privileged.pin()
        if answer.problem is not None:
            raise ApplyUnavailable(answer.problem.detail, hint=answer.problem.hint)
        self._log.info("trust.pinned", number=statement.number)
        self._repinned()

    async def _fetch_anew(self, after: Trust) -> None:
        """Have every bundle that is staged verify by what will be pinned; what is not ours any more is left."""
        later = self._staging(after)
        good = later.scan()
        for certificate, number in sorted(self._staging(self._trust).scan().keys() - good.keys()):
            try:
                later.put(certificate, number, await self._link.bundle(certificate, number))
            except NotAllowed:
                self._log.info("bundle.left", bundle=f"{certificate}@{number}")


def pinned_by(data: bytes, trust: Trust) -> Trust:
    """Return what root is to pin by a statement that the agent has left, which is a stranger's to root.

    Raises:
        SignatureInvalid, NotAllowed, MessageInvalid: root does not.
    """
    return trust.following(_read(data, trust))


def _read(data: bytes, trust: Trust) -> TrustStatement:
    return open_statement(data, ca_pem=trust.ca_pem, fleet=trust.fleet, number=trust.number)
