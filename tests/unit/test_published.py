"""What authorities publish: read from the package's data, unknown elsewhere."""

import tomllib
from importlib import resources

import pytest

from certfan.core.model import NO_LIMITS, Identifier, Limit
from certfan.daemon.issuing import published
from tests.unit.planner_parts import DAY, HOUR

LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"
NAMES = tuple(Identifier(f"h{n}.example.org") for n in range(101))


def entries() -> list[str]:
    text = resources.files("certfan.daemon.issuing").joinpath("published.toml").read_text()
    return sorted(tomllib.loads(text))


def test_lets_encrypts_limits_are_those_of_its_page() -> None:
    """300 orders in 3 hours, 50 certificates a domain and 5 a set in 7 days, 5 failures a name and hour."""
    limits = published.of(LETS_ENCRYPT).limits

    assert limits.orders == Limit(300, 3 * HOUR)
    assert limits.certificates_per_domain == Limit(50, 7 * DAY)
    assert limits.certificates_per_set == Limit(5, 7 * DAY)
    assert limits.failures_per_name == Limit(5, HOUR)


def test_of_an_unknown_authority_nothing_is_known() -> None:
    """A CA of one's own has no limits, no profiles and no staging directory."""
    nothing = published.of("https://ca.example.org/acme/directory")

    assert nothing.limits == NO_LIMITS
    assert nothing.staging is None
    assert nothing.why_not("anything", NAMES) is None


@pytest.mark.parametrize("directory", entries())
def test_every_entry_of_the_data_can_be_read(directory: str) -> None:
    """No entry names a limit or a field that the code does not know, and each default profile is one of its own."""
    entry = published.of(directory)

    assert entry != published.NOTHING_PUBLISHED
    assert entry.default_profile is None or entry.default_profile in entry.profiles
    assert entry.staging is None or entry.staging.startswith("https://")
    for profile in entry.profiles.values():
        assert profile.most_names > 0
        assert profile.order_lifetime >= HOUR


def test_staging_is_another_directory_with_room_to_try() -> None:
    """A trial order goes to the same authority's staging directory, whose limits are higher."""
    production = published.of(LETS_ENCRYPT)

    assert production.staging == STAGING
    staging = published.of(STAGING)
    assert staging.staging is None
    assert staging.limits.orders == Limit(1500, 3 * HOUR)
    assert staging.profiles == production.profiles


@pytest.mark.parametrize(("profile", "most"), [(None, 100), ("classic", 100), ("tlsserver", 25)])
def test_more_names_than_a_profile_takes_are_refused(profile: str | None, most: int) -> None:
    """The error says how many it takes and what to do."""
    entry = published.of(LETS_ENCRYPT)

    assert entry.why_not(profile, NAMES[:most]) is None
    assert entry.why_not(profile, NAMES[: most + 1]) == (
        f"{most + 1} names: the profile {profile or 'classic'} takes at most {most};"
        " split them over several certificates"
    )


def test_an_address_needs_a_profile_that_certifies_one() -> None:
    """The error names the profile that would do."""
    entry = published.of(LETS_ENCRYPT)
    addresses = (Identifier("example.org"), Identifier("2001:db8::1"))

    assert entry.why_not("shortlived", addresses) is None
    assert entry.why_not(None, addresses) == (
        "2001:db8::1: only the profile shortlived of this authority certifies IP addresses"
    )


def test_a_profile_of_which_nothing_is_known_is_left_to_the_authority() -> None:
    """An authority may add profiles faster than we ship data."""
    assert published.of(LETS_ENCRYPT).why_not("brandnew", NAMES) is None
