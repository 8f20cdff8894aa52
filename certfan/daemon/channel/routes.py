"""Routes of the channel, behind one guard. Who calls is known from the verified peer certificate and nothing else."""

from __future__ import annotations

import asyncio
from typing import Protocol, TypeVar

from aiohttp import web

from certfan import log
from certfan.core.model import CERTIFICATE_NAME
from certfan.daemon.channel.board import Board
from certfan.daemon.channel.waiting import MAX_WAIT, Waiting
from certfan.errors import (
    CertfanError,
    EnrolmentRefused,
    MessageInvalid,
    NotAllowed,
    NotAuthenticated,
    RequestInvalid,
    UnknownName,
)
from certfan.protocol.identity import Caller, consumer_of
from certfan.protocol.messages import (
    MAX_CSR,
    MAX_REPORT,
    BundleMessage,
    CsrMessage,
    EnrolRequest,
    ProblemAnswer,
    RenewReply,
    RenewRequest,
    Report,
    sealing_key_of,
)
from certfan.protocol.trust import HEADER
from certfan.protocol.wire import Message, decode

MAX_ENROLMENT = 16 << 10  # bytes; the request for a successor is no longer
PATIENCE = 30.0  # seconds that a body may take, and that anything but a blocking query may
_MOST_UNKNOWN = 100  # fields of newer agents that are told of; one is told once
_STATUS: tuple[tuple[type[CertfanError], int], ...] = (
    (NotAuthenticated, 401),
    (NotAllowed, 403),
    (EnrolmentRefused, 403),
    (UnknownName, 404),
    (MessageInvalid, 400),
    (RequestInvalid, 400),
)
_log = log.get("channel")
M = TypeVar("M", bound=Message)


class TooLarge(MessageInvalid):
    """A body beyond its cap: 413."""


def peer_certificate(transport: asyncio.BaseTransport | None) -> bytes | None:
    """Return the certificate (DER) that TLS has verified on a connection."""
    connection = transport.get_extra_info("ssl_object") if transport else None
    shown: bytes | None = connection.getpeercert(binary_form=True) if connection else None
    return shown


class EndSessions(Protocol):
    """How live connections of a consumer are closed."""

    def __call__(self, consumer: str, *, but: str = "") -> None:
        """Close them, those aside that show the identity with the serial `but`."""


class Trust(Protocol):
    """What agents are to believe."""

    def trust_number(self) -> int:
        """Return its number; 0: there is nothing."""

    def statement(self) -> bytes:
        """Return it, signed."""


class Routes:
    """Answers one request at a time; keeps nothing a connection."""

    def __init__(
        self,
        board: Board,
        waiting: Waiting,
        *,
        fleet: str,
        ca_pem: bytes,
        end: EndSessions,
        patience: float = PATIENCE,
    ) -> None:
        self._board = board
        self._waiting = waiting
        self._fleet = fleet
        self._ca_pem = ca_pem
        self._end = end
        self._patience = patience
        self._unknown: set[str] = set()
        self._trust: Trust | None = None
        self.pinned: dict[str, int] = {}  # by consumer: which statement of trust it has, as it last said

    def believe(self, ca_pem: bytes) -> None:
        """Show another CA to whoever enrols from now on."""
        self._ca_pem = ca_pem

    def offer(self, trust: Trust) -> None:
        """Offer a statement of trust to everybody else."""
        self._trust = trust

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer any request; an expected failure becomes a problem as JSON."""
        try:
            response = await self._route(request)
        except CertfanError as error:
            response = _problem(error)
            _log.warning(
                "request.refused",
                path=request.path,
                peer=request.remote,
                code=error.code,
                detail=error.text,
                hint=error.hint,
            )
            # Only of what is known here: no stranger fills the journal.
            if isinstance(error, NotAllowed | EnrolmentRefused) and error.subject:
                await self._board.refused(error)
        except TimeoutError:
            late = MessageInvalid(f"{request.path} took longer than {self._patience} s")
            response = _problem(late, 408)
        response.headers["Cache-Control"] = "no-store"
        if self._trust is not None and (number := self._trust.trust_number()):
            response.headers[HEADER] = str(number)
        return response

    async def _route(self, request: web.BaseRequest) -> web.Response:
        match request.method, request.path:
            case "GET", "/v1/ca":
                return web.Response(body=self._ca_pem, content_type="application/x-pem-file")
            case "POST", "/v1/enrol":
                return await self._enrol(request)
        # The guard: nothing below is reached without an identity that counts now.
        caller = await self._caller(request)
        consumer = caller.consumer
        self.pinned[consumer] = _pinned(request)
        match request.method, request.path.removeprefix("/").split("/"):
            case "GET", ["v1", "assignments"]:
                return await self._assignments(request, consumer)
            case "POST", ["v1", "reports"]:
                return await self._report(request, consumer)
            case "GET", ["v1", "bundles", certificate, generation]:
                return await self._bundle(consumer, certificate, generation)
            case "POST", ["v1", "requests", certificate, generation]:
                return await self._csr(request, consumer, certificate, generation)
            case "GET", ["v1", "trust"] if self._trust is not None:
                return _json(self._trust.statement())
            case "POST", ["v1", "identity"]:
                return await self._renew(request, caller)
        raise UnknownName(f"nothing at {request.method} {request.path[:200]}")

    async def _caller(self, request: web.BaseRequest) -> Caller:
        shown = peer_certificate(request.transport)
        caller = consumer_of(shown)
        async with asyncio.timeout(self._patience):
            identity = await self._board.identity(caller.serial)
            if identity is None and shown is not None and caller.fleet == self._fleet:
                identity = await self._board.adopt(shown)
            known = identity and identity.ended_at is None and identity.consumer == caller.consumer
            if identity is None or not known or caller.fleet != self._fleet:
                raise NotAuthenticated(
                    f"identity {caller.serial} of consumer {caller.consumer} has ended or is not known here",
                    subject=caller.consumer,
                    hint=f"run: certfan consumer add {caller.consumer}, then certfan agent enrol LINE",
                )
            if identity.used_at is None and await self._board.used(caller.consumer, caller.serial):
                self._end(caller.consumer, but=caller.serial)
        return caller

    async def _assignments(self, request: web.BaseRequest, consumer: str) -> web.Response:
        after, wait = request.query.get("after", ""), request.query.get("wait", "0")
        if (
            len(after) > 128
            or not (wait.isascii() and wait.isdigit())
            or len(wait) > 3
            or int(wait) > MAX_WAIT
        ):
            raise MessageInvalid(f"after or wait is malformed; wait is 0 to {MAX_WAIT} seconds")
        async with asyncio.timeout(self._patience):
            await (self._waiting.acknowledge(consumer, after) if after else self._waiting.look(consumer))
        return _json(await self._waiting.changed(consumer, after, int(wait)))

    async def _report(self, request: web.BaseRequest, consumer: str) -> web.Response:
        async with asyncio.timeout(self._patience):
            report = self._decode(Report, await _body(request, MAX_REPORT))
            await self._board.report(consumer, report)
        return web.Response(status=204)

    async def _bundle(self, consumer: str, certificate: str, generation: str) -> web.Response:
        if not CERTIFICATE_NAME.fullmatch(certificate) or not _is_number(generation):
            raise UnknownName("no such bundle")
        async with asyncio.timeout(self._patience):
            offered = (await self._board.assignments([consumer]))[consumer].assignments
            if (certificate, int(generation)) not in {(a.certificate, a.generation) for a in offered}:
                raise NotAllowed(
                    f"{certificate}@{generation} is not assigned to {consumer}",
                    subject=consumer,
                    hint=f"add {consumer} to the consumers of {certificate}, or on {consumer}"
                    " run: systemctl restart certfan-agent",
                )
            files = await self._board.bundle(consumer, certificate, int(generation))
        return _json(BundleMessage.of(files).encode())

    async def _csr(
        self, request: web.BaseRequest, consumer: str, certificate: str, generation: str
    ) -> web.Response:
        if not CERTIFICATE_NAME.fullmatch(certificate) or not _is_number(generation):
            raise UnknownName("no such request")
        async with asyncio.timeout(self._patience):
            sent = self._decode(CsrMessage, await _body(request, MAX_CSR))
            await self._board.take_csr(consumer, certificate, int(generation), sent.csr.encode())
        # What is signed is asked for no longer.
        self._waiting.announce(consumer)
        return web.Response(status=204)

    async def _renew(self, request: web.BaseRequest, caller: Caller) -> web.Response:
        async with asyncio.timeout(self._patience):
            asked = self._decode(RenewRequest, await _body(request, MAX_ENROLMENT))
            cert_pem = await self._board.renew(
                caller.consumer, caller.serial, asked.csr.encode(), trust=_pinned(request)
            )
        return _json(RenewReply(certificate=cert_pem.decode("ascii")).encode())

    async def _enrol(self, request: web.BaseRequest) -> web.Response:
        async with asyncio.timeout(self._patience):
            asked = self._decode(EnrolRequest, await _body(request, MAX_ENROLMENT))
            reply = await self._board.redeem(
                asked.token, asked.csr.encode(), sealing_key_of(asked.sealing_key)
            )
        # Its earlier identities have ended with this one.
        self._end(reply.consumer)
        _log.info("consumer.enrolled", consumer=reply.consumer, peer=request.remote)
        return _json(reply.encode())

    def _decode(self, kind: type[M], body: bytes) -> M:
        return decode(kind, body, self._tell_unknown)

    def _tell_unknown(self, field: str) -> None:
        """Say once that an agent of a newer release says what we do not understand."""
        if field not in self._unknown and len(self._unknown) < _MOST_UNKNOWN:
            self._unknown.add(field)
            _log.warning("field.unknown", field=field[:200], hint="bring the daemon to the agents' release")


def _pinned(request: web.BaseRequest) -> int:
    told = request.headers.get(HEADER, "")
    return int(told) if _is_number(told) else 0


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18 and not text.startswith("0")


async def _body(request: web.BaseRequest, limit: int) -> bytes:
    if (request.content_length or 0) > limit:
        raise TooLarge(f"body is larger than {limit} bytes")
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"body is larger than {limit} bytes")
    return bytes(body)


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def _problem(error: CertfanError, status: int = 0) -> web.Response:
    if isinstance(error, TooLarge):
        status = 413
    status = status or next((code for kind, code in _STATUS if isinstance(error, kind)), 503)
    answer = ProblemAnswer(code=error.code, detail=error.text[:4096], hint=error.hint[:4096])
    response = web.Response(status=status, body=answer.encode(), content_type="application/json")
    if status in {401, 408, 413}:
        response.force_close()
    return response
