"""One fleet for all tests against real parts: bringing it up costs half a minute, so every test leaves it well."""

from collections.abc import Generator, Iterator

import pytest

from tests.lab import machine
from tests.lab.fleet import Fleet


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    """The farm with certfan on it and `example.test` proven everywhere."""
    if missing := machine.capabilities():
        pytest.skip("; ".join(missing))
    with Fleet(probe_interval=5).up() as up:
        up.add_certificate()
        up.wait_proven()
        yield up


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, None]:
    """A failure on the fleet comes with what every part has said."""
    outcome = yield
    report = outcome.get_result()
    up = getattr(item, "funcargs", {}).get("fleet")
    if report.when == "call" and report.failed and isinstance(up, Fleet):
        report.sections.append(("logs of the fleet", up.logs()))
