"""The whole error tree. Edges translate foreign exceptions into a leaf once; above them only these exist.

CertfanError
├── ConfigError                  config.*     a file the admin wrote is wrong
│   ├── ConfigInvalid            config.invalid
│   └── ConfigTooOpen            config.too_open
├── StateError                   state.*      the local state folder
│   ├── StateLocked              state.locked
│   ├── StateTooOpen             state.too_open
│   ├── SchemaTooNew             state.schema_too_new
│   ├── BackupInvalid            state.backup_invalid       cut short, altered, or none
│   └── StoreFailed              state.store_failed         the database cannot be read or written
├── PkiError                     pki.*        keys, chains, signatures
│   ├── PairMismatch             pki.pair_mismatch
│   ├── KeyLost                  pki.key_lost               the key that was made here for a certificate is here no more
│   ├── ChainInvalid             pki.chain_invalid
│   ├── RequestInvalid           pki.request_invalid        a certificate signing request
│   ├── SignatureInvalid         pki.signature_invalid
│   └── SealInvalid              pki.seal_invalid           sealed to another machine, for something else, or altered
├── AuthorityError               authority.*  the certificate authority
│   ├── AuthorityUnreachable     authority.unreachable
│   ├── OrderUnanswered          authority.unanswered       a newOrder was sent; whether it was heard is not known
│   ├── AuthorityRefused         authority.refused          carries the ACME problem
│   ├── AuthoritySlow            authority.slow             an order has waited for too long; it stays open
│   └── AuthorityMalformed       authority.malformed        it answered, but not in ACME
├── ChallengeError               challenge.*
│   ├── SelfCheckFailed          challenge.self_check_failed  we ourselves did not see our answer
│   └── ChallengeFailed          challenge.failed           the CA did not see the key authorization
├── ShareError                   share.*
│   ├── ShareUnavailable         share.unavailable          not mounted, wrong, read-only, hung
│   ├── ShareFull                share.full
│   ├── PermissionTooOpen        share.permission_too_open  a file would have been readable by others
│   ├── BundleInvalid            share.bundle_invalid       incomplete or not what its manifest says
│   ├── ShareTampered            share.tampered             a planted symlink, a foreign owner, a folder open to others
│   └── GenerationLive           share.generation_live      asked to retire what live/ points at
├── ChannelError                 channel.*
│   ├── DaemonUnreachable        channel.daemon_unreachable
│   ├── NotAuthenticated         channel.not_authenticated
│   ├── NotAllowed               channel.not_allowed        the peer is known, the thing is not its own
│   ├── EnrolmentRefused         channel.enrolment_refused
│   └── MessageInvalid           channel.message_invalid
├── ServiceError                 service.*    something on a consumer that loads pairs
│   ├── InstallFailed            service.install_failed
│   ├── ConfigTestFailed         service.config_test_failed
│   ├── PairRefused              service.pair_refused       the config test fails with the new pair only
│   ├── ReloadFailed             service.reload_failed
│   ├── ServiceDown              service.down
│   ├── HookFailed               service.hook_failed
│   └── ApplyUnavailable         service.apply_unavailable  the privileged half does not answer
├── ProbeError                   probe.*      an endpoint did not show a leaf
│   ├── ProbeRefused             probe.refused              no TLS there, or no STARTTLS offered
│   └── ProbeUnreachable         probe.unreachable
├── ControlError                 control.*    the daemon's control socket
│   ├── DaemonNotRunning         control.daemon_not_running
│   ├── DaemonNotInstalled       control.daemon_not_installed  this machine has the agent's part alone
│   ├── ControlDenied            control.denied             the socket is not for this user
│   ├── UnknownName              control.unknown_name
│   ├── StillWaiting             control.still_waiting      what was waited for has not happened yet; it goes on
│   └── ActionRefused            control.refused            it would do harm, or there is nothing to do it to
├── LogUndelivered               log.undelivered            the remote receiver of log lines takes none
├── TreeUnreadable               takeover.unreadable        another program's folder, or a file of it, is of no use
├── NotifyFailed                 notify.failed  nobody could be told of a problem that way
└── InternalError                internal     a bug: caught only at a step boundary
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import ClassVar


class Retry(StrEnum):
    """What waiting can do about an error."""

    NEVER = "never"  # only a change (of config, file, permission) can help
    LATER = "later"  # may go away by itself
    AT = "at"  # not before the instant in `not_before`


class CertfanError(Exception):
    """An expected failure: `subject` is the thing it is about, `hint` the next command or change to try.

    The text starts in lower case, holds the subject, ends without a period and never holds a secret.
    """

    code: ClassVar[str] = "error"
    retry: Retry = Retry.LATER
    exit_code: ClassVar[int] = 1

    def __init__(
        self, text: str, *, subject: str = "", hint: str = "", not_before: datetime | None = None
    ) -> None:
        super().__init__(text)
        self.text = text
        self.subject = subject
        self.hint = hint
        self.not_before = not_before
        if not_before is not None:
            self.retry = Retry.AT


class ConfigError(CertfanError):
    """A file the admin wrote is wrong."""

    code = "config"
    retry = Retry.NEVER
    exit_code = 78


class ConfigInvalid(ConfigError):
    """One or more problems, each with file and key path; `problems` holds them all."""

    code = "config.invalid"

    def __init__(self, problems: tuple[str, ...], *, subject: str = "", hint: str = "") -> None:
        super().__init__("; ".join(problems), subject=subject, hint=hint or "run: certfan check")
        self.problems = problems


class ConfigTooOpen(ConfigError):
    """Others may write a config, or read a secret."""

    code = "config.too_open"
    exit_code = 77


class StateError(CertfanError):
    """The local state folder cannot be used."""

    code = "state"


class StateLocked(StateError):
    """Another process holds the state folder."""

    code = "state.locked"
    exit_code = 75


class StateTooOpen(StateError):
    """Others may read the state folder or a file in it."""

    code = "state.too_open"
    retry = Retry.NEVER
    exit_code = 77


class SchemaTooNew(StateError):
    """A newer release has written this database."""

    code = "state.schema_too_new"
    retry = Retry.NEVER
    exit_code = 65


class BackupInvalid(StateError):
    """An archive is no backup of ours, or not all of one."""

    code = "state.backup_invalid"
    retry = Retry.NEVER


class StoreFailed(StateError):
    """The database cannot be read or written: disk full, damaged, held by someone else."""

    code = "state.store_failed"


class PkiError(CertfanError):
    """A key, chain or signature is not what it must be."""

    code = "pki"
    retry = Retry.NEVER


class PairMismatch(PkiError):
    """A private key does not belong to a certificate."""

    code = "pki.pair_mismatch"


class KeyLost(PkiError):
    """A certificate is for a key that this machine has made, and has not got any more."""

    code = "pki.key_lost"


class ChainInvalid(PkiError):
    """A chain does not verify, is truncated, or is for other names."""

    code = "pki.chain_invalid"


class RequestInvalid(PkiError):
    """A certificate signing request does not parse, does not verify, or has the wrong kind of key."""

    code = "pki.request_invalid"


class SignatureInvalid(PkiError):
    """A manifest's signature does not verify."""

    code = "pki.signature_invalid"


class SealInvalid(PkiError):
    """A sealed private key does not open: it is another machine's, for something else, or altered."""

    code = "pki.seal_invalid"


class AuthorityError(CertfanError):
    """A certificate authority did not do what was asked."""

    code = "authority"


class AuthorityUnreachable(AuthorityError):
    """No HTTP answer: DNS, TCP, TLS or a timeout. `was_sent`: a signed request went out, and may have been heard."""

    code = "authority.unreachable"

    def __init__(self, text: str, *, was_sent: bool = False, subject: str = "", hint: str = "") -> None:
        super().__init__(text, subject=subject, hint=hint)
        self.was_sent = was_sent


class OrderUnanswered(AuthorityError):
    """A newOrder went out and nothing came back; the authority may have counted it, so it is a try like any other."""

    code = "authority.unanswered"


class AuthorityRefused(AuthorityError):
    """An ACME problem document (RFC 8555 section 6.7, RFC 9457); `identifiers` are those that it blames by name."""

    code = "authority.refused"

    def __init__(
        self,
        text: str,
        *,
        type: str = "",  # noqa: A002 - the RFC's own word
        status: int = 0,
        subject: str = "",
        hint: str = "",
        not_before: datetime | None = None,
        identifiers: tuple[str, ...] = (),
    ) -> None:
        super().__init__(text, subject=subject, hint=hint, not_before=not_before)
        self.type = type
        self.status = status
        self.identifiers = identifiers


class AuthoritySlow(AuthorityError):
    """An order has waited for its authority for too long; it stays open and is looked at again later."""

    code = "authority.slow"


class AuthorityMalformed(AuthorityError):
    """The authority answered, but not in ACME: HTML, a foreign URL, too long, a missing field.

    `status` is that of an HTTP error without a problem document, else 0.
    """

    code = "authority.malformed"

    def __init__(
        self,
        text: str,
        *,
        status: int = 0,
        subject: str = "",
        hint: str = "",
        not_before: datetime | None = None,
    ) -> None:
        super().__init__(text, subject=subject, hint=hint, not_before=not_before)
        self.status = status


class ChallengeError(CertfanError):
    """A challenge could not be completed."""

    code = "challenge"


class SelfCheckFailed(ChallengeError):
    """We asked for a challenge's answer as the CA would, and a hop on the way failed; nothing was spent."""

    code = "challenge.self_check_failed"


class ChallengeFailed(ChallengeError):
    """The authority did not see our key authorization."""

    code = "challenge.failed"


class ShareError(CertfanError):
    """The share cannot be used as asked."""

    code = "share"


class ShareUnavailable(ShareError):
    """Not mounted, the wrong share, read-only, disconnected or hung."""

    code = "share.unavailable"


class ShareFull(ShareError):
    """No space or quota is left on the share."""

    code = "share.full"


class PermissionTooOpen(ShareError):
    """A file would have been, or is, readable by others."""

    code = "share.permission_too_open"
    retry = Retry.NEVER


class BundleInvalid(ShareError):
    """A bundle is incomplete or not what its manifest says."""

    code = "share.bundle_invalid"


class ShareTampered(ShareError):
    """Something on the share is not as certfan made it: a symlink in the way, a foreign owner; nothing follows it."""

    code = "share.tampered"


class GenerationLive(ShareError):
    """Retiring was asked for the generation that `live/` points at."""

    code = "share.generation_live"
    retry = Retry.NEVER


class ChannelError(CertfanError):
    """The channel between daemon and agent."""

    code = "channel"


class DaemonUnreachable(ChannelError):
    """The agent cannot reach its daemon."""

    code = "channel.daemon_unreachable"


class NotAuthenticated(ChannelError):
    """The peer showed no valid identity."""

    code = "channel.not_authenticated"


class NotAllowed(ChannelError):
    """The peer is known, but the thing is not its own."""

    code = "channel.not_allowed"
    exit_code = 77


class EnrolmentRefused(ChannelError):
    """The enrolment line is wrong, expired or used."""

    code = "channel.enrolment_refused"
    retry = Retry.NEVER


class MessageInvalid(ChannelError):
    """A message from the peer does not parse."""

    code = "channel.message_invalid"


class ServiceError(CertfanError):
    """Something on a consumer that loads pairs; `output` holds the last lines of its command."""

    code = "service"

    def __init__(self, text: str, *, subject: str = "", hint: str = "", output: str = "") -> None:
        super().__init__(text, subject=subject, hint=hint)
        self.output = output


class InstallFailed(ServiceError):
    """A pair could not be written to its local place."""

    code = "service.install_failed"


class ConfigTestFailed(ServiceError):
    """The service's own config test refuses."""

    code = "service.config_test_failed"


class PairRefused(ServiceError):
    """The service's own config test fails with the new pair, and passes with the former one."""

    code = "service.pair_refused"


class ReloadFailed(ServiceError):
    """The reload command failed."""

    code = "service.reload_failed"


class ServiceDown(ServiceError):
    """The service does not run."""

    code = "service.down"


class HookFailed(ServiceError):
    """A hook of the admin failed or took too long."""

    code = "service.hook_failed"


class ApplyUnavailable(ServiceError):
    """The privileged half does not answer."""

    code = "service.apply_unavailable"


class ProbeError(CertfanError):
    """An endpoint did not show a leaf."""

    code = "probe"


class ProbeRefused(ProbeError):
    """Something answered, but no TLS came of it."""

    code = "probe.refused"


class ProbeUnreachable(ProbeError):
    """Nothing answered in time."""

    code = "probe.unreachable"


class ControlError(CertfanError):
    """The daemon's control socket."""

    code = "control"


class DaemonNotRunning(ControlError):
    """Nobody listens on the control socket."""

    code = "control.daemon_not_running"
    exit_code = 75


class DaemonNotInstalled(ControlError):
    """A command needs what only the daemon's part of the installation brings."""

    code = "control.daemon_not_installed"
    retry = Retry.NEVER


class ControlDenied(ControlError):
    """The control socket is not for this user."""

    code = "control.denied"
    retry = Retry.NEVER
    exit_code = 77


class UnknownName(ControlError):
    """No certificate, consumer or authority of that name."""

    code = "control.unknown_name"


class StillWaiting(ControlError):
    """What a command waited for has not happened in time; it goes on without the command."""

    code = "control.still_waiting"
    exit_code = 75


class ActionRefused(ControlError):
    """What was asked for would do harm, or there is nothing to do it to; the text says which."""

    code = "control.refused"
    retry = Retry.NEVER


class LogUndelivered(CertfanError):
    """No log line reaches the remote receiver; the journal has them all the same."""

    code = "log.undelivered"


class TreeUnreadable(CertfanError):
    """Another program's folder, or a file of it, cannot be used; its text never quotes what it read."""

    code = "takeover.unreadable"
    retry = Retry.NEVER


class NotifyFailed(CertfanError):
    """Nobody could be told of a problem that way: a program of the admin failed, or a mail server."""

    code = "notify.failed"


class InternalError(CertfanError):
    """A bug, turned into a fact at a step boundary; the traceback is in the journal."""

    code = "internal"
