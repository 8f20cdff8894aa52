"""The agent's end of the channel: the only place that dials the daemon.

Foreign exceptions end here. When to try again, and with what jitter, is the reconciler's to decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar

import aiohttp

from certfan import log, pki
from certfan.agent.identity import ENROL_HINT, IdentityFolder, Trust
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
from certfan.protocol.identity import client_context, consumer_of, find_half_open
from certfan.protocol.messages import (
    MAX_ANSWER,
    MAX_REPORT,
    Assignments,
    BundleMessage,
    CsrMessage,
    Message,
    ProblemAnswer,
    RenewReply,
    RenewRequest,
    Report,
    decode,
)
from certfan.protocol.trust import HEADER

_CONNECT = 10  # seconds
_ANSWER = 30  # seconds that an answer may take beyond what it was told to wait
M = TypeVar("M", bound=Message)


class Link:
    """One kept-alive session with the daemon, mutually authenticated; made at the first call.

    Identity files are read again after every refusal, so a new enrolment counts without a restart.
    """

    def __init__(
        self,
        address: str,
        identity: Path,
        *,
        fleet: str,
        ca_pem: bytes,
        consumer: str | None = None,
        trust_number: int = 0,
    ) -> None:
        """Speak as whoever `identity` is, which must be `consumer` if one is named."""

        def context() -> ssl.SSLContext:
            if (identity / "renewed.pem").exists():
                with IdentityFolder(identity).opened() as folder:
                    folder.settle()
            if consumer is not None:
                _check_owner(identity / "cert.pem", consumer)
            return client_context(ca_pem, cert=identity / "cert.pem", key=identity / "key.pem")

        self._caller = Caller(
            address,
            pki.daemon_name(fleet),
            context,
            without=lambda: client_context(ca_pem),
            headers={HEADER: str(trust_number)} if trust_number else {},
        )
        self._unknown: set[str] = set()
        self._log = log.get("link")

    @classmethod
    def of(cls, trust: Trust, identity: Path) -> Link:
        """Return a link to whom this machine trusts."""
        return cls(
            trust.address,
            identity,
            fleet=trust.fleet,
            ca_pem=trust.ca_pem,
            consumer=trust.consumer,
            trust_number=trust.number,
        )

    @property
    def trust_offered(self) -> int:
        """The number of what the daemon last said is to be believed; 0: it has said nothing of it."""
        return self._caller.trust_offered

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session; repeatable."""
        await self._caller.close()

    async def assignments(self, after: str = "", wait: int = 0) -> Assignments:
        """Return all that this consumer is to have: at once, or as soon as its revision is not `after`.

        `wait` is 0 to 300 s; after it the unchanged list comes back. Asking with a revision acknowledges it.
        Cancelled, nothing has happened.

        Raises:
            DaemonUnreachable, NotAuthenticated, MessageInvalid: see the module.
        """
        query = {"after": after, "wait": str(wait)}
        body = await self._caller.call("GET", "/v1/assignments", params=query, patience=wait + _ANSWER)
        return self._decode(Assignments, body)

    async def report(self, report: Report) -> None:
        """Tell the daemon what this agent knows. Repeatable; cancelled, it may have been heard.

        Raises:
            DaemonUnreachable, NotAuthenticated, MessageInvalid: see the module.
        """
        if len(report.encode()) > MAX_REPORT:
            raise MessageInvalid(f"report is larger than {MAX_REPORT} bytes")
        await self._caller.call("POST", "/v1/reports", message=report)

    async def bundle(self, certificate: str, generation: int) -> dict[str, bytes]:
        """Return the files of an assigned generation as they came; `open_bundle` says whether they are any good.

        Raises:
            NotAllowed: it is not assigned to this consumer (any more).
            DaemonUnreachable, NotAuthenticated, MessageInvalid: see the module.
        """
        body = await self._caller.call("GET", f"/v1/bundles/{certificate}/{generation}")
        return self._decode(BundleMessage, body).contents()

    async def csr(self, certificate: str, generation: int, csr_pem: str) -> None:
        """Hand in what was asked to be signed for a generation to be. Repeatable; cancelled, it may have been taken.

        Raises:
            NotAllowed: it is not wanted (any more).
            DaemonUnreachable, NotAuthenticated, MessageInvalid: see the module.
        """
        await self._caller.call(
            "POST", f"/v1/requests/{certificate}/{generation}", message=CsrMessage(csr=csr_pem)
        )

    async def renew(self, csr_pem: str) -> bytes:
        """Return the certificate (PEM) of our identity's successor, for a new key. Repeatable with that key.

        The next session shows whatever identity lies in the folder then.

        Raises:
            NotAllowed: the daemon does not renew it now.
            DaemonUnreachable, NotAuthenticated, MessageInvalid: see the module.
        """
        body = await self._caller.call("POST", "/v1/identity", message=RenewRequest(csr=csr_pem))
        return self._decode(RenewReply, body).certificate.encode()

    async def trust(self) -> bytes:
        """Return what the daemon says is to be believed, unverified.

        Raises:
            DaemonUnreachable, NotAuthenticated, MessageInvalid: see the module.
        """
        return await self._caller.call("GET", "/v1/trust")

    def _decode(self, kind: type[M], body: bytes) -> M:
        return decode(kind, body, self._tell_unknown)

    def _tell_unknown(self, field: str) -> None:
        """Say once that a daemon of a newer release says what we do not understand."""
        if field not in self._unknown:
            self._unknown.add(field)
            self._log.warning("field.unknown", field=field, hint="bring the agent to the daemon's release")


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
        patience: float = _ANSWER,
    ) -> bytes:
        """Make one exchange and return the body of its success, at most MAX_ANSWER bytes.

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


def _check_owner(cert: Path, consumer: str) -> None:
    """Refuse an identity that was copied from another machine: its reports would pass for that one's."""
    shown = consumer_of(pki.read_leaf(cert.read_bytes()).der).consumer
    if shown != consumer:
        raise NotAuthenticated(
            f"{cert} is the identity of consumer {shown}, and this machine is {consumer}",
            subject=str(cert),
            hint=f"run on the daemon's machine: certfan consumer add {consumer}, and here:"
            " certfan agent enrol LINE",
        )


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
