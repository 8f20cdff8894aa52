"""How identities are followed by the next one: the agent's side against the real channel, with clocks that are set."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from certfan import files, pki
from certfan.agent.identity import IdentityFolder, Trust
from certfan.agent.liaison import Liaison
from certfan.agent.renewal import PAUSE, SPREAD, Renewal
from certfan.errors import CertfanError, MessageInvalid, NotAuthenticated
from certfan.protocol.messages import Report
from tests.unit.channel_parts import CA, FLEET, NOW
from tests.unit.daemon_parts import Daemon, running_daemon, until

YEAR = timedelta(days=365)
HALF = timedelta(days=184)  # of 366 days, backdated by one


class PowerCut(BaseException):
    """Nothing after this happens."""


class Agent:
    """One machine: its folder, its trust, and what looks after its identity."""

    def __init__(self, daemon: Daemon, trust: Trust, folder: Path, *, jitter: float = 0.0) -> None:
        self.daemon, self.trust, self.folder = daemon, trust, folder
        self.link = daemon.link(trust, folder)
        self.renewal = Renewal(
            self.link, folder / "identity", trust, clock=daemon.clock, jitter=lambda: jitter
        )

    async def come_in(self) -> None:
        """Ask over a session of its own, as the process after a restart would."""
        async with self.daemon.link(self.trust, self.folder) as link:
            await link.assignments()

    def file(self, name: str) -> bytes:
        return (self.folder / "identity" / name).read_bytes()

    @property
    def leaf(self) -> pki.Leaf:
        return pki.load_pair(self.file("key.pem"), self.file("cert.pem")).leaf

    @property
    def names(self) -> set[str]:
        return {
            path.name
            for path in (self.folder / "identity").iterdir()
            if not path.name.startswith((".", "enrolling-"))
        }


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with running_daemon(tmp_path / "daemon") as running:
        yield running


@pytest.fixture
async def web1(daemon: Daemon, tmp_path: Path) -> AsyncIterator[Agent]:
    agent = Agent(daemon, await daemon.enrolled("web1", tmp_path / "web1"), tmp_path / "web1")
    async with agent.link:
        await agent.link.assignments()
        yield agent


async def serials(daemon: Daemon, consumer: str = "web1") -> list[str]:
    return [one.serial for one in await daemon.store.identities(consumer) if one.ended_at is None]


async def test_an_identity_is_renewed_at_half_life_and_not_before(daemon: Daemon, web1: Agent) -> None:
    """A year, backdated a day: at day 182 it is young, at day 183 there is a new key, a new serial, 0600."""
    first, key = web1.leaf, web1.file("key.pem")
    daemon.now = NOW + timedelta(days=181, hours=23)
    await web1.renewal.look()
    young = web1.leaf
    daemon.now = NOW + timedelta(days=182)
    await web1.renewal.look()

    assert young == first
    assert web1.leaf.serial != first.serial
    assert web1.file("key.pem") != key
    assert web1.names == {"key.pem", "cert.pem"}
    assert stat.S_IMODE((web1.folder / "identity/key.pem").stat().st_mode) == 0o600


async def test_agents_that_enrolled_together_renew_apart(daemon: Daemon, web1: Agent) -> None:
    """The instant is chosen within a tenth of the lifetime, by each agent for itself."""
    dues = [
        Renewal(
            web1.link, web1.folder, web1.trust, clock=daemon.clock, jitter=lambda chosen=chosen: chosen
        )._due_at(web1.leaf)
        for chosen in (0.0, 0.5, 0.999)
    ]

    lifetime = web1.leaf.not_after - web1.leaf.not_before
    assert dues[0] == web1.leaf.not_before + lifetime / 2
    assert dues[1] - dues[0] == lifetime * SPREAD * 0.5
    assert dues[0] < dues[1] < dues[2] < dues[0] + lifetime * SPREAD


async def test_the_old_identity_counts_until_the_new_one_was_used(
    daemon: Daemon, web1: Agent, tmp_path: Path
) -> None:
    """Between the reply and the first use both come in; from the first use on the old one is 401, live sessions too."""
    shutil.copytree(web1.folder, tmp_path / "before")
    daemon.now = NOW + HALF
    async with daemon.link(web1.trust, tmp_path / "before") as old:
        await web1.renewal.look()
        await old.assignments()
        both = await serials(daemon)
        waiting = asyncio.create_task(old.assignments((await old.assignments()).revision, 60))
        await until(lambda: daemon.channel._waiting._rung)
        await web1.link.report(report("boot", 1))  # sent once: its own session must not end with the others
        async with asyncio.timeout(5):
            with pytest.raises(NotAuthenticated):
                await waiting
        with pytest.raises(NotAuthenticated):
            await old.assignments()

    assert len(both) == 2
    assert await serials(daemon) == [web1.leaf.serial]
    assert [event.subject for event in await daemon.happened("identity.replaced")] == ["web1"]


async def test_a_lost_reply_is_asked_for_again_with_the_same_key(daemon: Daemon, web1: Agent) -> None:
    """The key lay on disk, 0600, before it was sent; the daemon has issued once."""
    daemon.now = NOW + HALF
    renew, seen = daemon.board.renew, []

    async def lose(consumer: str, serial: str, csr: bytes, *, trust: int = 0) -> bytes:
        seen.append(stat.S_IMODE((web1.folder / "identity/renewing.pem").stat().st_mode))
        await renew(consumer, serial, csr)
        raise CertfanError("reply lost")

    daemon.board.renew = lose  # type: ignore[method-assign]
    await web1.renewal.look()
    issued, still = await serials(daemon), web1.leaf.serial
    daemon.board.renew = renew  # type: ignore[method-assign]
    daemon.now += PAUSE
    await web1.renewal.look()
    await web1.link.assignments()

    assert seen == [0o600]
    assert len(issued) == 2
    assert web1.leaf.serial == (set(issued) - {still}).pop()
    assert await serials(daemon) == [web1.leaf.serial]


async def test_a_try_that_failed_waits_and_the_identity_stays(daemon: Daemon, web1: Agent) -> None:
    """No daemon, no renewal: half an hour to an hour later again, not at every look."""
    daemon.now = NOW + HALF
    await daemon.channel.stop()
    before = web1.leaf
    await web1.renewal.look()
    await daemon.listen()
    await web1.renewal.look()
    held = web1.leaf
    daemon.now += PAUSE / 2
    await web1.renewal.look()

    assert held == before
    assert web1.leaf != before


async def test_a_power_cut_while_the_files_are_swapped_loses_nothing(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut before any of the writes and removals: the next session shows the old pair or the new one, and comes in."""
    for step in range(20):
        daemon.now = NOW
        folder = tmp_path / str(step)
        agent = Agent(daemon, await daemon.enrolled("web1", folder), folder)
        await agent.come_in()
        daemon.now = NOW + HALF
        with monkeypatch.context() as patched:
            was_cut = await cut_before(step, patched, agent.renewal.look)
        await agent.come_in()
        await agent.renewal.look()
        await agent.come_in()
        await agent.link.close()

        assert agent.leaf.not_after > NOW + YEAR, step
        assert agent.names == {"key.pem", "cert.pem"}, step
        assert await serials(daemon) == [agent.leaf.serial], step
        if not was_cut:
            break

    assert step >= 7  # each of three files made and renamed, then two removed


async def cut_before(step: int, patched: pytest.MonkeyPatch, work: Callable[[], Awaitable[None]]) -> bool:
    """Do the work, and let the power go before its file operation number `step`; False if it has fewer."""
    left = step

    def counting(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise PowerCut
            return real(*args, **kwargs)

        return call

    patched.setattr(files, "create", counting(files.create))
    for name in ("replace", "unlink"):
        patched.setattr(os, name, counting(getattr(os, name)))
    try:
        await work()
    except PowerCut:
        return True
    return False


@pytest.mark.parametrize("days", [200, 500], ids=["half-life is past", "even its end is past"])
async def test_a_consumer_that_was_off_for_long_catches_up_by_itself(
    daemon: Daemon, web1: Agent, days: int
) -> None:
    """Off for 200 simulated days, or 500: its identity still comes in, hears the newest only, and is renewed."""
    revision = (await web1.link.assignments()).revision
    await web1.link.close()
    for number in range(1, 4):
        await daemon.issue("web1", number)
    daemon.now = NOW + timedelta(days=days)
    heard: list[tuple[str, int]] = []
    liaison = Liaison(
        web1.link,
        clock=daemon.clock,
        heartbeat=timedelta(seconds=30),
        look_after_identity=web1.renewal.look,
    )
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(
            liaison.listen(lambda found: heard.extend((n, a.generation) for n, a in found.items()))
        )
        first = web1.leaf
        await until(lambda: web1.leaf != first)
        listening.cancel()
    found = await web1.link.assignments()

    assert heard == [("web1.example", 3)]
    assert found.revision != revision
    assert web1.leaf.not_after > daemon.now
    assert await serials(daemon) == [web1.leaf.serial]


async def test_enrolling_anew_ends_what_a_renewal_brought(daemon: Daemon, web1: Agent) -> None:
    """A new line ends the identity, its successor, and the files that a cut-off renewal left."""
    daemon.now = NOW + HALF
    with IdentityFolder(web1.folder / "identity").opened() as folder:
        key_pem = folder.renewal_key()
        cert_pem = await web1.link.renew(pki.make_csr_pem(key_pem))
        folder._write("renewed.pem", key_pem + cert_pem)
    await daemon.enrolled("web1", web1.folder)
    async with daemon.link(web1.trust, web1.folder) as link:
        await link.assignments()

    assert web1.names == {"key.pem", "cert.pem"}
    assert await serials(daemon) == [web1.leaf.serial]
    assert web1.leaf.serial != pki.read_leaf(cert_pem).serial


async def test_revoking_ends_a_successor_that_waits(daemon: Daemon, web1: Agent) -> None:
    """Nothing that was handed out before comes in after."""
    cert_pem = await web1.link.renew(pki.make_csr_pem(pki.make_key()))
    await daemon.store.end_identities("web1", daemon.now)

    assert await serials(daemon) == []
    fact = await daemon.store.identity(pki.read_leaf(cert_pem).serial)
    assert fact is not None
    assert fact.ended_at is not None


async def test_another_new_key_ends_a_successor_that_nobody_used(daemon: Daemon, web1: Agent) -> None:
    """At most two identities of a consumer count, however often it asks."""
    certs = [await web1.link.renew(pki.make_csr_pem(pki.make_key())) for _ in range(3)]

    assert set(await serials(daemon)) == {web1.leaf.serial, pki.read_leaf(certs[-1]).serial}


async def test_an_old_key_is_not_renewed(daemon: Daemon, web1: Agent) -> None:
    """Neither the identity's own nor one that it had before; the agent drops a key that is refused."""
    with pytest.raises(MessageInvalid, match="new key"):
        await web1.link.renew(pki.make_csr_pem(web1.file("key.pem")))
    files.write_private(web1.folder / "identity/renewing.pem", web1.file("key.pem"))
    daemon.now = NOW + HALF
    await web1.renewal.look()
    refused = web1.names
    daemon.now += PAUSE
    await web1.renewal.look()

    assert refused == {"key.pem", "cert.pem"}
    assert web1.leaf.not_after > NOW + YEAR


async def test_an_answer_that_is_not_ours_replaces_nothing(daemon: Daemon, web1: Agent) -> None:
    """Another key's, another consumer's, another CA's, garbage: what works is given up for a better one only."""
    daemon.now = NOW + HALF
    before = (web1.file("key.pem"), web1.file("cert.pem"))
    csr = pki.make_csr(pki.make_key(), ())
    answers: list[Callable[[bytes], bytes]] = [
        lambda _: CA.issue_consumer(csr, "web1", daemon.now)[0],
        lambda asked: CA.issue_consumer(asked, "web2", daemon.now)[0],
        lambda asked: pki.InternalCA.create(FLEET, daemon.now).issue_consumer(asked, "web1", daemon.now)[0],
        lambda _: b"garbage",
    ]

    async def renew(consumer: str, serial: str, csr: bytes, *, trust: int = 0) -> bytes:
        asked.append(csr)
        return answers[len(asked) - 1](csr)

    asked: list[bytes] = []
    daemon.board.renew = renew  # type: ignore[method-assign]
    for _ in answers:
        await web1.renewal.look()
        daemon.now += PAUSE
        assert (web1.file("key.pem"), web1.file("cert.pem")) == before

    assert len(asked) == len(answers)
    assert len({pki.read_csr(csr).spki for csr in asked}) == 1
    assert (await web1.link.assignments()).consumer == "web1"


async def test_two_machines_with_one_identity_are_shown_and_never_locked_out(
    daemon: Daemon, web1: Agent, tmp_path: Path
) -> None:
    """A copied machine: one event, one red line, both go on; none is renewed, as that would lock the other out."""
    shutil.copytree(web1.folder, tmp_path / "copy")
    copy = Agent(daemon, web1.trust, tmp_path / "copy")
    async with copy.link:
        for sequence in range(1, 4):
            for agent, boot_id in ((web1, "boot-a"), (copy, "boot-b")):
                await agent.link.report(report(boot_id, sequence))
                daemon.now += timedelta(seconds=15)
        events = await daemon.happened("consumer.doubled")
        async with daemon.control() as session, session.get("/api/v1/status") as response:
            page = await response.json()
        daemon.now += HALF
        for sequence in range(4, 7):
            for agent, boot_id in ((web1, "boot-a"), (copy, "boot-b")):
                await agent.link.report(report(boot_id, sequence))
        for agent in (web1, copy):
            await agent.renewal.look()
        assert (await web1.link.assignments()).consumer == (await copy.link.assignments()).consumer

    assert [event.subject for event in events] == ["web1"]
    (doubled,) = (one for one in page["problems"] if one["code"] == "consumer.doubled")
    assert ("web1", events[0].at) == (doubled["subject"], datetime.fromisoformat(doubled["since"]))
    assert page["summary"]["state"] == "problem"
    assert web1.leaf.not_after < NOW + YEAR + timedelta(days=1)


async def test_a_machine_that_reboots_is_not_doubled(daemon: Daemon, web1: Agent) -> None:
    """Boot ids that follow each other, a restarted agent, and one return to a snapshot of memory are one machine."""
    for sequence, boot_id in enumerate(["a", "a", "b", "c", "c", "b", "b", "d"], start=1):
        await web1.link.report(report(boot_id, sequence))
        daemon.now += timedelta(seconds=15)

    assert await daemon.happened("consumer.doubled") == []
    assert daemon.board.doubles.problems == {}


async def test_a_double_that_fell_silent_is_forgotten(daemon: Daemon, web1: Agent) -> None:
    """The red line goes with the copy; a later one is a new event."""
    for _ in range(2):
        for boot_id in "abab":
            await web1.link.report(report(boot_id, 1))
        assert set(daemon.board.doubles.problems) == {"web1"}
        daemon.now += timedelta(minutes=5)
        assert daemon.board.doubles.problems == {}

    assert len(await daemon.happened("consumer.doubled")) == 2


def report(boot_id: str, sequence: int) -> Report:
    return Report.of([], [], boot_id=boot_id, sequence=sequence, sent_at=NOW, version="0.1.0")
