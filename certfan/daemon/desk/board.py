"""What stands behind the channel's routes: assignments out of the store, reports into it and onto the journal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

from certfan import pki
from certfan.core.custody import fits
from certfan.core.model import Custody, Deployment, DeploymentState, Desired, Health, Problem, Proof
from certfan.core.resets import booted_at
from certfan.daemon.desk.doubles import Doubles
from certfan.daemon.desk.enroller import Enroller
from certfan.daemon.desk.plausible import Plausible
from certfan.daemon.issuing.signing import CsrDesk
from certfan.daemon.journal import Journal
from certfan.daemon.publishing.bundles import Bundles
from certfan.daemon.store import IdentityFact, Lists, Standing, Store, StoreFacts
from certfan.errors import CertfanError, NotAllowed
from certfan.protocol.identity import consumer_of
from certfan.protocol.messages import (
    AssignmentMessage,
    Assignments,
    EnrolReply,
    Report,
    RequestMessage,
    sealing_key_of,
)

# How far a deployment has come; a report tells every state that it went through.
_PROGRESS = {
    DeploymentState.OFFERED: 0,
    DeploymentState.INSTALLED: 1,
    DeploymentState.RELOADED: 2,
    DeploymentState.FAILED: 3,
    DeploymentState.PROVEN: 4,
}


class Noticeboard:
    """The daemon's side of daemon.channel.Board."""

    def __init__(
        self,
        *,
        store: Store,
        bundles: Bundles,
        enroller: Enroller,
        journal: Journal,
        desired: Callable[[], Desired],
        ring: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._bundles = bundles
        self._enroller = enroller
        self._journal = journal
        self._desired = desired
        self._ring = ring
        self._clock = clock
        self._plausible = Plausible(store, journal)
        self._csrs = CsrDesk(store, journal, desired, ring, clock)
        self.doubles = Doubles(clock)
        self._boots: dict[str, str] = {}  # the boot of each that is noted, so that most reports need no look

    async def identity(self, serial: str) -> IdentityFact | Standing | None:
        """Return the identity of a serial, ended or not."""
        # Whether an ended one is known decides whether a certificate may be one that a restore has lost.
        return await self._store.standing(serial) or await self._store.identity(serial)

    async def adopt(self, cert_der: bytes) -> IdentityFact | None:
        """Take in an identity that was issued after the database's backup, of a consumer that is still wanted."""
        if consumer_of(cert_der).consumer not in self._desired().consumers:
            return None
        if adopted := await self._enroller.adopt(cert_der):
            await self._journal.warn(
                "identity.adopted",
                adopted.consumer,
                serial=adopted.serial,
                detail="it was issued after the backup of this database",
                hint=f"if you revoked it since, run: certfan consumer revoke {adopted.consumer}",
            )
        return adopted

    async def used(self, consumer: str, serial: str) -> bool:
        """Note an identity's first use, which ends the consumer's others."""
        ended = await self._store.use_identity(serial, self._clock())
        if ended:
            await self._journal.note("identity.replaced", consumer, serial=serial, ended=list(ended))
        return bool(ended)

    async def renew(self, consumer: str, serial: str, csr: bytes, *, trust: int = 0) -> bytes:
        """Issue the successor of an identity, unless two machines show it: that would lock one of them out."""
        if self.doubles.is_doubled(consumer):
            problem = self.doubles.problems[consumer]
            raise NotAllowed(problem.detail, subject=consumer, hint=problem.hint)
        cert_pem = await self._enroller.renew(consumer, serial, csr, trust=trust)
        await self._journal.note("identity.renewed", consumer, serial=pki.read_leaf(cert_pem).serial)
        return cert_pem

    async def assignments(self, consumers: Collection[str]) -> Mapping[str, Assignments]:
        """Return all that each of the consumers is to have now; however many they are, in one read."""
        lists = await self._store.lists(consumers)
        facts = await self._store.facts()
        said: dict[tuple[str, int], AssignmentMessage] = {}  # one certificate goes to many
        for told in lists.offered.values():
            for offer in told:
                if offer not in said:
                    said[offer] = self._assignment(lists, *offer)
        found = {}
        for consumer, number in lists.revisions.items():
            own = [said[offer] for offer in lists.offered.get(consumer, ())]
            listed, mark = self._own(consumer, own, facts)
            found[consumer] = Assignments(
                revision=f"{lists.epoch}.{number}{mark}", consumer=consumer, assignments=listed
            )
        return found

    def _own(
        self, consumer: str, said: list[AssignmentMessage], facts: StoreFacts
    ) -> tuple[tuple[AssignmentMessage, ...], str]:
        """Name the bundle of each sealed key and what is to be signed, and mark the revision: it is another list."""
        told, marks = [], []
        for one in said:
            own: dict[str, Any] = {}
            bundle = one.generation and self._bundles.asked(
                one.certificate, consumer, one.generation, facts=facts
            )
            if bundle:
                own["bundle"] = bundle
            request = self._request(consumer, one.certificate, facts)
            if request is not None:
                own["request"] = request
            told.append(one.model_copy(update=own) if own else one)
            marks.append(f"{bundle or ''}{request.model_dump_json() if request else ''}")
        mark = "".join(marks)
        return tuple(told), f".{hashlib.sha256(mark.encode()).hexdigest()[:16]}" if mark else ""

    def _request(self, consumer: str, certificate: str, facts: StoreFacts) -> RequestMessage | None:
        """Return what a consumer is to sign, as long as it has not."""
        asked, wanted = facts.signing_requests.get(certificate), self._desired().certificates.get(certificate)
        if asked is None or wanted is None or asked.csr is not None or wanted.holder != consumer:
            return None
        if not fits(asked, wanted, facts.generations.get(certificate, ())):
            return None
        names = tuple(sorted(map(str, asked.identifiers)))
        return RequestMessage(
            generation=asked.generation, identifiers=names, key_type=asked.key_type, key=asked.key
        )

    def _assignment(self, lists: Lists, certificate: str, number: int) -> AssignmentMessage:
        for one in lists.generations.get(certificate, ()):
            if one.number == number:
                names = sorted(str(i) for i in one.identifiers)
                return AssignmentMessage(
                    certificate=certificate,
                    generation=number,
                    identifiers=tuple(names),
                    fingerprint=one.fingerprint,
                )
        wanted = self._desired().certificates.get(certificate)
        names = [str(i) for i in wanted.identifiers] if wanted else []
        return AssignmentMessage(
            certificate=certificate, generation=number, identifiers=tuple(names), fingerprint=""
        )

    async def acknowledged(self, revisions: Mapping[str, str]) -> None:
        """Note that consumers have their assignments."""
        told = {consumer: {"revision": revision} for consumer, revision in revisions.items()}
        await self._journal.note_many("assignments.acknowledged", told)

    async def bundle(self, consumer: str, certificate: str, generation: int) -> Mapping[str, bytes]:
        """Return the files of a bundle; that it is assigned was checked by the routes."""
        sealing_key = (await self._store.facts()).sealing_keys.get(consumer)
        return self._bundles.pack(consumer, certificate, generation, sealing_key=sealing_key)

    async def take_csr(self, consumer: str, certificate: str, generation: int, csr: bytes) -> None:
        """Keep what a consumer has signed with a key of its own."""
        await self._csrs.take(consumer, certificate, generation, csr)

    async def redeem(self, token: str, csr: bytes, sealing_key: bytes | None) -> EnrolReply:
        """Turn a one-time token into an identity."""
        reply = await self._enroller.redeem(token, csr, sealing_key=sealing_key)
        await self._journal.note("consumer.enrolled", reply.consumer)
        if sealing_key is not None:
            await self._may_seal(reply.consumer)
        return reply

    async def _may_seal(self, consumer: str) -> None:
        """Have everything sealed to a consumer's new key at once, whatever held it up before."""
        for name, certificate in self._desired().certificates.items():
            if certificate.custody is Custody.SEALED and consumer in certificate.consumers:
                await self._store.clear_attempt(f"{name}/{consumer}")
        self._ring()

    async def refused(self, error: CertfanError) -> None:
        """Note that a consumer, or one of its tokens, asked for what it may not have."""
        await self._journal.warn(
            "request.refused", error.subject, code=error.code, detail=error.text, hint=error.hint
        )

    async def report(self, consumer: str, report: Report) -> None:
        """Take in what a consumer says of certificates that are its own; an older report changes nothing."""
        if self.doubles.heard(consumer, report.boot_id):
            problem = self.doubles.problems[consumer]
            await self._journal.warn("consumer.doubled", consumer, detail=problem.detail, hint=problem.hint)
        facts = await self._store.facts()
        if consumer not in facts.sealing_keys and (sealing_key := sealing_key_of(report.sealing_key)):
            await self._store.tell_sealing_key(consumer, sealing_key)
            await self._may_seal(consumer)
        own = {certificate for certificate, name in facts.offered if name == consumer}
        said = [d.value(consumer) for d in report.deployments if d.certificate in own]
        deployments = await self._plausible.among(said, facts)
        proofs: dict[str, list[Proof]] = {name: [] for name in own}
        for message in report.proofs:
            if message.certificate in own:
                proofs[message.certificate].append(message.value())
        taken = await self._store.record_report(
            consumer,
            report.boot_id,
            report.sequence,
            _furthest(deployments),
            proofs,
            self._clock(),
            report.version,
            report.install,
        )
        if taken:
            await self._note_boot(consumer, report)
            await self._tell_deployments(facts, consumer, deployments)
            for certificate, seen in proofs.items():
                await self._tell_proofs(facts, consumer, certificate, seen)
            self._ring()

    async def _note_boot(self, consumer: str, report: Report) -> None:
        """Note a boot when it is first heard of, and tell of one that nobody shut the machine down for."""
        if report.booted_at is None or self._boots.get(consumer) == report.boot_id:
            return
        self._boots[consumer] = report.boot_id
        at = booted_at(self._clock(), report.sent_at, report.booted_at)
        if await self._store.note_boot(consumer, report.boot_id, at, report.reset) and report.reset:
            await self._journal.warn("machine.reset", consumer, booted_at=at.isoformat())

    async def _tell_deployments(self, facts: StoreFacts, consumer: str, said: Iterable[Deployment]) -> None:
        for one in sorted(said, key=lambda d: (d.at, _PROGRESS[d.state])):
            known = facts.deployments.get((one.certificate, consumer), ())
            before = next((d for d in known if d.generation == one.generation), None)
            # By time first: a report also tells of earlier tries, and the failure of one is no news after the next.
            if before is not None and (one.at, _PROGRESS[one.state]) <= (before.at, _PROGRESS[before.state]):
                continue
            if before is not None and before.state is one.state and _same(before.problem, one.problem):
                continue  # tried again with the same result
            name, subject = f"deployment.{one.state}", f"{one.certificate}@{one.generation}"
            if one.problem is None:
                await self._journal.note(name, subject, at=one.at, consumer=consumer)
                continue
            await self._journal.warn(
                name,
                subject,
                consumer=consumer,
                code=one.problem.code,
                detail=one.problem.detail,
                hint=one.problem.hint,
                output=one.problem.output,
            )

    async def _tell_proofs(
        self, facts: StoreFacts, consumer: str, certificate: str, seen: Iterable[Proof]
    ) -> None:
        ours = {g.fingerprint: g for g in facts.generations.get(certificate, ())}
        before = {p.endpoint: p for p in facts.proofs.get((certificate, consumer), ())}
        for proof in seen:
            old = before.get(proof.endpoint)
            if old is not None and (old.health, old.fingerprint) == (proof.health, proof.fingerprint):
                continue
            where = str(proof.endpoint)
            if generation := ours.get(proof.fingerprint):
                await self._journal.note(
                    "endpoint.proven",
                    str(generation),
                    at=proof.at,
                    consumer=consumer,
                    endpoint=where,
                    serial=generation.serial,
                )
            elif proof.health is not Health.SERVED:
                await self._journal.warn(
                    "endpoint.lost", certificate, consumer=consumer, endpoint=where, detail=proof.detail
                )


def _same(one: Problem | None, other: Problem | None) -> bool:
    """Whether two problems tell the same, whenever they happened."""
    return (one and (one.code, one.detail, one.output)) == (
        other and (other.code, other.detail, other.output)
    )


def _furthest(said: Iterable[Deployment]) -> list[Deployment]:
    """Keep one deployment a generation: the newest word, the furthest state among equals."""
    found: dict[tuple[str, int], Deployment] = {}
    for one in said:
        key = (one.certificate, one.generation)
        if key not in found or (found[key].at, _PROGRESS[found[key].state]) <= (one.at, _PROGRESS[one.state]):
            found[key] = one
    return list(found.values())
