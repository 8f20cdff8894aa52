"""How a machine becomes a consumer: one pasted line, the CA compared before anything secret is sent."""

from __future__ import annotations

import base64
import hmac
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from certfan import pki
from certfan.agent.identity import IdentityFolder, SealingFolder, Trust, write_trust
from certfan.agent.link import Caller
from certfan.errors import EnrolmentRefused, MessageInvalid, NotAuthenticated, PkiError
from certfan.protocol.identity import (
    EnrolmentLine,
    ca_hash,
    client_context,
    consumer_of,
    parse_line,
)
from certfan.protocol.messages import EnrolReply, EnrolRequest
from certfan.protocol.wire import decode


async def enrol(
    line: str,
    identity_folder: Path,
    trust_folder: Path,
    now: datetime,
    *,
    uid: int = -1,
    gid: int = -1,
) -> Trust:
    """Redeem a line: make a key, have it certified, pin the CA, and write both folders.

    Safe to repeat with the same line while its token lives, also when an answer was lost: the key is on disk
    before anything is sent. Cancelled, either nothing counts yet or the same line finishes it.

    Raises:
        EnrolmentRefused: the line is malformed, names another CA, or its token is unknown, expired or used.
        DaemonUnreachable: nobody answers at the address of the line.
        NotAuthenticated: the second connection does not show what the first one promised.
        MessageInvalid: the daemon's answer does not fit our key, the CA or the fleet.
        StateTooOpen: others may read the identity folder.
    """
    parsed = parse_line(line)
    ca_pem = await _fetch_ca(parsed)
    with IdentityFolder(identity_folder, uid=uid, gid=gid).opened() as folder:
        key_pem, sealing = folder.key_for(parsed), SealingFolder(trust_folder)
        sealing_pem = sealing.key_for(parsed)
        sealing_key = base64.b64encode(pki.sealing_public(sealing_pem)).decode("ascii")
        reply = await _redeem(parsed, ca_pem, key_pem, sealing_key)
        trust = replace(_checked(reply, parsed, ca_pem, key_pem, now), sealing_key=sealing_key)
        folder.store(key_pem, reply.certificate.encode())
        sealing.store(sealing_pem)
    write_trust(trust_folder, trust)
    return trust


async def _fetch_ca(line: EnrolmentLine) -> bytes:
    """Ask anyone who answers for the CA: it proves itself by its hash, and nothing secret is said here."""
    caller = Caller(line.address, "", lambda: client_context(None))
    try:
        shown = await caller.call("GET", "/v1/ca")
    finally:
        await caller.close()
    try:
        # Counted before it is hashed: whoever appends a CA of his own gets nowhere.
        pki.fleet_of(shown)
        found = ca_hash(shown)
    except PkiError as error:
        raise EnrolmentRefused(f"{line.address} does not show a certfan CA", subject=line.address) from error
    if not hmac.compare_digest(found, line.ca_hash):
        raise EnrolmentRefused(
            f"{line.address} shows another CA than the line names; the token was not sent",
            subject=line.address,
            hint="run: certfan consumer add NAME again; if that does not help, somebody sits in between",
        )
    return shown


async def _redeem(line: EnrolmentLine, ca_pem: bytes, key_pem: bytes, sealing_key: str) -> EnrolReply:
    request = EnrolRequest(token=line.token, csr=pki.make_csr_pem(key_pem), sealing_key=sealing_key)
    caller = Caller(line.address, pki.daemon_name(pki.fleet_of(ca_pem)), lambda: client_context(ca_pem))
    try:
        return decode(EnrolReply, await caller.call("POST", "/v1/enrol", message=request))
    finally:
        await caller.close()


def _checked(reply: EnrolReply, line: EnrolmentLine, ca_pem: bytes, key_pem: bytes, now: datetime) -> Trust:
    fleet = pki.fleet_of(ca_pem)
    try:
        pair = pki.load_pair(key_pem, reply.certificate.encode())
        pki.verify_chain(pair.cert_pem, names=(), now=now, roots_pem=ca_pem)
        caller = consumer_of(pair.leaf.der)
        same = ca_hash(reply.ca.encode()) == line.ca_hash
    except (PkiError, NotAuthenticated) as error:
        raise MessageInvalid(f"answer to the enrolment is not usable: {error}") from error
    if not same or (caller.fleet, caller.consumer, reply.fleet) != (fleet, reply.consumer, fleet):
        raise MessageInvalid("answer to the enrolment contradicts itself or the line")
    return Trust(fleet, reply.consumer, line.address, ca_pem.decode("ascii"))
