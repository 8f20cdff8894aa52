"""Consumer custody on loopback, every process real: the key stays where it was made, whatever is killed, lost or restored."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.lab import machine
from tests.lab.fleet import NAME
from tests.lab.loopback import Loopback
from tests.lab.loopback_layout import lacking

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(lacking()), reason=f"not installed: {', '.join(lacking())}"),
]
WEB1, STATE = "web1", "daemon/state"


@pytest.fixture(scope="module")
def place() -> Iterator[Loopback]:
    with Loopback(print).up() as up:
        up.add_custody("consumer", WEB1)
        up.wait_proven()
        yield up


def _keys(place: Loopback) -> list[Path]:
    return sorted((place.layout.home(WEB1) / "installed/keys" / NAME).iterdir())


def _with_a_key_of_web1(place: Loopback, folder: Path) -> list[Path]:
    """Return the files below a folder that hold one of the keys: as PEM, or its bare number in whatever else."""
    traces = []
    for path in _keys(place):
        pem = path.read_bytes()
        key = load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        traces += [pem.splitlines()[2], key.private_numbers().private_value.to_bytes(32)]
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if any(trace in path.read_bytes() for trace in traces)]


def _end(place: Loopback, *names: str) -> None:
    for name in names:
        machine.end(place.processes.pop(name))


def _kill(place: Loopback, *names: str) -> None:
    for name in names:
        process = place.processes.pop(name)
        process.kill()
        process.wait()


def _wait_said(place: Loopback, what: str) -> None:
    machine.wait_until(lambda: what in place.certfan("status"), f"the status to say: {what}", 60)


def test_the_key_is_nowhere_but_where_it_was_made(place: Loopback) -> None:
    """Share, daemon and the unprivileged half hold the chain alone; what is proven belongs to the key on the consumer."""
    home, live = place.layout.home(WEB1), place.rundir / "share" / WEB1 / "live" / NAME
    served = place.certificate()["serial"]
    manifest = json.loads((live / "manifest.json").read_bytes())
    elsewhere = [place.rundir / "share", place.rundir / "daemon", home / "state"]
    place.certfan("share", "verify")  # raises where it tells a difference

    assert [] == [path for folder in elsewhere for path in _with_a_key_of_web1(place, folder)]
    assert ["cert.pem", "chain.pem", "fullchain.pem"] == sorted(manifest["files"])
    assert "consumer" == manifest["custody"]
    assert not [path for path in live.iterdir() if path.name.startswith("privkey")]
    assert all(place.serial(seen) == served for seen in place.endpoints if seen.label.startswith(WEB1))
    assert [0o600] == [path.stat().st_mode & 0o777 for path in _keys(place)]
    assert _with_a_key_of_web1(place, home / "installed"), (
        "the negative control: where it was made it is found"
    )


def test_a_renewal_waits_for_its_consumer_and_goes_on_whatever_was_killed(place: Loopback) -> None:
    """The status names whom it waits for; killed on both sides meanwhile, one new key and one new generation come."""
    known, number = _keys(place), place.certificate()["generation"]
    _end(place, f"{WEB1}-apply")
    place.renew()
    _wait_said(place, f"waits for the CSR of {WEB1}")
    _kill(place, "daemon", f"{WEB1}-agent")
    place.start_daemon()
    place.start_agent(WEB1)
    proven = place.wait_proven(number + 1)

    assert number + 1 == proven
    assert len(known) + 1 == len(_keys(place))


def test_a_roll_back_needs_the_old_key_and_a_lost_one_is_replaced(place: Loopback) -> None:
    """Gone back to with the key at hand; without it the daemon orders with a new one, by itself."""
    first = place.certificate()["serial"]
    place.renew()
    number = place.wait_proven(place.certificate()["generation"] + 1)
    place.certfan("rollback", NAME)
    back = place.wait_proven(number + 1)
    serial = place.certificate()["serial"]
    _end(place, f"{WEB1}-apply", f"{WEB1}-agent")
    shutil.rmtree(place.layout.home(WEB1) / "installed/keys")
    for folder in (place.layout.home(WEB1) / "installed/generations" / NAME).iterdir():
        if folder.name != str(back):
            shutil.rmtree(folder)
    place.start_agent(WEB1)
    place.certfan("rollback", NAME, "--to", str(number))
    replaced = place.wait_proven(back + 2, timeout=90)

    assert (number + 1, first) == (back, serial)
    assert back + 2 == replaced
    assert 1 == len(_keys(place))


def test_a_daemon_restored_to_yesterday_asks_for_a_number_that_is_new(place: Loopback) -> None:
    """What was issued since the backup is not ordered again under its number, and the next renewal is proven."""
    yesterday = place.rundir / "yesterday"
    _end(place, "daemon")
    shutil.copytree(place.rundir / STATE, yesterday)
    place.start_daemon()
    place.renew()
    latest = place.wait_proven(place.certificate()["generation"] + 1)
    _end(place, "daemon")
    shutil.rmtree(place.rundir / STATE)
    yesterday.rename(place.rundir / STATE)
    place.start_daemon()
    place.renew()
    proven = place.wait_proven(latest + 1, timeout=90)

    assert latest < proven
    elsewhere = [place.rundir / "share", place.rundir / "daemon"]
    assert [] == [path for folder in elsewhere for path in _with_a_key_of_web1(place, folder)]
