"""What this agent asks the daemon, and what it tells it. How it is dialled is caller.py's."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Self, TypeVar

from certfan import log, pki
from certfan.agent.identity import IdentityFolder, Trust
from certfan.agent.link.caller import ANSWER, Caller
from certfan.errors import MessageInvalid, NotAuthenticated
from certfan.protocol.identity import client_context, consumer_of
from certfan.protocol.messages import (
    MAX_REPORT,
    Assignments,
    BundleMessage,
    CsrMessage,
    RenewReply,
    RenewRequest,
    Report,
)
from certfan.protocol.trust import HEADER
from certfan.protocol.wire import Message, decode

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
            DaemonUnreachable, NotAuthenticated, MessageInvalid: see Caller.call.
        """
        query = {"after": after, "wait": str(wait)}
        body = await self._caller.call("GET", "/v1/assignments", params=query, patience=wait + ANSWER)
        return self._decode(Assignments, body)

    async def report(self, report: Report) -> None:
        """Tell the daemon what this agent knows. Repeatable; cancelled, it may have been heard.

        Raises:
            DaemonUnreachable, NotAuthenticated, MessageInvalid: see Caller.call.
        """
        if len(report.encode()) > MAX_REPORT:
            raise MessageInvalid(f"report is larger than {MAX_REPORT} bytes")
        await self._caller.call("POST", "/v1/reports", message=report)

    async def bundle(self, certificate: str, generation: int) -> dict[str, bytes]:
        """Return the files of an assigned generation as they came; `open_bundle` says whether they are any good.

        Raises:
            NotAllowed: it is not assigned to this consumer (any more).
            DaemonUnreachable, NotAuthenticated, MessageInvalid: see Caller.call.
        """
        body = await self._caller.call("GET", f"/v1/bundles/{certificate}/{generation}")
        return self._decode(BundleMessage, body).contents()

    async def csr(self, certificate: str, generation: int, csr_pem: str) -> None:
        """Hand in what was asked to be signed for a generation to be. Repeatable; cancelled, it may have been taken.

        Raises:
            NotAllowed: it is not wanted (any more).
            DaemonUnreachable, NotAuthenticated, MessageInvalid: see Caller.call.
        """
        await self._caller.call(
            "POST", f"/v1/requests/{certificate}/{generation}", message=CsrMessage(csr=csr_pem)
        )

    async def renew(self, csr_pem: str) -> bytes:
        """Return the certificate (PEM) of our identity's successor, for a new key. Repeatable with that key.

        The next session shows whatever identity lies in the folder then.

        Raises:
            NotAllowed: the daemon does not renew it now.
            DaemonUnreachable, NotAuthenticated, MessageInvalid: see Caller.call.
        """
        body = await self._caller.call("POST", "/v1/identity", message=RenewRequest(csr=csr_pem))
        return self._decode(RenewReply, body).certificate.encode()

    async def trust(self) -> bytes:
        """Return what the daemon says is to be believed, unverified.

        Raises:
            DaemonUnreachable, NotAuthenticated, MessageInvalid: see Caller.call.
        """
        return await self._caller.call("GET", "/v1/trust")

    def _decode(self, kind: type[M], body: bytes) -> M:
        return decode(kind, body, self._tell_unknown)

    def _tell_unknown(self, field: str) -> None:
        """Say once that a daemon of a newer release says what we do not understand."""
        if field not in self._unknown:
            self._unknown.add(field)
            self._log.warning("field.unknown", field=field, hint="bring the agent to the daemon's release")


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
