"""What `certfan doctor` finds: grades, and what DNS, files and clocks say about whether a certificate can be had and served.

What must never come in: a look-up, a file. What was seen comes in as values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from certfan.core.model import Problem
from certfan.core.path import Failure


class Grade(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"  # it works, and will not for ever, or nobody can tell
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: where (`config`, `dns`, ...), of what, how it is; `hint` is what mends it."""

    grade: Grade
    area: str
    subject: str
    detail: str
    hint: str = ""


def of_problem(area: str, subject: str, problem: Problem | None, well: str) -> Finding:
    """Return a problem as a finding, or that all is well."""
    if problem is None:
        return Finding(Grade.OK, area, subject, well)
    return Finding(Grade.BAD, area, subject, problem.detail, problem.hint)


# CAA (RFC 8659, with the parameters of RFC 8657)


@dataclass(frozen=True, slots=True)
class CaaRecord:
    """One property of a CAA record set."""

    critical: bool
    tag: str
    value: str


@dataclass(frozen=True, slots=True)
class CaaSet:
    """The records that count for a name, and the name that they stand at; none, and "" when nobody has any."""

    at: str
    records: tuple[CaaRecord, ...]


_KNOWN_TAGS = frozenset(
    {"issue", "issuewild", "iodef", "issuemail", "issuevmc", "contactemail", "contactphone"}
)


def caa_finding(
    identifier: str,
    seen: CaaSet | Failure,
    *,
    authority: str,
    identities: Collection[str],
    account: str | None,
) -> Finding:
    """Return whether the CAA records of a name let an authority issue for it over http-01.

    `identities` are the domains by which the authority knows itself (caaIdentities); empty: it says none.
    """
    if isinstance(seen, Failure):
        detail = (
            f"{identifier}: its CAA records cannot be looked up ({seen.value}), so no authority may issue"
        )
        return Finding(Grade.BAD, "caa", identifier, detail, f"run: dig {_host(identifier)} CAA")
    if not seen.records:
        return Finding(
            Grade.OK, "caa", identifier, f"{identifier} has no CAA records: any authority may issue"
        )
    if strange := [r.tag for r in seen.records if r.critical and r.tag.lower() not in _KNOWN_TAGS]:
        detail = f"{seen.at} has a critical CAA property {strange[0]!r} that forbids every authority"
        return Finding(Grade.BAD, "caa", identifier, detail, f"remove it from the zone of {seen.at}")
    issuers = _issuers(identifier, seen.records)
    if issuers is None:
        return Finding(Grade.OK, "caa", identifier, f"the CAA records of {seen.at} leave the authority open")
    if not identities:
        detail = f"{seen.at} has CAA records, and {authority} does not say which name it goes by there"
        return Finding(Grade.WARN, "caa", identifier, detail, f"compare: dig {seen.at} CAA")
    refusals = [_why_not(value, identities, account) for value in issuers]
    if None in refusals:
        return Finding(Grade.OK, "caa", identifier, f"the CAA records of {seen.at} allow {authority}")
    why = next((one for one in refusals if one), "they name other authorities, or none")
    record = f'{seen.at}. CAA 0 issue "{min(identities)}"'
    return Finding(
        Grade.BAD,
        "caa",
        identifier,
        f"the CAA records of {seen.at} do not allow {authority}: {why}",
        f"add to the zone: {record}",
    )


def _issuers(identifier: str, records: Sequence[CaaRecord]) -> list[str] | None:
    """Return the values that say who may issue; None when none does."""
    by_tag = {tag: [r.value for r in records if r.tag.lower() == tag] for tag in ("issue", "issuewild")}
    if identifier.startswith("*.") and by_tag["issuewild"]:
        return by_tag["issuewild"]
    return by_tag["issue"] or None


def _why_not(value: str, identities: Collection[str], account: str | None) -> str | None:
    """Return why one `issue` value does not let us in; None: it does."""
    issuer, *rest = (part.strip() for part in value.split(";"))
    if issuer.lower() not in {one.lower() for one in identities}:
        return ""
    parameters = dict(_parameters(rest))
    methods = parameters.get("validationmethods")
    if methods is not None and "http-01" not in {method.strip() for method in methods.split(",")}:
        return f"validationmethods={methods} leaves out http-01"
    uri = parameters.get("accounturi")
    if uri is not None and account is not None and uri != account:
        return f"accounturi={uri} is not our account {account}"
    return None


def _parameters(parts: Sequence[str]) -> Iterator[tuple[str, str]]:
    for part in parts:
        key, equals, value = part.partition("=")
        if equals:
            yield key.strip().lower(), value.strip()


def _host(identifier: str) -> str:
    return identifier.removeprefix("*.")


# Files


@dataclass(frozen=True, slots=True)
class FileSeen:
    """What was seen of a file or folder: permission bits and owner."""

    path: str
    mode: int
    uid: int


def too_open(files: Collection[FileSeen], *, uid: int) -> Iterator[Finding]:
    """Yield every file that others than `uid` may read or write, or that belongs to someone else (root apart)."""
    for one in files:
        if one.mode & 0o077:
            closed = f"{one.mode & 0o700:03o}"
            detail = f"{one.path} has mode {one.mode:04o}: others may look into it"
            yield Finding(Grade.BAD, "permissions", one.path, detail, f"run: chmod {closed} {one.path}")
        elif one.uid not in {uid, 0}:
            detail = f"{one.path} belongs to uid {one.uid}, not to ours ({uid})"
            yield Finding(Grade.BAD, "permissions", one.path, detail, f"run: chown {uid} {one.path}")


# Agents


def version_finding(consumer: str, agents: str, daemons: str) -> Finding | None:
    """Return that an agent and the daemon are of different releases, if they are."""
    if agents == daemons:
        return None
    detail = f"the agent of {consumer} is {agents}, the daemon {daemons}"
    hint = "install the same release on both, the daemon first"
    return Finding(Grade.WARN, "agents", consumer, detail, hint)
