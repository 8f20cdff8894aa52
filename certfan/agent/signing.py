"""Hands in the CSRs of keys that the privileged half makes; sent again until the daemon asks no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

from certfan import log
from certfan.agent.privileged import Privileged
from certfan.core import policy
from certfan.core.agent_steps import Pair, SendCsr

_A_WHILE = len(policy.SHORT_DELAYS)


class Taker(Protocol):
    """Who wants CSRs."""

    async def send_csr(self, certificate: str, generation: int, csr_pem: str) -> None:
        """Hand one in; raises ChannelError."""


class Signing:
    """What was sent, and when it may be sent again. Nothing of it needs to outlive the process."""

    def __init__(
        self,
        privileged: Privileged,
        taker: Taker,
        clock: Callable[[], datetime],
        jitter: Callable[[], float],
    ) -> None:
        self._privileged = privileged
        self._taker = taker
        self._clock = clock
        self._jitter = jitter
        self._failures: dict[Pair, int] = {}
        self._not_before: dict[Pair, datetime] = {}
        self._log = log.get("agent")

    @property
    def not_before(self) -> Mapping[Pair, datetime]:
        """When each is sent again, should it still be asked for."""
        return dict(self._not_before)

    async def send(self, step: SendCsr) -> None:
        """Have a key made and its CSR taken.

        Raises:
            ServiceError: the privileged half has not made it.
            ChannelError: the daemon has not taken it.
        """
        pair = (step.certificate, step.asked.generation)
        csr_pem = await self._privileged.csr(step.certificate, step.asked)
        await self._taker.send_csr(*pair, csr_pem)
        self._wait(pair, _A_WHILE)
        self._log.info("csr.sent", bundle=f"{pair[0]}@{pair[1]}")

    def failed(self, step: SendCsr) -> None:
        """Wait longer and longer."""
        pair = (step.certificate, step.asked.generation)
        self._wait(pair, self._failures.get(pair, 0) + 1)

    def _wait(self, pair: Pair, failures: int) -> None:
        # Of each certificate only what is asked for now.
        self._failures = {one: n for one, n in self._failures.items() if one[0] != pair[0]} | {pair: failures}
        again = policy.next_short_try(failures, self._clock(), jitter=self._jitter())
        self._not_before = {one: at for one, at in self._not_before.items() if one[0] != pair[0]} | {
            pair: again
        }
