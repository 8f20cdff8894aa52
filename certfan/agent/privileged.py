"""The unprivileged side of apply.py: asks the privileged half to make pairs live, and reads what came of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from certfan.agent.swap import PIN, Answer
from certfan.core.agent_steps import Asked, Pair
from certfan.errors import ApplyUnavailable, InstallFailed

# Every command that agent.toml lets it run has a timeout of its own.
PATIENCE = timedelta(minutes=15)
MAX_ANSWER = 1 << 20
HINT = "run: systemctl status certfan-apply.socket certfan-apply.service"
_ANSWER = TypeAdapter(Answer)


class Privileged:
    """One request at a time on its socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def apply(self, pairs: Sequence[Pair]) -> Answer:
        """Have pairs installed, tested, reloaded; generation 0 is a placeholder.

        Cancelled, it may still be done: asking again is harmless.

        Raises:
            ApplyUnavailable: nobody answers, or with something else than an answer.
        """
        return await self._answered(
            b"".join(
                json.dumps({"certificate": certificate, "generation": generation}).encode() + b"\n"
                for certificate, generation in pairs
            )
        )

    async def csr(self, certificate: str, asked: Asked) -> str:
        """Have a key made, and kept there, and return its CSR (PEM). Repeatable: the same key for the same number.

        Raises:
            InstallFailed: it was not made.
            ApplyUnavailable: nobody answers, or with something else than an answer.
        """
        request = {
            "certificate": certificate,
            "request": asked.generation,
            "key_type": asked.key_type,
            "identifiers": asked.identifiers,
            "key": asked.key,
        }
        answer = await self._answered(json.dumps(request).encode() + b"\n")
        if answer.problem is not None or not answer.csr:
            # One of an earlier release takes it for a malformed request.
            detail = answer.problem.detail if answer.problem else "it was not made"
            raise InstallFailed(f"key of {certificate}: {detail}", subject=certificate, hint=HINT)
        return answer.csr

    async def pin(self) -> Answer:
        """Have pinned what the statement in our state folder says, if root finds it signed by a CA that is pinned.

        Raises:
            ApplyUnavailable: as `apply`.
        """
        return await self._answered(PIN)

    async def _answered(self, request: bytes) -> Answer:
        try:
            async with asyncio.timeout(PATIENCE.total_seconds()):
                return _ANSWER.validate_json(await self._exchange(request))
        except (OSError, TimeoutError, asyncio.LimitOverrunError) as error:
            raise ApplyUnavailable(
                f"privileged half at {self._path} does not answer: {error or 'in time'}",
                subject=str(self._path),
                hint=HINT,
            ) from error
        except ValidationError as error:
            raise ApplyUnavailable(
                f"privileged half at {self._path} ended without an answer", subject=str(self._path), hint=HINT
            ) from error

    async def _exchange(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self._path), limit=MAX_ANSWER)
        try:
            writer.write(request)
            writer.write_eof()
            await writer.drain()
            return await reader.readline()
        finally:
            writer.transport.abort()
