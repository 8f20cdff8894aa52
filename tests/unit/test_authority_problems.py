"""Problem documents as text, hints and names: what an authority says is data, and all of it that helps is shown."""

from datetime import UTC, datetime
from typing import Any

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from certfan.core.model import Authority
from certfan.daemon.authority.answer import Answer
from certfan.daemon.authority.problems import PREFIX, fact, refusal
from certfan.errors import AuthorityRefused

SPEC = Authority("lab", "https://ca.example/dir")
UNPAUSE = "https://portal.letsencrypt.org/sfe/v1/unpause?jwt="
PAUSED = (
    "Your account is temporarily prevented from requesting certificates for a.example.org and possibly others. "
    "Please visit: "
)


def refused(kind: str, **fields: Any) -> AuthorityRefused:
    answer = Answer(
        429,
        CIMultiDictProxy(CIMultiDict()),
        b"",
        "https://ca.example/newOrder",
        datetime(2026, 11, 20, tzinfo=UTC),
    )
    return refusal(SPEC, "a new order", answer, {"type": PREFIX + kind, **fields})


@pytest.mark.parametrize("length", [300, 2000])
@pytest.mark.parametrize("end", ["", ".", "\nAfterwards try again."])
def test_a_paused_account_shows_its_whole_url(length: int, end: str) -> None:
    """The text is cut, the URL never: half of a signed token opens nothing."""
    url = UNPAUSE + "x" * (length - len(UNPAUSE))

    error = refused("rateLimited", detail=PAUSED + url + end)

    assert error.hint == f"open {url}"
    assert len(error.text) <= 500


@pytest.mark.parametrize(
    "detail",
    [
        PAUSED + UNPAUSE + "x" * 2000,
        PAUSED + UNPAUSE.replace("https", "http"),
        PAUSED + "javascript:alert(1)",
        PAUSED + "https://\x1b[2J",
        PAUSED,
        7,
    ],
)
def test_a_url_that_cannot_be_opened_as_it_is_is_not_shown(detail: object) -> None:
    """Too long, not https, no URL at all, or an escape sequence: the usual hint, and never a part of one."""
    assert refused("rateLimited", detail=detail).hint == (
        "waits by itself; fewer names, or another authority, help sooner"
    )


def test_a_limit_that_goes_away_by_itself_says_so_before_its_documentation() -> None:
    """Nothing has to be opened for it."""
    detail = "too many certificates already issued, retry after 2026-11-21: see https://ca.example/limits#set"

    assert refused("rateLimited", detail=detail).hint == (
        "waits by itself; fewer names, or another authority, help sooner; see https://ca.example/limits#set"
    )


def test_an_action_is_shown_by_instance_before_the_urls_of_its_text() -> None:
    """RFC 8555 section 7.3.3: the instance is the URL to visit."""
    detail = "agree at https://ca.example/other"

    assert refused("userActionRequired", detail=detail).hint == "open https://ca.example/other"
    assert refused("userActionRequired", detail=detail, instance="https://ca.example/terms").hint == (
        "open https://ca.example/terms"
    )


@pytest.mark.parametrize("kind", ["unauthorized", "connection", "malformed", "dns"])
def test_urls_of_other_problems_are_nothing_to_open(kind: str) -> None:
    """The text of a validation error quotes what a foreign server said."""
    detail = "please visit https://evil.example/unpause"

    assert "evil" not in refused(kind, detail=detail).hint


def test_a_challenge_of_a_paused_account_shows_the_url_too() -> None:
    """Orders and challenges carry problems as facts."""
    found = fact("authority.refused", {"type": PREFIX + "rateLimited", "detail": PAUSED + UNPAUSE + "x"})

    assert found is not None
    assert found.hint == f"open {UNPAUSE}x"


def test_a_refusal_names_whom_its_subproblems_blame() -> None:
    """Each once, in their order; what is no name, or would move a cursor, is left out."""
    values = [
        "b.example",
        "a.example",
        "b.example",
        "192.0.2.7",
        "x\x1b[2J",
        "",
        7,
        "x" * 254,
        "a b",
        "ä.example",
    ]
    subproblems = [{"type": PREFIX + "caa", "identifier": {"type": "dns", "value": one}} for one in values]

    error = refused("rejectedIdentifier", subproblems=[*subproblems, {}, {"identifier": 3}, "x"])

    assert error.identifiers == ("b.example", "a.example", "192.0.2.7")
    assert refused("rejectedIdentifier").identifiers == ()
