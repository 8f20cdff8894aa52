"""What a doctor makes of what was seen: CAA records, files, versions. No loop, no DNS."""

from __future__ import annotations

import pytest

from certfan.core.findings import CaaRecord, CaaSet, FileSeen, Grade, caa_finding, too_open, version_finding
from certfan.core.path import Failure

LE = frozenset({"letsencrypt.org"})
ACCOUNT = "https://ca.int/account/1"


def records(*told: str, critical: bool = False) -> CaaSet:
    pairs = (one.partition(" ") for one in told)
    return CaaSet("example.org", tuple(CaaRecord(critical, tag, value) for tag, _, value in pairs))


def judged(
    seen: CaaSet | Failure, identifier: str = "www.example.org", identities: frozenset[str] = LE
) -> tuple[Grade, str]:
    found = caa_finding(identifier, seen, authority="le", identities=identities, account=ACCOUNT)
    return found.grade, found.detail


@pytest.mark.parametrize(
    "seen",
    [
        CaaSet("", ()),
        records("issue letsencrypt.org"),
        records("issue other.example", "issue LetsEncrypt.org"),
        records("issue letsencrypt.org; validationmethods=dns-01,http-01; accounturi=" + ACCOUNT),
        records("iodef mailto:me@example.org"),
        records("issuewild other.example"),
    ],
)
def test_records_that_let_the_authority_in_are_well(seen: CaaSet) -> None:
    """None at all, ours among others, in any case of letters, or none that says who may issue."""
    assert Grade.OK == judged(seen)[0]


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (records("issue other.example"), "they name other authorities, or none"),
        (records("issue ;"), "they name other authorities, or none"),
        (
            records("issue letsencrypt.org; validationmethods=dns-01"),
            "validationmethods=dns-01 leaves out http-01",
        ),
        (
            records("issue letsencrypt.org; accounturi=https://ca.int/account/2"),
            "accounturi=https://ca.int/account/2 is not our account",
        ),
        (
            records("tbs unknown", critical=True),
            "has a critical CAA property 'tbs' that forbids every authority",
        ),
        (Failure.SERVFAIL, "cannot be looked up (servfail), so no authority may issue"),
    ],
)
def test_records_that_keep_the_authority_out_say_why(seen: CaaSet | Failure, why: str) -> None:
    """As RFC 8659 and 8657 have it, before an order is spent on it."""
    grade, detail = judged(seen)

    assert Grade.BAD == grade
    assert why in detail


def test_a_wildcard_goes_by_issuewild() -> None:
    """Only where there is one; the name itself goes by issue."""
    both = records("issue letsencrypt.org", "issuewild other.example")

    assert [Grade.BAD, Grade.OK] == [judged(both, name)[0] for name in ("*.example.org", "example.org")]
    assert Grade.OK == judged(records("issue letsencrypt.org"), "*.example.org")[0]


def test_an_authority_that_does_not_say_its_name_is_not_judged() -> None:
    """A private one may have any; an admin compares."""
    assert Grade.WARN == judged(records("issue other.example"), identities=frozenset())[0]


def test_a_record_that_is_missing_is_spelled_out() -> None:
    """Ready for the zone file."""
    found = caa_finding(
        "www.example.org", records("issue x.example"), authority="le", identities=LE, account=None
    )

    assert 'add to the zone: example.org. CAA 0 issue "letsencrypt.org"' == found.hint


def test_files_of_the_state_are_closed_and_ours() -> None:
    """Root may own one; anybody else, and any bit for others, is told with the command."""
    files = [
        FileSeen("/s/closed", 0o600, 7),
        FileSeen("/s/roots", 0o600, 0),
        FileSeen("/s/open", 0o640, 7),
        FileSeen("/s/folder", 0o701, 7),
        FileSeen("/s/foreign", 0o600, 8),
    ]

    assert ["run: chmod 600 /s/open", "run: chmod 700 /s/folder", "run: chown 7 /s/foreign"] == [
        one.hint for one in too_open(files, uid=7)
    ]


def test_releases_that_differ_are_worth_a_word() -> None:
    """The same ones are not."""
    found = version_finding("web1", "0.1.0", "0.10.0")

    assert found is not None
    assert (Grade.WARN, "web1") == (found.grade, found.subject)
    assert version_finding("web1", "0.1.0", "0.1.0") is None
