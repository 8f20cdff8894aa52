"""The internal CA is followed by another one: daemon, channel, agents and root's half, all real, with clocks that are set."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from certfan import files, pki
from certfan.agent import apply, config
from certfan.agent.enrolment import enrol
from certfan.agent.identity import Trust, read_trust
from certfan.agent.link import Link
from certfan.agent.privileged import Privileged
from certfan.agent.renewal import Renewal
from certfan.agent.rotation import STATEMENT
from certfan.agent.rotation import Rotation as AgentRotation
from certfan.agent.staging import Staging
from certfan.cli.lines.page import page_lines
from certfan.core.rotation import PATIENCE, Phase
from certfan.daemon.ca import open_ca
from certfan.daemon.rotation import Rotation
from certfan.daemon.status.control.ca import ca_routes
from certfan.daemon.status.metrics import exposition
from certfan.daemon.status.model import as_json
from certfan.daemon.status.view import view
from certfan.errors import ActionRefused, NotAuthenticated, ShareUnavailable
from certfan.protocol.trust import TrustStatement
from tests.unit.apply_parts import AGENT
from tests.unit.channel_parts import CA, FLEET, NOW
from tests.unit.command import certfan
from tests.unit.daemon_parts import Daemon, certificate_of, running_daemon
from tests.unit.status_parts import Admin, control_socket, things

pytestmark = pytest.mark.long


class Farm:
    """A daemon whose CA is looked after."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.signed_anew = 0
        self.share_problem: ShareUnavailable | None = None
        self.make()

    def make(self) -> None:
        """Wire it as a new process would."""
        daemon = self.daemon
        self.rotation = Rotation(
            folder=daemon.folder / "ca",
            ca=lambda: daemon.ca,
            take_over=self._take_over,
            store=daemon.store,
            journal=daemon.journal,
            pinned=lambda: daemon.channel.pinned,
            sign_share_anew=self._sign_anew,
            clock=daemon.clock,
        )
        daemon.channel.offer(self.rotation)
        daemon.enroller.take_over(daemon.ca.ca, daemon.ca.issuer)

    async def _take_over(self) -> None:
        daemon = self.daemon
        daemon.ca = open_ca(daemon.folder / "ca", FLEET, daemon.now)
        daemon.enroller.take_over(daemon.ca.ca, daemon.ca.issuer)
        await daemon.channel.believe(daemon.ca)

    async def _sign_anew(self) -> int:
        if self.share_problem is not None:
            raise self.share_problem
        self.signed_anew += 1
        return 1

    async def restart(self) -> None:
        await self.daemon.restart()
        self.make()

    @property
    def ca(self) -> bytes:
        return self.daemon.ca.ca.cert_pem

    async def phase(self) -> Phase:
        return (await self.rotation.view()).phase


class Machine:
    """A consumer: the agent's looks, and root's half on its socket."""

    def __init__(self, farm: Farm, name: str, root: Path) -> None:
        self.farm, self.name, self.root = farm, name, root
        self.path = root / "agent.toml"
        self.pins = 0

    async def enrol(self) -> None:
        files.private_folder(self.root / "state")
        self.path.write_text(AGENT.format(root=self.root, user=os.getuid()))
        self.path.chmod(0o644)
        line = await self.farm.daemon.enroller.add(self.name)
        identity = self.root / "state" / "identity"
        await enrol(line, identity, self.root / "trust", self.farm.daemon.now)
        async with self.link() as link:
            await link.assignments()

    @property
    def trust(self) -> Trust:
        return read_trust(self.root / "trust")

    @property
    def anchors(self) -> tuple[bytes, ...]:
        return pki.anchors(self.trust.ca_pem)

    @property
    def cert(self) -> bytes:
        return (self.root / "state/identity/cert.pem").read_bytes()

    def link(self) -> Link:
        return Link.of(self.trust, self.root / "state" / "identity")

    def staging(self, trust: Trust) -> Staging:
        return Staging(self.root / "state" / "bundles", trust, self.farm.daemon.clock)

    def _repinned(self) -> None:
        self.pins += 1

    async def look(self) -> None:
        """Do what the agent does after a query; made anew when root has pinned something else."""
        trust = self.trust
        async with self.link() as link:
            await link.assignments()
            rotation = AgentRotation(
                link,
                trust,
                self.root / "state",
                privileged=Privileged(self.root / "run" / "apply.sock"),
                staging=self.staging,
                repinned=self._repinned,
                clock=self.farm.daemon.clock,
            )
            await rotation.look()
            if self.trust == trust:
                folder = self.root / "state" / "identity"
                await Renewal(link, folder, trust, clock=self.farm.daemon.clock, jitter=lambda: 0.0).look()
        async with self.link() as link:
            await link.assignments()

    async def ask_root(self) -> Any:
        return await Privileged(self.root / "run" / "apply.sock").pin()


@pytest.fixture
async def farm(tmp_path: Path) -> AsyncIterator[Farm]:
    async with running_daemon(tmp_path / "daemon") as daemon:
        yield Farm(daemon)


@contextlib.asynccontextmanager
async def machine(farm: Farm, name: str, root: Path) -> AsyncIterator[Machine]:
    found = Machine(farm, name, root)
    root.mkdir()
    await found.enrol()
    with apply.listen(root / "run" / "apply.sock", config.load(found.path)) as listener:
        task = asyncio.create_task(apply.serve(listener, found.path), name="apply")
        try:
            yield found
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
async def web1(farm: Farm, tmp_path: Path) -> AsyncIterator[Machine]:
    async with machine(farm, "web1", tmp_path / "web1") as found:
        yield found


async def rotated(farm: Farm, *machines: Machine) -> None:
    """Let everybody look in turn until the old one is gone."""
    await farm.rotation.begin(uid=0)
    for _ in range(10):
        for one in machines:
            await one.look()
        await farm.rotation.look()
        if await farm.phase() is Phase.SETTLED:
            return
    raise AssertionError(await farm.rotation.view())


async def test_every_consumer_follows_without_a_hand(farm: Farm, web1: Machine, tmp_path: Path) -> None:
    """Both end with an identity of the new CA, which is all that they and the daemon believe."""
    before = farm.ca
    async with machine(farm, "mail1", tmp_path / "mail1") as mail1:
        await rotated(farm, web1, mail1)

        assert farm.ca != before
        for one in (web1, mail1):
            assert ((farm.ca,), 2) == (one.anchors, one.pins)
            assert pki.is_of(one.cert, farm.ca)
    names = [e.name for e in await farm.daemon.store.events() if e.name.startswith(("ca.", "share."))]
    assert ["ca.rotating", "ca.promoted", "share.signed_anew", "ca.dropped"] == names


async def test_it_goes_on_a_second_time(farm: Farm, web1: Machine) -> None:
    """Numbers of what is to be believed only grow."""
    await rotated(farm, web1)
    first, number = farm.ca, web1.trust.number
    await rotated(farm, web1)

    assert (web1.anchors, number) == ((farm.ca,), 2)
    assert (first != farm.ca, 4) == (True, web1.trust.number)


async def test_while_both_are_believed_nobody_is_cut_off(farm: Farm, web1: Machine, tmp_path: Path) -> None:
    """One that has not followed goes on as before, one that enrols now follows too, and what waits is named."""
    async with machine(farm, "mail1", tmp_path / "mail1") as mail1:
        await farm.rotation.begin(uid=0)
        await web1.look()
        await web1.look()
        await farm.rotation.look()
        view = await farm.rotation.view()
        async with mail1.link() as link:
            await link.assignments()

        assert (Phase.OVERLAP, ("mail1",)) == (view.phase, view.waits_for)
        assert (2, True) == (len(web1.anchors), pki.is_of(web1.cert, web1.anchors[1]))
        async with machine(farm, "web2", tmp_path / "web2") as web2:
            for _ in range(6):
                for one in (web1, mail1, web2):
                    await one.look()
                await farm.rotation.look()
            assert (Phase.SETTLED, web2.anchors) == (await farm.phase(), web1.anchors)


async def test_one_that_will_not_come_back_is_revoked_and_no_longer_waited_for(
    farm: Farm, web1: Machine, tmp_path: Path
) -> None:
    """A machine that is gone holds up nobody for ever."""
    async with machine(farm, "mail1", tmp_path / "mail1"):
        pass
    await farm.rotation.begin(uid=0)
    await web1.look()
    await web1.look()
    await farm.rotation.look()
    held = await farm.phase()
    await farm.daemon.store.end_identities("mail1", farm.daemon.now)
    await farm.rotation.look()

    assert (Phase.OVERLAP, Phase.DROPPING) == (held, await farm.phase())


async def test_an_identity_of_the_one_that_was_dropped_is_none(
    farm: Farm, web1: Machine, tmp_path: Path
) -> None:
    """Whoever has stolen the old CA's key can no longer make himself a consumer."""
    old = farm.daemon.ca.ca
    forged = tmp_path / "forged"
    files.private_folder(forged)

    def forge() -> Link:
        key_pem = pki.make_key()
        cert_pem, _ = old.issue_consumer(pki.make_csr_pem(key_pem).encode(), "web1", farm.daemon.now)
        files.write_private(forged / "key.pem", key_pem)
        files.write_private(forged / "cert.pem", cert_pem)
        return Link(farm.daemon.address, forged, fleet=FLEET, ca_pem=farm.ca)

    await rotated(farm, web1)
    async with forge() as link:
        with pytest.raises(NotAuthenticated, match="does not accept our certificate"):
            await link.assignments()
    async with web1.link() as link:
        await link.assignments()


async def test_bundles_are_fetched_anew_before_the_one_that_signed_them_is_dropped(
    farm: Farm, web1: Machine
) -> None:
    """The boot unit must find what it may lay; while they are not to be had, the old one stays pinned."""
    name = certificate_of("web1")
    await farm.daemon.issue("web1")
    async with web1.link() as link:
        web1.staging(web1.trust).put(name, 1, await link.bundle(name, 1))
    await rotated(farm, web1)

    assert {(name, 1)} == web1.staging(web1.trust).scan().keys()
    assert (farm.ca,) == web1.anchors


async def test_a_share_that_is_away_keeps_the_one_before_believed(farm: Farm, web1: Machine) -> None:
    """What lies there still needs it; the problem is shown, and the rotation ends when the share is back."""
    farm.share_problem = ShareUnavailable("/srv/le is not mounted")
    with pytest.raises(ShareUnavailable):
        await rotated(farm, web1)
    await web1.look()
    held = (await farm.phase(), len(web1.anchors))
    farm.share_problem = None
    for _ in range(3):
        await farm.rotation.look()
        await web1.look()
    await farm.rotation.look()

    assert ((Phase.DROPPING, 2), Phase.SETTLED) == (held, await farm.phase())


async def test_a_rotation_cannot_overtake_another(farm: Farm, web1: Machine) -> None:
    """Asked twice it is one; while the one before is still believed there is no third."""
    await farm.rotation.begin(uid=0)
    following = farm.daemon.ca.next
    await farm.rotation.begin(uid=0)
    assert following is not None
    assert farm.daemon.ca.next is not None
    assert following.cert_pem == farm.daemon.ca.next.cert_pem
    await web1.look()
    await web1.look()
    farm.share_problem = ShareUnavailable("gone")
    with pytest.raises(ShareUnavailable):
        await farm.rotation.look()

    with pytest.raises(ActionRefused, match="has not ended"):
        await farm.rotation.begin(uid=0)


class PowerCut(BaseException):
    """Nothing after this happens."""


CUTS = 15  # one more than a rotation changes files: the last one falls on nothing


@pytest.mark.parametrize("cut", range(1, CUTS + 1))
async def test_a_power_cut_of_the_daemon_anywhere_is_completed(
    farm: Farm, web1: Machine, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """At each change of a file in the CA's folder: the next process goes on, and the agent is never cut off."""
    changes = 0
    folder = str(farm.daemon.folder / "ca")

    def cutting(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(path: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal changes
            if str(path).startswith(folder):
                changes += 1
                if changes == cut:
                    raise PowerCut
            return real(path, *args, **kwargs)

        return change

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_private", cutting(files.write_private))
        patched.setattr(Path, "unlink", cutting(Path.unlink))
        try:
            await rotated(farm, web1)
        except PowerCut:
            assert cut < CUTS, "more files are changed than are cut off at"
            patched.undo()
            await farm.restart()
            for _ in range(8):
                await web1.look()
                await farm.rotation.look()
            if await farm.phase() is Phase.SETTLED and farm.daemon.ca.rotations < 1:
                await rotated(farm, web1)  # it was cut before anything had begun
        else:
            assert cut > changes

    assert await farm.phase() is Phase.SETTLED
    assert (farm.ca,) == web1.anchors
    assert pki.is_of(web1.cert, farm.ca)


def statement(signer: pki.InternalCA, **changes: Any) -> bytes:
    told = {"fleet": FLEET, "number": 1, "ca": signer.cert_pem.decode()} | changes
    return TrustStatement(**told).sign(signer)


STRANGER = pki.InternalCA.create(FLEET, NOW)
ELSEWHERE = pki.InternalCA.create("elsewhere", NOW)


@pytest.mark.parametrize(
    ("left", "code"),
    [
        (statement(STRANGER), "pki.signature_invalid"),
        (statement(CA, number=0), "channel.not_allowed"),
        (statement(CA, number=-1), "channel.not_allowed"),
        (statement(CA, fleet="elsewhere"), "channel.not_allowed"),
        (statement(CA, ca=ELSEWHERE.cert_pem.decode()), "channel.not_allowed"),
        (statement(CA, ca="x"), "channel.message_invalid"),
        (statement(CA, ca=CA.cert_pem.decode() * 3), "channel.message_invalid"),
        (statement(CA).replace(b'number\\": 1', b'number\\": 9'), "pki.signature_invalid"),
        (b"{}", "channel.message_invalid"),
        (b"", "channel.message_invalid"),
        (b"[" * 100_000, "channel.message_invalid"),
    ],
    ids=[
        "stranger's",
        "as old",
        "older",
        "fleet",
        "CA of another fleet",
        "no CA",
        "three",
        "altered",
        "no",
        "empty",
        "deep",
    ],
)
async def test_root_pins_only_what_a_pinned_ca_has_signed(web1: Machine, left: bytes, code: str) -> None:
    """The agent's user may leave anything; what is pinned stays as it was."""
    before = web1.trust
    files.write_private(web1.root / "state" / STATEMENT, left)
    answer = await web1.ask_root()

    assert (code, before) == (answer.problem.code, web1.trust)


async def test_root_follows_no_link_to_a_statement(web1: Machine, tmp_path: Path) -> None:
    """And a statement that is not there is no reason to end."""
    missing = await web1.ask_root()
    (tmp_path / "elsewhere").write_bytes(statement(CA))
    (web1.root / "state" / STATEMENT).symlink_to(tmp_path / "elsewhere")
    linked = await web1.ask_root()

    assert None not in (missing.problem, linked.problem)
    assert web1.trust.number == 0


async def test_an_agent_of_an_earlier_release_is_waited_for(farm: Farm, web1: Machine) -> None:
    """It says nothing of trust: its renewal is of the CA that it knows, and it is named as what is waited for."""
    await farm.rotation.begin(uid=0)
    old = Link(
        farm.daemon.address,
        web1.root / "state/identity",
        fleet=FLEET,
        ca_pem=web1.trust.ca_pem,
        consumer="web1",
    )
    async with old as link:
        cert_pem = await link.renew(pki.make_csr_pem(pki.make_key()))

    assert pki.is_of(cert_pem, farm.ca)
    assert ("web1",) == (await farm.rotation.view()).waits_for


async def test_the_command_line_asks_and_tells(farm: Farm, web1: Machine, tmp_path: Path) -> None:
    """What waits for whom, before, meanwhile and as JSON."""
    async with control_socket(tmp_path, Admin(), others=ca_routes(farm.rotation)) as path:
        words = ("--config", str(path))
        shown = await asyncio.to_thread(certfan, "ca", "show", *words)
        rotating = await asyncio.to_thread(certfan, "ca", "rotate", *words)
        raw = await asyncio.to_thread(certfan, "ca", "show", "--json", *words)

    assert "phase:       settled: it is the only one" in shown.stdout.splitlines()
    assert (0, "") == (rotating.returncode, rotating.stderr)
    assert "waits for:   web1" in rotating.stdout.splitlines()
    assert ("overlap", ["web1"]) == (json.loads(raw.stdout)["phase"], json.loads(raw.stdout)["waits_for"])


async def test_a_rotation_under_way_is_in_the_status(farm: Farm, web1: Machine) -> None:
    """Page, API, metrics and command line: who lacks the new CA, since when, how long at most; a problem after a day."""
    before = farm.daemon.ca.ca.cert_pem
    settled = await farm.rotation.view()
    await farm.rotation.begin(uid=0)
    ca = await farm.rotation.view()
    seen = replace(things(), internal_ca=ca, now=farm.daemon.now)
    page = view(seen)

    assert (None, None) == (settled.since, settled.old_until)
    assert ["web1"] == [one.name for one in page.consumers if one.lacks_ca]
    assert ca == page.internal_ca
    assert (farm.daemon.now.replace(microsecond=0), pki.read_leaf(before).not_after) == (
        ca.since,
        ca.old_until,
    )
    assert b'certfan_ca_rotation_waits{consumer="web1"} 1.0' in exposition(page)
    lines = page_lines(as_json(page))
    assert any("the internal CA is being replaced" in line and "waits for web1;" in line for line in lines)
    assert not [one for one in page.problems if one.subject == "ca"]
    (need,) = (one for one in view(replace(seen, now=seen.now + PATIENCE)).problems if one.subject == "ca")
    assert ("ca.rotation_waits", ca.since, "run: certfan ca show") == (need.code, need.since, need.hint)
