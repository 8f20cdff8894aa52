"""Yesterday's database under today's agents: who comes in, who does not, and what they hear."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from certfan import pki
from certfan.agent.liaison import Liaison
from certfan.agent.link import Link
from certfan.core.model import DeploymentState
from certfan.errors import NotAuthenticated
from tests.unit.channel_parts import NOW, write_pair
from tests.unit.daemon_parts import HOUR, Daemon, certificate_of, running_daemon, until
from tests.unit.test_channel_fleet import report

DAY = timedelta(days=1)


class Site:
    """A daemon whose database can be put back, and the folders of its consumers."""

    def __init__(self, daemon: Daemon, root: Path) -> None:
        self.daemon, self.root = daemon, root

    async def back_up(self) -> None:
        await self.daemon.stop()
        shutil.copy(self.daemon.database, self.root / "backup.db")
        await self.daemon.start()

    async def restore(self) -> None:
        """What an admin does: stop, put the file back, start."""
        await self.daemon.stop()
        for left in self.daemon.folder.glob("certfan.db*"):
            left.unlink()
        shutil.copy(self.root / "backup.db", self.daemon.database)
        await self.daemon.start()

    async def enrolled(self, consumer: str, machine: str = "") -> Link:
        folder = self.root / (machine or consumer)
        return self.daemon.link(await self.daemon.enrolled(consumer, folder), folder)

    async def adopted(self) -> list[str]:
        return [event.subject for event in await self.daemon.happened("identity.adopted")]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_daemon(tmp_path / "daemon") as running:
        yield Site(running, tmp_path)


async def test_agents_go_on_over_yesterdays_database(site: Site) -> None:
    """One that was there all along, one enrolled since, one enrolled anew: all are answered without a human."""
    daemon = site.daemon
    await daemon.issue("web1", 1)
    async with await site.enrolled("web1") as web1, await site.enrolled("web2", "old") as old:
        await web1.report(report("boot", 1, certificate_of("web1")))
        heard: list[dict[str, int]] = []
        liaison = Liaison(web1, clock=daemon.clock, heartbeat=timedelta(seconds=30), jitter=lambda: 0.0)
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(
                liaison.listen(lambda found: heard.append({n: a.generation for n, a in found.items()}))
            )
            await until(lambda: heard)
            await old.assignments()
            await site.back_up()
            daemon.now = NOW + DAY
            await daemon.issue("web1", 2)
            daemon.channel.announce("web1")
            await until(lambda: {certificate_of("web1"): 2} in heard)
            async with await site.enrolled("web2", "new") as new, await site.enrolled("web3") as web3:
                await new.assignments()
                daemon.now += HOUR
                before = (await web1.assignments()).revision
                await web1.report(report("boot", 2, certificate_of("web1"), generation=2))
                await site.restore()
                daemon.now += HOUR
                count = len(heard)
                await until(lambda: len(heard) > count)
                assert (await new.assignments()).consumer == "web2"
                assert (await web3.assignments()).consumer == "web3"
                await web3.report(report("boot", 1))
                with pytest.raises(NotAuthenticated):
                    await old.assignments()
                after = await web1.assignments(before, 60)
                await web1.report(report("boot", 3, certificate_of("web1"), generation=2))
            listening.cancel()

    assert after.revision != before
    assert heard[-1] == {certificate_of("web1"): 1}  # the agent keeps what is newer (core.deployment)
    assert sorted(await site.adopted()) == ["web2", "web3"]
    ((deployment,),) = (await daemon.store.deployments()).values()
    assert (deployment.generation, deployment.state) == (2, DeploymentState.PROVEN)
    assert await daemon.store.reported_number(certificate_of("web1")) == 2


async def test_an_identity_renewed_since_is_adopted_and_ends_the_one_before(site: Site) -> None:
    """Yesterday's database knows the predecessor only; both are one machine, and again one of them counts."""
    daemon = site.daemon
    async with await site.enrolled("web1") as link:
        await link.assignments()
        await site.back_up()
        daemon.now += DAY
        key_pem = pki.make_key()
        cert_pem = await link.renew(pki.make_csr_pem(key_pem))
        before = (site.root / "web1/identity/cert.pem").read_bytes()
        write_pair(site.root / "web1/identity", key_pem, cert_pem)
        await link.close()
        await link.assignments()
        daemon.now += HOUR
        await site.restore()
        await link.assignments()
        await site.restore()
        await link.assignments()

    live = [one.serial for one in await daemon.store.identities("web1") if one.ended_at is None]
    assert live == [pki.read_leaf(cert_pem).serial]
    ended = await daemon.store.identity(pki.read_leaf(before).serial)
    assert ended is not None
    assert ended.ended_at is not None


async def test_an_agent_that_comes_back_runs_later_is_adopted_too(site: Site) -> None:
    """The gap in memory stays known, however often the daemon was restarted since."""
    await site.back_up()
    site.daemon.now += DAY
    async with await site.enrolled("web1") as link:
        site.daemon.now += HOUR
        await site.restore()
        for _ in range(3):
            site.daemon.now += HOUR
            await site.daemon.restart()

        assert (await link.assignments()).consumer == "web1"


@pytest.mark.parametrize("why", ["revoked since", "enrolled anew since", "left the config", "never restored"])
async def test_an_unknown_identity_stays_out(site: Site, why: str) -> None:
    """What happened after the restore counts; and without one, no certificate of our CA can have been forgotten."""
    daemon = site.daemon
    await site.back_up()
    daemon.now += DAY
    async with await site.enrolled("web1") as link:
        await link.assignments()
        daemon.now += HOUR
        if why == "never restored":
            key_pem = pki.make_key()
            cert_pem, _ = daemon.ca.ca.issue_consumer(pki.make_csr(key_pem, ()), "web1", daemon.now)
            write_pair(site.root / "web1/identity", key_pem, cert_pem)
            await link.close()
            daemon.now += HOUR
        else:
            await site.restore()
        match why:
            case "revoked since":
                await daemon.store.end_identities("web1", daemon.now)
            case "enrolled anew since":
                async with await site.enrolled("web1", "other"):
                    pass
            case "left the config":
                daemon.desired = type(daemon.desired)(daemon.desired.authorities, {}, {})
        with pytest.raises(NotAuthenticated):
            await link.assignments()

    assert await site.adopted() == []


async def test_a_clean_or_unclean_restart_adopts_nothing(site: Site) -> None:
    """Between the last report before a crash and the next start nothing was lost, and nothing is let in."""
    daemon = site.daemon
    async with await site.enrolled("web1") as link:
        await link.report(report("boot", 1))
        daemon.now += DAY
        key_pem = pki.make_key()
        cert_pem, _ = daemon.ca.ca.issue_consumer(pki.make_csr(key_pem, ()), "web1", NOW - HOUR)
        await daemon.restart()
        write_pair(site.root / "web1/identity", key_pem, cert_pem)
        await link.close()
        with pytest.raises(NotAuthenticated):
            await link.assignments()
