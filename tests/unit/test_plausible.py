"""Numbers that a consumer reports: believed as far as a restored daemon may lag behind, and no further."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from certfan.core.model import Deployment, DeploymentState
from certfan.core.numbers import LEAP
from certfan.protocol.messages import Report
from tests.unit.daemon_parts import Daemon, certificate_of, running_daemon

NAME = certificate_of("web1")


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with running_daemon(tmp_path / "daemon") as running:
        await running.store.add_consumer("web1", running.now)
        await running.issue("web1", 5)
        yield running


async def reports(daemon: Daemon, sequence: int, *numbers: int) -> None:
    said = [Deployment(NAME, "web1", number, DeploymentState.PROVEN, daemon.now) for number in numbers]
    report = Report.of(said, (), boot_id="b", sequence=sequence, sent_at=daemon.now, version="1")
    await daemon.board.report("web1", report)


@pytest.mark.parametrize("number", [5 + LEAP + 1, 2**63 - 1, 2**63, 10**30])
async def test_a_number_that_nobody_can_have_given_does_not_count(daemon: Daemon, number: int) -> None:
    """The next generation is not numbered after it, the rest of the report counts, and the journal says so once."""
    await reports(daemon, 1, 7, number)
    await reports(daemon, 2, 7, number)
    facts = await daemon.store.facts()

    assert 7 == await daemon.store.reported_number(NAME)
    assert [7] == [one.generation for one in facts.deployments[NAME, "web1"]]
    assert [str(number)] == [e.fields["generation"] for e in await daemon.happened("report.implausible")]


async def test_what_a_restored_daemon_has_forgotten_counts(daemon: Daemon) -> None:
    """A consumer may be ahead of yesterday's database, or know a certificate from before it was forgotten."""
    await reports(daemon, 1, 5 + LEAP)
    ahead = await daemon.store.reported_number(NAME)
    await daemon.store.keep_number(NAME, 3 * LEAP)
    await reports(daemon, 2, 3 * LEAP + 2)

    assert [5 + LEAP, 3 * LEAP + 2] == [ahead, await daemon.store.reported_number(NAME)]
    assert [] == await daemon.happened("report.implausible")
