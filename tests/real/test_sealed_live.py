"""Sealed custody on loopback, every process real: issued, published, opened by root, proven; enrolled anew; restored."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

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
        up.add_custody("sealed", WEB1)
        up.wait_proven()
        yield up


def _folders(place: Loopback) -> list[str]:
    return sorted(path.name for path in (place.rundir / "share" / WEB1 / "generations" / NAME).iterdir())


def _live(place: Loopback) -> str:
    return (place.rundir / "share" / WEB1 / "live" / NAME).readlink().name


def _bare_keys(folder: Path) -> list[Path]:
    """Return the files with a private key in the clear, however deep."""
    return [path for path in folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]


def _enrol_anew(place: Loopback) -> None:
    """Do what an admin does whose VM was made anew: the line of `consumer add`, and the agent as boot brings it."""
    home = place.layout.home(WEB1)
    for half in ("agent", "apply"):
        if process := place.processes.pop(f"{WEB1}-{half}", None):
            machine.end(process)
    line = re.search(r"certfan1:\S+", place.certfan("consumer", "add", WEB1))
    assert line
    place.certfan("agent", "enrol", line[0], config=home / "agent.toml")
    place.certfan("agent", "boot", config=home / "agent.toml")
    place.start_agent(WEB1)


def _wait_alone(place: Loopback, *but: str) -> str:
    """Wait until one bundle is there, another than `but`, and live leads to it; return it."""

    def alone() -> bool:
        (found, *others) = _folders(place)
        return not others and found == _live(place) and found not in but

    machine.wait_until(alone, "the key to be sealed anew, and the old bundle to go", 60)
    return _live(place)


def _booted(place: Loopback) -> bool:
    """Install what is staged; not while the agent is at it, which has missed the same files."""
    try:
        place.certfan("agent", "boot", config=place.layout.home(WEB1) / "agent.toml")
    except machine.CommandFailed as held:
        assert ".certfan-apply.lock is held by" in str(held)
        return False
    return True


def test_a_sealed_key_is_opened_by_root_alone_and_sealed_anew_for_a_new_enrolment(place: Loopback) -> None:
    """Nothing but privkey.hpke on share and staging; enrolled anew, or restored to yesterday, it is proven again."""
    first = _live(place)
    served = place.certificate()["serial"]
    staged = place.layout.home(WEB1) / "state/bundles" / NAME / "1"
    clear = [*_bare_keys(place.rundir / "share"), *_bare_keys(staged)]

    assert re.fullmatch(r"1\.[0-9a-f]{8}", first)
    assert [] == clear
    assert (place.rundir / "share" / WEB1 / "live" / NAME / "privkey.hpke").is_file()
    assert all(place.serial(seen) == served for seen in place.endpoints if seen.label.startswith(WEB1))
    assert _bare_keys(place.layout.home(WEB1) / "installed"), (
        "the negative control: what root opened is found"
    )

    yesterday = place.rundir / "yesterday"
    machine.end(place.processes.pop("daemon"))
    shutil.copytree(place.rundir / STATE, yesterday)
    place.start_daemon()
    _enrol_anew(place)
    second = _wait_alone(place, first)
    sealed = (place.rundir / "share" / WEB1 / "live" / NAME / "privkey.hpke").read_bytes()
    machine.wait_until(
        lambda: (staged / "privkey.hpke").read_bytes() == sealed, "the bundle to be fetched anew", 90
    )
    shutil.rmtree(place.layout.home(WEB1) / "installed")  # all that is left is sealed
    machine.wait_until(lambda: _booted(place), "the boot service to get its turn", 60)
    machine.end(place.processes.pop("daemon"))
    shutil.rmtree(place.rundir / STATE)
    yesterday.rename(place.rundir / STATE)
    place.start_daemon()
    third = _wait_alone(place, first, second)  # what it had sealed yesterday is no good either
    place.renew()
    place.wait_proven(2)

    assert 3 == len({first, second, third})
    assert re.fullmatch(r"2\.[0-9a-f]{8}", _live(place))
    assert [] == _bare_keys(place.rundir / "share")


def test_a_consumer_without_a_sealing_key_holds_up_itself_alone(place: Loopback) -> None:
    """The status says which command mends it, the order is carried meanwhile, and the command mends it."""
    machine.end(place.processes.pop("daemon"))
    machine.run(
        ["sqlite3", str(place.rundir / STATE / "certfan.db"), "update consumers set sealing_key = null"]
    )
    for half in ("agent", "apply"):
        machine.end(place.processes.pop(f"{WEB1}-{half}"))
    place.start_daemon()
    wanted = place.certificate()["generation"] + 1
    place.renew()

    def said() -> bool:
        told = place.certfan("status")
        return "has told no sealing key" in told and "certfan consumer add web1" in told

    machine.wait_until(said, "the status to say what is missing", 60)
    _enrol_anew(place)
    place.wait_proven(wanted)
