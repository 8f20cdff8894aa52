"""The whole pipe on real parts: what the README promises, looked at from outside."""

import pytest

from tests.lab.fleet import ENDPOINTS, Fleet, Seen

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: e.label)
def test_openssl_sees_at_every_endpoint_what_the_status_says(fleet: Fleet, endpoint: Seen) -> None:
    """A proof is what anybody else sees too."""
    assert fleet.serial(endpoint) == fleet.certificate()["serial"]


def test_a_forced_renewal_is_proven_everywhere(fleet: Fleet) -> None:
    """`certfan renew` gives a new generation, one more than before."""
    before = fleet.wait_proven()

    fleet.renew()

    assert fleet.wait_proven(before + 1) == before + 1
    assert {fleet.serial(endpoint) for endpoint in ENDPOINTS} == {fleet.certificate()["serial"]}
