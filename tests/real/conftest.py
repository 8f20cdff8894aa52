"""One fleet for all tests against real parts: bringing it up costs half a minute, so every test leaves it well."""

from collections.abc import Generator, Iterator

import pytest

from tests.lab import machine
from tests.lab.fleet import Fleet
from tests.lab.loopback import Loopback
from tests.lab.loopback_layout import lacking
from tests.real.daemon_place import Place


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    """The farm with certfan on it and `example.test` proven everywhere."""
    if missing := machine.capabilities():
        pytest.skip("; ".join(missing))
    with Fleet(probe_interval=5).up() as up:
        up.add_certificate()
        up.wait_proven()
        yield up


@pytest.fixture(scope="session")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Where a test can have daemons of its own, one after the other, and CAs for them."""
    if missing := lacking():
        pytest.skip(f"not installed: {', '.join(missing)}")
    with Place(tmp_path_factory.mktemp("daemons")) as place:
        yield place


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, None]:
    """A failure on the fleet, or on one place for many tests, comes with what every part has said."""
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed:
        for name, up in getattr(item, "funcargs", {}).items():
            if isinstance(up, Fleet | Loopback):
                report.sections.append((f"logs of the {name}", up.logs()))
