"""One exchange with the daemon: the only place that dials it. Foreign exceptions end here.

What must never come in: what is asked for (link.py), when to try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import aiohttp

from certfan.agent.identity import ENROL_HINT
from certfan.errors import (
    CertfanError,
    DaemonUnreachable,
    EnrolmentRefused,
    MessageInvalid,
    NotAllowed,
    NotAuthenticated,
    PkiError,
    StateError,
)
from certfan.protocol.identity import find_half_open
from certfan.protocol.messages import MAX_ANSWER, ProblemAnswer
from certfan.protocol.trust import HEADER
from certfan.protocol.wire import Message, decode

_CONNECT = 10  # seconds
ANSWER = 30  # seconds that an answer may take beyond what it was told to wait


class Caller:
    """Exchanges with one daemon under one TLS context; enrolment uses it with others than the link's.

    `without` makes the same context less our certificate, where that may be what a daemon refuses.
    """

    def __init__(
        self,
        address: str,
        server_name: str,
        context: Callable[[], ssl.SSLContext],
        *,
        without: Callable[[], ssl.SSLContext] | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._address = address
        self._server_name = server_name
        self._context = context
        self._without = without
        self._headers = headers
        self.trust_offered = 0
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End the session; repeatable, and the next call opens another."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        message: Message | None = None,
        patience: float = ANSWER,
    ) -> bytes:
        """Make one exchange and return the body of its success, at most MAXANSWER bytes.

        Raises:
            DaemonUnreachable: no answer, or the daemon cannot answer now.
            NotAuthenticated: either end does not believe the other.
            NotAllowed, EnrolmentRefused, MessageInvalid: what the daemon answered.
        """
        with self._translated():
            try:
                async with (
                    asyncio.timeout(patience),
                    self._request(method, path, params, message) as response,
                ):
                    body = await _read(response)
            except aiohttp.ClientError as error:
                await self.close()
                if not isinstance(error, aiohttp.ClientConnectorError) and await self._refuses_us():
                    raise NotAuthenticated(
                        f"daemon at {self._address} does not accept our certificate",
                        subject=self._address,
                        hint=ENROL_HINT,
                    ) from error
                raise
        if response.status < 300:
            return body
        if response.status == 401:
            await self.close()
        raise _refusal(response.status, body, self._address)

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, path: str, params: dict[str, str] | None, message: Message | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = _session(self._own_context())
        async with self._session.request(
            method,
            f"https://{self._address}{path}",
            params=params,
            data=message.encode() if message is not None else None,
            headers=self._headers,
            server_hostname=self._server_name,
            allow_redirects=False,
        ) as response:
            told = response.headers.get(HEADER, "")
            self.trust_offered = int(told) if told.isascii() and told.isdigit() and len(told) < 10 else 0
            yield response

    async def _refuses_us(self) -> bool:
        """Say whether it is our certificate that ended a connection.

        asyncio's server hangs up on a client that fails its handshake without the alert that would say why, so
        the question is asked with the certificate and without.
        """
        if self._without is None:
            return False
        return not await self._answers(self._own_context()) and await self._answers(self._without())

    async def _answers(self, context: ssl.SSLContext) -> bool:
        url = f"https://{self._address}/v1/ca"
        try:
            async with (
                asyncio.timeout(_CONNECT),
                _session(context) as session,
                session.get(url, server_hostname=self._server_name, allow_redirects=False) as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def _own_context(self) -> ssl.SSLContext:
        try:
            return self._context()
        except FileNotFoundError as error:
            raise NotAuthenticated("this agent has no identity", hint=ENROL_HINT) from error
        except (OSError, ValueError, PkiError, StateError) as error:
            # A pair that was half replaced is one such case: the same line mends it.
            raise NotAuthenticated(
                f"identity of this agent does not load: {error}", hint=ENROL_HINT
            ) from error

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        where = f"daemon at {self._address}"
        try:
            yield
        except TimeoutError as error:
            raise DaemonUnreachable(f"{where} did not answer in time", subject=self._address) from error
        except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as error:
            raise NotAuthenticated(
                f"{where} is not the daemon {self._server_name} that this machine was enrolled with",
                subject=self._address,
                hint=ENROL_HINT,
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise DaemonUnreachable(
                f"{where} cannot be reached: {error or type(error).__name__}",
                subject=self._address,
                hint="look there at: systemctl status certfan",
            ) from error


def _session(context: ssl.SSLContext) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(ssl=context, limit=8, keepalive_timeout=60, socket_factory=_socket)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),
        auto_decompress=False,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _socket(info: Any) -> socket.socket:
    family, kind, proto, _, _ = info
    sock = socket.socket(family, kind, proto)
    sock.setblocking(False)
    find_half_open(sock)
    return sock


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise MessageInvalid(f"answer of the daemon is larger than {MAX_ANSWER} bytes")
    return bytes(body)


def _refusal(status: int, body: bytes, address: str) -> CertfanError:
    try:
        problem = decode(ProblemAnswer, body)
    except MessageInvalid:
        problem = ProblemAnswer(code="", detail=f"status {status}")
    text = f"daemon at {address} answered: {problem.detail}"
    kinds: dict[int, type[CertfanError]] = {401: NotAuthenticated, 403: NotAllowed}
    kind = kinds.get(status, MessageInvalid if status < 500 else DaemonUnreachable)
    if problem.code == EnrolmentRefused.code:
        kind = EnrolmentRefused
    if kind is NotAuthenticated:
        return kind(text, subject=address, hint=ENROL_HINT)
    return kind(text, subject=address, hint=problem.hint)
