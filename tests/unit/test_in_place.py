"""In place: services are led to the mounted generation, and never to one that is not there."""

import shutil
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from time import monotonic

import pytest

from certfan import pki
from certfan.agent import boot, config, reloader
from certfan.agent.installer import Laid
from certfan.agent.shelf import Shelf
from certfan.agent.whereabouts import Whereabouts
from certfan.core.model import Custody
from certfan.protocol import manifest
from tests.unit.apply_parts import MAIL, NOW, WWW, Machine, in_child, states, swap


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(reloader, "SETTLE", timedelta(0))
    machine = Machine(tmp_path)
    machine.in_place()
    machine.service("web")
    return machine


def offer(machine: Machine, *numbers: int, name: str = WWW) -> None:
    """Have generations on the share, and staged, as the agent does before it asks."""
    for number in numbers:
        machine.stage(name, number)
        machine.publish(name, number)


def pointer(machine: Machine, name: str = WWW) -> str:
    return str((machine.root / "etc" / "live" / name).readlink())


def mounted(number: int, name: str = WWW) -> str:
    return f"../mounted/generations/{name}/{number}"


def copied(number: int, name: str = WWW) -> str:
    return f"../generations/{name}/{number}"


async def test_a_pair_goes_live_where_the_share_is_mounted(machine: Machine) -> None:
    """The same test, reload and hook as with a copy, and no copy of the key."""
    offer(machine, 1)

    answer = await machine.asks((WWW, 1))

    assert (answer["problem"], answer["installed"], pointer(machine)) == (None, {WWW: 1}, mounted(1))
    assert machine.live() == machine.staged_fingerprint(WWW, 1)
    assert machine.log("web") == ["test", "reload", "hook"]
    assert not (machine.root / "etc" / "generations" / WWW).exists()


async def test_the_whole_share_may_be_mounted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the cert VM it is: the consumer's folder is one further down."""
    monkeypatch.setattr(reloader, "SETTLE", timedelta(0))
    machine = Machine(tmp_path)
    machine.in_place(whole=True)
    offer(machine, 1)
    await machine.asks((WWW, 1))

    assert pointer(machine) == f"../mounted/web1/generations/{WWW}/1"
    assert machine.live() == machine.staged_fingerprint(WWW, 1)


def _away(machine: Machine) -> None:
    machine.unmount()


def _late(machine: Machine) -> None:
    shutil.rmtree(machine.mount / "generations" / WWW / "1")


def _unsigned(machine: Machine) -> None:
    (machine.mount / "generations" / WWW / "1" / "manifest.sig").write_bytes(b"x" * 300)


def _another_key(machine: Machine) -> None:
    (machine.mount / "generations" / WWW / "1" / "privkey.pem").write_bytes(pki.make_key())


def _another_pair(machine: Machine) -> None:
    _late(machine)
    machine.publish(WWW, 1, machine.bundle(WWW, 1))


def _for_another_consumer(machine: Machine) -> None:
    _late(machine)
    machine.publish(WWW, 1, machine.bundle(WWW, 1, consumer="mail1"))


def _linked(machine: Machine) -> None:
    key = machine.mount / "generations" / WWW / "1" / "privkey.pem"
    key.rename(machine.root / "elsewhere")
    key.symlink_to(machine.root / "elsewhere")


def _another_share(machine: Machine) -> None:
    (machine.mount / "certfan.share").unlink()


def _sealed(machine: Machine) -> None:
    files = {path.name: path.read_bytes() for path in (machine.mount / "generations" / WWW / "1").iterdir()}
    _late(machine)
    chain = pki.load_chain(files["fullchain.pem"])
    facts = {"fleet": "home", "consumer": "web1", "certificate": WWW, "generation": 1}
    signer = {"signer_key_pem": machine.signer.key_pem, "signer_cert_pem": machine.signer.cert_pem}
    machine.publish(WWW, 1, manifest.pack(chain, b"sealed", custody=Custody.SEALED, **facts, **signer))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spoil",
    [
        _away,
        _late,
        _unsigned,
        _another_key,
        _another_pair,
        _for_another_consumer,
        _linked,
        _another_share,
        _sealed,
    ],
)
async def test_whatever_speaks_against_the_mount_a_copy_is_laid(
    machine: Machine, spoil: Callable[[Machine], None]
) -> None:
    """Away, late, forged, mixed up or sealed: the verified bundle on the local disk goes live all the same."""
    offer(machine, 1)
    spoil(machine)

    answer = await machine.asks((WWW, 1))

    assert (answer["problem"], pointer(machine)) == (None, copied(1))
    assert machine.live() == machine.staged_fingerprint(WWW, 1)


async def test_a_refused_pair_goes_back_to_the_mounted_one(machine: Machine) -> None:
    """Nothing was copied on the way there and back."""
    offer(machine, 1, 2)
    await machine.asks((WWW, 1))
    machine.does("web", "test", "readlink ../etc/live/* | grep -q /1$ || exit 1")

    answer = await machine.asks((WWW, 2))

    assert (answer["rolled_back"], answer["problem"]["code"]) == (True, "service.pair_refused")
    assert pointer(machine) == mounted(1)


async def test_where_the_former_one_is_gone_with_its_mount_a_copy_of_it_comes_back(machine: Machine) -> None:
    """The mount went away while the service was reloaded, which died of it: it is started on the former pair."""
    offer(machine, 1, 2)
    await machine.asks((WWW, 1))
    gone = f"{machine.root}/mnt {machine.root}/unmounted"
    machine.does("web", "reload", f"mv {gone}; rm runs")
    machine.does("web", "start", "cat ../etc/live/*/privkey.pem > /dev/null || exit 1")

    answer = await machine.asks((WWW, 2))

    assert (answer["rolled_back"], states(answer)) == (True, {"web": "down"})
    assert (pointer(machine), (machine.root / "web" / "runs").exists()) == (copied(1), True)
    assert machine.live() == machine.staged_fingerprint(WWW, 1)


async def test_no_service_is_reloaded_onto_another_pair_that_dangles(machine: Machine) -> None:
    """Its other certificate was in place, and the share is gone: both are copies before anything is tested."""
    machine.does("web", "test", "cat ../etc/live/*/privkey.pem > /dev/null || exit 1")
    offer(machine, 1)
    offer(machine, 1, name=MAIL)
    await machine.asks((MAIL, 1))
    machine.unmount()

    answer = await machine.asks((WWW, 1))

    assert (answer["problem"], answer["rolled_back"]) == (None, False)
    assert (pointer(machine), pointer(machine, MAIL)) == (copied(1), copied(1, MAIL))


async def test_a_pair_that_only_the_lost_share_had_gives_way_to_a_placeholder(machine: Machine) -> None:
    """Better than a server that does not start, and every other name with it."""
    offer(machine, 1)
    offer(machine, 1, name=MAIL)
    await machine.asks((MAIL, 1))
    machine.unmount()
    shutil.rmtree(machine.root / "state" / "bundles" / MAIL)

    answer = await machine.asks((WWW, 1))

    assert (answer["problem"], machine.installer.current(MAIL)) == (None, 0)


async def test_a_copy_moves_to_the_share_when_the_same_is_asked_again(machine: Machine) -> None:
    """Which is what the agent does once the share is back; and the other way when the config says copy."""
    offer(machine, 1)
    machine.unmount()
    await machine.asks((WWW, 1))
    machine.mount_again()
    before = pointer(machine)
    await machine.asks((WWW, 1))
    there = pointer(machine)
    machine.path.write_text(machine.path.read_text().replace('install = "in-place"\n', ""))
    await machine.asks((WWW, 1))

    assert (before, there, pointer(machine)) == (copied(1), mounted(1), copied(1))


async def test_a_placeholder_is_local(machine: Machine) -> None:
    """Nobody publishes one."""
    await machine.asks((WWW, 0))

    assert pointer(machine).startswith(f"../generations/{WWW}/placeholder-")


def test_a_journal_knows_a_mounted_pointer(machine: Machine) -> None:
    """Cut off inside the config test, the next request whose test fails brings the former mounted one back."""
    offer(machine, 1, 2)
    offer(machine, 1, name=MAIL)
    swap(machine, WWW, 1)
    machine.does("web", "test", "kill -9 $PPID; exit 1")
    code = in_child(lambda: (swap(machine, WWW, 2), None)[1])
    cut = pointer(machine)
    machine.does("web", "test", "exit 1")

    answer = swap(machine, MAIL, 1)

    assert (code, cut, answer.rolled_back) == (-signal.SIGKILL, mounted(2), True)
    assert (pointer(machine), machine.live(MAIL)) == (mounted(1), None)


# The boot unit


def boots(machine: Machine) -> dict[str, int]:
    return boot.lay_all(config.load(machine.path), lambda: NOW, deadline=monotonic() + 10)


def test_boot_starts_services_on_what_was_in_place_without_the_share(machine: Machine) -> None:
    """The proven bundle that the agent has staged becomes a copy; the newer one was only tried."""
    offer(machine, 1, 2)
    swap(machine, WWW, 1)
    swap(machine, WWW, 2)
    machine.outcomes(g1=("proven", 1), g2=("trying", 2))
    machine.unmount()

    assert boots(machine) == {WWW: 1}
    assert (pointer(machine), machine.live()) == (copied(1), machine.staged_fingerprint(WWW, 1))
    assert boots(machine) == {WWW: 1}


def test_boot_completes_a_copy_that_a_power_cut_left_unfinished(machine: Machine) -> None:
    """What was proven is laid from its bundle, though a newer one, only tried, is whole."""
    offer(machine, 1, 2)
    swap(machine, WWW, 2)
    machine.outcomes(g1=("proven", 1), g2=("trying", 2))
    machine.unmount()
    boots(machine)
    (machine.root / "etc" / "generations" / WWW / "1" / "fullchain.pem").unlink()

    assert boots(machine) == {WWW: 1}
    assert (pointer(machine), machine.live()) == (copied(1), machine.staged_fingerprint(WWW, 1))


def test_boot_does_not_look_whether_the_share_is_there(machine: Machine) -> None:
    """A mount may hang for minutes: a copy is laid, and the agent leads back to the share when it has looked."""
    offer(machine, 1)
    swap(machine, WWW, 1)
    machine.outcomes(g1=("proven", 1))

    assert boots(machine) == {WWW: 1}
    assert pointer(machine) == copied(1)


def test_boot_lays_a_placeholder_where_nothing_is_on_the_local_disk(machine: Machine) -> None:
    """Neither a copy nor a bundle: the service starts, and the status is red."""
    offer(machine, 1)
    swap(machine, WWW, 1)
    shutil.rmtree(machine.root / "state" / "bundles")

    assert boots(machine) == {WWW: 0}
    assert machine.live() is not None


@pytest.mark.parametrize("what", ["forged", "not enrolled"])
def test_boot_believes_staged_bundles_no_more_than_the_privileged_half_does(
    machine: Machine, what: str
) -> None:
    """The agent's user owns them; without what root has pinned nothing of them is believed."""
    offer(machine, 1)
    swap(machine, WWW, 1)
    machine.outcomes(g1=("proven", 1))
    if what == "forged":
        (machine.root / "state" / "bundles" / WWW / "1" / "privkey.pem").write_bytes(pki.make_key())
    else:
        shutil.rmtree(machine.root / "trust")

    assert boots(machine) == {WWW: 0}


def test_boot_of_a_copying_consumer_lays_nothing_that_was_never_installed(machine: Machine) -> None:
    """A bundle that was staged and not tried is nothing to start on there."""
    machine.path.write_text(machine.path.read_text().replace('install = "in-place"\n', ""))
    offer(machine, 1, 2)
    swap(machine, WWW, 1)

    assert boots(machine) == {WWW: 1}


# What the unprivileged half sees


class Watched:
    """Whereabouts of pointers that a test moves, with a clock that it turns."""

    def __init__(self, machine: Machine) -> None:
        self.now = NOW
        self.shelf = Shelf(machine.mount, "web1", machine.root / "state" / "shelf.lock")
        self.pointers = machine.installer.pointers
        self.are = Whereabouts(
            self.shelf, self.pointers, clock=lambda: self.now, interval=timedelta(seconds=30)
        )

    def misplaced(self) -> frozenset[str]:
        return self.are.misplaced(self.pointers())


async def test_a_pair_is_misplaced_as_long_as_share_and_pointer_disagree(machine: Machine) -> None:
    """Hidden by the share, or copied although it is shown; and nothing before the first look."""
    offer(machine, 1)
    await machine.asks((WWW, 1))
    watched = Watched(machine)
    try:
        unseen = watched.misplaced()
        await watched.are.look()
        in_place = watched.misplaced()
        machine.unmount()
        await watched.are.look()
        hidden = watched.misplaced()
        machine.installer.point(WWW, Laid("1", 1))
        as_copy = watched.misplaced()
        machine.mount_again()
        await watched.are.look()
        shown = watched.misplaced()
    finally:
        await watched.shelf.stop()

    assert (unseen, in_place, hidden, as_copy, shown) == (set(), set(), {WWW}, set(), {WWW})


async def test_what_the_privileged_half_decides_otherwise_waits_longer_each_time(machine: Machine) -> None:
    """Root may not see what the agent sees; a reload at every look would be worse than a copy. A change starts anew."""
    offer(machine, 1)
    machine.installer.point(WWW, Laid("1", 1))
    watched = Watched(machine)
    waits = []
    try:
        await watched.are.look()
        for _ in range(3):
            assert watched.misplaced() == {WWW}
            watched.are.tried([WWW])
            began = watched.now
            while not watched.misplaced():
                watched.now += timedelta(seconds=30)
            waits.append(watched.now - began)
        watched.are.tried([WWW])
        machine.unmount()
        await watched.are.look()
        machine.mount_again()
        await watched.are.look()
        after_a_change = watched.misplaced()
    finally:
        await watched.shelf.stop()

    assert waits == [timedelta(minutes=1), timedelta(minutes=2), timedelta(minutes=4)]
    assert after_a_change == {WWW}


async def test_a_look_at_many_goes_on_where_the_last_one_ended(machine: Machine) -> None:
    """A look is bounded; after enough of them each has had its turn."""
    names = [f"n{number:03}.example.org" for number in range(120)]
    for name in names:
        machine.installer.point(name, Laid("1", 1, "generations"))
    (machine.mount / "generations").mkdir()
    watched = Watched(machine)
    found = []
    try:
        for _ in range(3):
            await watched.are.look()
            found.append(len(watched.misplaced()))
    finally:
        await watched.shelf.stop()

    assert found == [50, 100, 120]


async def test_a_sealed_key_and_a_copying_consumer_have_nothing_in_place(machine: Machine) -> None:
    """The one is shown by the share and can be read by no service; the other takes back what once was in place."""
    offer(machine, 1)
    _sealed(machine)
    machine.installer.point(WWW, Laid("1", 1))
    watched = Watched(machine)
    try:
        await watched.are.look()
        sealed = watched.misplaced()
    finally:
        await watched.shelf.stop()
    copying = Whereabouts(None, watched.pointers, clock=lambda: NOW, interval=timedelta(seconds=30))
    machine.installer.point(WWW, Laid("1", 1, "generations"))
    await copying.look()

    assert (sealed, copying.misplaced(watched.pointers())) == (set(), {WWW})
