"""A consumer that uses the share in place, beside one that copies: renewal, roll-back, a share that goes and comes.

On loopback, where a link plays web1's mount; test_in_place_gluster.py has a real one.
"""

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


class Web1:
    """web1, whose Apache reads its pairs on the share."""

    def __init__(self, place: Loopback) -> None:
        self.place = place
        self.home = place.layout.home("web1")
        self.mount = place.layout.mount("web1")
        self.apache = place.servers["apache2"]

    def pointer(self, consumer: str = "web1") -> str:
        return str((self.place.layout.home(consumer) / "installed/live" / NAME).readlink())

    def wait_for(self, pointer: str) -> None:
        machine.wait_until(lambda: self.pointer() == pointer, f"web1's pointer to be {pointer}", 20)

    def served(self) -> set[str]:
        """Return the serials that Apache shows."""
        return {self.place.serial(one) for one in self.place.endpoints if one.label.startswith("web1")}

    def unmount(self) -> None:
        self.mount.unlink()

    def mount_again(self) -> None:
        if not self.mount.is_symlink():
            self.mount.symlink_to(self.place.rundir / "share/web1")

    def end_agent(self) -> None:
        for half in ("agent", "apply"):
            machine.end(self.place.processes.pop(f"web1-{half}"))

    def tests_with(self, argv: str) -> str:
        """Replace Apache's config test in agent.toml, which root reads anew for each request; return what was there."""
        config = self.home / "agent.toml"
        before = config.read_text()
        config.write_text(re.sub(r"(?m)^test = .*$", f"test = {argv}", before))
        return before


def mounted(number: int) -> str:
    return f"../mounted/generations/{NAME}/{number}"


def copied(number: int) -> str:
    return f"../generations/{NAME}/{number}"


@pytest.fixture(scope="module")
def place() -> Iterator[Loopback]:
    with Loopback(probe_interval=3, nonce_reject=0, retry_after=0, in_place=["web1"]).up() as up:
        up.add_certificate()
        yield up


@pytest.fixture
def web1(place: Loopback) -> Web1:
    """web1 with the newest generation proven in place."""
    web1 = Web1(place)
    web1.wait_for(mounted(place.wait_proven()))
    return web1


def test_a_renewal_is_served_from_the_share_on_one_consumer_and_from_a_copy_on_the_other(web1: Web1) -> None:
    """Both are proven; on web1's own disk there is no pair of it, but the agent's verified bundle."""
    wanted = web1.place.wait_proven() + 1
    web1.place.renew()
    web1.place.wait_proven(wanted)

    assert (web1.pointer(), web1.served()) == (mounted(wanted), {web1.place.certificate()["serial"]})
    assert not (web1.home / "installed/generations" / NAME / str(wanted)).exists()
    assert (web1.home / "state/bundles" / NAME / str(wanted)).is_dir()
    if "mail1" in web1.place.layout.consumers:
        assert web1.pointer("mail1") == copied(wanted)


def test_a_pair_that_apache_refuses_goes_back_to_the_mounted_one(web1: Web1) -> None:
    """Nothing that is served changes, and the next generation is in place again."""
    former, serials = web1.place.wait_proven(), web1.served()
    live = web1.home / "installed/live" / NAME
    before = web1.tests_with(f'["sh", "-c", "readlink {live} | grep -q /{former}$ || exit 1"]')
    web1.place.renew()
    machine.wait_until(
        lambda: _problems(web1.place) == {"service.pair_refused"}, "the refusal to be told", 30
    )
    refused = web1.pointer(), web1.served()
    (web1.home / "agent.toml").write_text(before)
    web1.place.renew()
    web1.place.wait_proven(former + 2)

    assert refused == (mounted(former), serials)
    assert web1.pointer() == mounted(former + 2)


def test_while_the_share_is_away_apache_has_a_copy_and_then_the_share_again(web1: Web1) -> None:
    """Whoever restarts Apache meanwhile, as a rotated log does, finds its files; nothing else is served all along."""
    number, serials = web1.place.wait_proven(), web1.served()
    web1.unmount()
    try:
        web1.wait_for(copied(number))
        machine.run(web1.apache.test)
        machine.run(web1.apache.reload)
        served = web1.served()
    finally:
        web1.mount_again()
    web1.wait_for(mounted(number))

    assert (served, web1.served()) == (serials, serials)
    assert web1.place.wait_proven(number) == number


def test_a_boot_without_the_share_starts_apache_on_what_was_proven_and_never_looks_there(web1: Web1) -> None:
    """Not one system call of the boot unit goes to the share; back with it, Apache is led there again."""
    number = web1.place.wait_proven() + 1
    web1.place.renew()  # of this one there never was a copy
    web1.place.wait_proven(number)
    serials = web1.served()
    web1.end_agent()
    web1.apache.end()
    trace = web1.home / "trace"
    argv = ["certfan", "agent", "boot", "--config", str(web1.home / "agent.toml")]
    calls = ["strace", "-f", "-y", "-s", "4096", "-e", "trace=%file,read,getdents64", "-o", str(trace)]
    python = shutil.which("python3", path=str(Path(machine.PROJECT) / ".venv/bin"))
    assert python is not None
    machine.run([*calls, python, "-m", *argv])
    booted = web1.pointer()
    web1.unmount()
    try:
        web1.apache.begin(*web1.place.layout.ports_of(web1.apache))
        served = web1.served()
    finally:
        web1.mount_again()
        web1.place.start_agent("web1")
    web1.wait_for(mounted(number))
    web1.place.wait_proven(number)

    assert (booted, served) == (copied(number), serials)
    said = trace.read_text(errors="replace")
    there = rf"{web1.mount}|{web1.place.rundir}/share/|installed/live/{NAME}/|mounted/generations"
    looked = [line for line in said.splitlines() if re.search(there, line)]
    # What the config and the pointer say is told by those; neither is followed.
    assert [line for line in looked if "agent.toml" not in line and "readlink" not in line] == []
    assert f"state/bundles/{NAME}/{number}" in said


def _problems(place: Loopback) -> set[str]:
    rows = [row for row in place.certificate()["endpoints"] if row["consumer"] == "web1"]
    return {row["problem"]["code"] for row in rows if row["problem"]}
