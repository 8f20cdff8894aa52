"""What is said on the channel: strict messages, and their way to and from the nouns of `core.model`.

Sizes are capped, instants carry an offset, values are exact; wire.py says how they are read. Private keys travel in `BundleMessage` only, tokens in `EnrolRequest`
only; neither shows them in its repr.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Annotated

from pydantic import (
    AfterValidator,
    AwareDatetime,
    Field,
    StringConstraints,
)

from certfan.core import model
from certfan.core.model import CERTIFICATE_NAME, CONSUMER_NAME, DeploymentState, Health
from certfan.errors import MessageInvalid
from certfan.protocol.wire import Message

MAX_REPORT = 1 << 20  # bytes
MAX_ANSWER = 8 << 20  # bytes; what the agent reads of any answer

Instant = Annotated[AwareDatetime, AfterValidator(lambda at: at.astimezone(UTC))]
Fingerprint = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{64})?$")]
Short = Annotated[str, StringConstraints(max_length=256)]
Text = Annotated[str, StringConstraints(max_length=4096)]
# The public X25519 key that private keys are sealed to: 32 bytes, base64; "": none, as before 0.2.
SealingKey = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9+/]{43}=)?$")]
# Which sealing of a generation's key; "": it is not sealed, or nobody knows.
Bundle = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{8})?$")]
# A hundred names of 253 characters, and a key of 4096 bits.
MAX_CSR = 64 << 10  # bytes
Csr = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CSR - 1024)]
Long = Annotated[str, StringConstraints(max_length=16384)]


def _matching(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError("not a name")
    return text


# Python's own pattern, not a copy of it: pydantic's engine knows no look-ahead.
CertificateName = Annotated[str, AfterValidator(lambda text: _matching(CERTIFICATE_NAME, text))]
ConsumerName = Annotated[str, AfterValidator(lambda text: _matching(CONSUMER_NAME, text))]
Address = Annotated[str, AfterValidator(lambda text: str(ip_address(text)))]


class RequestMessage(Message):
    """What a consumer is to sign with a key of its own: `key` is the one (by SPKI hash) to use again, "" a new one."""

    generation: Annotated[int, Field(ge=1)]
    identifiers: Annotated[tuple[Short, ...], Field(min_length=1, max_length=1000)]
    key_type: Short
    key: Fingerprint = ""


class AssignmentMessage(Message):
    """One certificate that a consumer is to have; generation 0 and no fingerprint: none is issued yet."""

    certificate: CertificateName
    generation: Annotated[int, Field(ge=0)]
    identifiers: Annotated[tuple[Short, ...], Field(max_length=1000)]
    fingerprint: Fingerprint
    bundle: Bundle = ""
    request: RequestMessage | None = None


class Assignments(Message):
    """All that a consumer is to have; `revision` is opaque."""

    revision: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    consumer: ConsumerName
    assignments: tuple[AssignmentMessage, ...]


class ProblemMessage(Message):
    """See `model.Problem`."""

    code: Short
    detail: Text
    hint: Text = ""
    not_before: Instant | None = None
    output: Long = ""

    @classmethod
    def of(cls, problem: model.Problem) -> ProblemMessage:
        """Turn a problem into words; what is too long is cut."""
        return cls(
            code=problem.code[:256],
            detail=problem.detail[:4096],
            hint=problem.hint[:4096],
            not_before=problem.not_before,
            output=problem.output[-16384:],
        )

    def value(self) -> model.Problem:
        """Return what was said as a noun."""
        return model.Problem(self.code, self.detail, self.hint, self.not_before, self.output)


class ProofMessage(Message):
    """See `model.Proof`; `certificate` is what the endpoint is to show."""

    certificate: CertificateName
    service: Short
    protocol: Short
    address: Address
    port: Annotated[int, Field(ge=1, le=65535)]
    server_name: Short
    health: Health
    at: Instant
    fingerprint: Fingerprint = ""
    not_before: Instant | None = None
    not_after: Instant | None = None
    placeholder: bool = False
    detail: Text = ""

    @classmethod
    def of(cls, certificate: str, proof: model.Proof) -> ProofMessage:
        """Turn a proof into words."""
        endpoint = proof.endpoint
        return cls(
            certificate=certificate,
            service=endpoint.service,
            protocol=endpoint.protocol,
            address=endpoint.address,
            port=endpoint.port,
            server_name=endpoint.server_name,
            health=proof.health,
            at=proof.at,
            fingerprint=proof.fingerprint,
            not_before=proof.not_before,
            not_after=proof.not_after,
            placeholder=proof.placeholder,
            detail=proof.detail[:4096],
        )

    def value(self, heard_at: datetime | None = None) -> model.Proof:
        """Return what was said as a noun, with the listener's own time."""
        return model.Proof(
            model.Endpoint(self.service, self.protocol, self.address, self.port, self.server_name),
            self.health,
            self.at,
            fingerprint=self.fingerprint,
            not_after=self.not_after,
            not_before=self.not_before,
            placeholder=self.placeholder,
            detail=self.detail,
            heard_at=heard_at,
        )


class DeploymentMessage(Message):
    """See `model.Deployment`; whose it is comes from the sender's certificate, never from the message."""

    certificate: CertificateName
    generation: Annotated[int, Field(ge=1)]
    state: DeploymentState
    at: Instant
    problem: ProblemMessage | None = None

    @classmethod
    def of(cls, deployment: model.Deployment) -> DeploymentMessage:
        """Turn a deployment into words."""
        return cls(
            certificate=deployment.certificate,
            generation=deployment.generation,
            state=deployment.state,
            at=deployment.at,
            problem=ProblemMessage.of(deployment.problem) if deployment.problem else None,
        )

    def value(self, consumer: str) -> model.Deployment:
        """Return what `consumer` said as a noun."""
        problem = self.problem.value() if self.problem else None
        return model.Deployment(self.certificate, consumer, self.generation, self.state, self.at, problem)


class Report(Message):
    """All that an agent knows; of one boot, a higher sequence is the newer one."""

    boot_id: Short
    sequence: Annotated[int, Field(ge=0)]
    sent_at: Instant
    deployments: Annotated[tuple[DeploymentMessage, ...], Field(max_length=10000)]
    proofs: Annotated[tuple[ProofMessage, ...], Field(max_length=10000)]
    version: Short
    sealing_key: SealingKey = ""
    install: Short = ""  # copy or in-place; "": a release that makes no CSRs either
    booted_at: Instant | None = (
        None  # by the agent's clock, as `sent_at`; None: one of before 0.2 does not say
    )
    reset: bool | None = None  # the boot before had no end; None: nobody knows

    @classmethod
    def of(
        cls,
        deployments: Iterable[model.Deployment],
        proofs: Iterable[tuple[str, model.Proof]],
        *,
        boot_id: str,
        sequence: int,
        sent_at: datetime,
        version: str,
        sealing_key: str = "",
        install: str = "",
        booted_at: datetime | None = None,
        reset: bool | None = None,
    ) -> Report:
        """Turn facts into words; a proof comes with the certificate that its endpoint is to show."""
        return cls(
            boot_id=boot_id,
            sequence=sequence,
            sent_at=sent_at,
            sealing_key=sealing_key,
            install=install,
            deployments=tuple(DeploymentMessage.of(d) for d in deployments),
            proofs=tuple(ProofMessage.of(certificate, proof) for certificate, proof in proofs),
            version=version,
            booted_at=booted_at,
            reset=reset,
        )


def sealing_key_of(text: str) -> bytes | None:
    """Return the public key that a message tells, None for none."""
    return base64.b64decode(text) if text else None


class EnrolRequest(Message):
    """Sent once, over a connection whose server was verified by the pinned CA."""

    token: Annotated[str, StringConstraints(min_length=1, max_length=128), Field(repr=False)]
    csr: Text  # PEM
    sealing_key: SealingKey = ""


class EnrolReply(Message):
    """Who the agent is from now on."""

    certificate: Text  # PEM
    ca: Text  # PEM
    fleet: Short
    consumer: ConsumerName


class RenewRequest(Message):
    """Asks for a successor of the identity that sends it; the key of the request is a new one."""

    csr: Text  # PEM


class RenewReply(Message):
    """Who the agent is from the first use on; until then, its present identity counts too."""

    certificate: Text  # PEM


class CsrMessage(Message):
    """A signing request for one generation to be; its key never leaves the sender."""

    csr: Csr  # PEM


class BundleMessage(Message):
    """The files of a bundle, base64."""

    files: Annotated[dict[Short, str], Field(max_length=16, repr=False)]

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> BundleMessage:
        """Wrap files for the way."""
        return cls(files={name: base64.b64encode(data).decode() for name, data in files.items()})

    def contents(self) -> dict[str, bytes]:
        """Return the files; raises MessageInvalid."""
        try:
            return {name: base64.b64decode(text, validate=True) for name, text in self.files.items()}
        except (binascii.Error, ValueError) as error:
            raise MessageInvalid("BundleMessage is malformed: a file is not base64") from error


class ProblemAnswer(Message):
    """The body of every answer that is not a success."""

    code: Short
    detail: Text
    hint: Text = ""
