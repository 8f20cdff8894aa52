"""Bad input to the real parts: each error names the thing and what to try, loses nothing, and heals by itself.

Every test leaves the fleet well: all proven, nothing to complain of.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.lab import machine
from tests.lab.fleet import ENDPOINTS, NAME, Fleet
from tests.lab.vm import Vm

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

MAIN_CONFIG = "/etc/certfan/certfan.toml"
SOON = 30.0  # seconds in which anything heals that spends nothing at the authority
CERTIFICATE = '[[certificate]]\nnames = ["{}"]\nconsumers = ["web1"]\n'
CONF_D = "/etc/certfan/conf.d"
STATE = "/var/lib/certfan"
IDENTITY = "/var/lib/certfan-agent/identity"
SITES = "/etc/apache2/sites-available/farm.conf"
BROKEN_APACHE = "/etc/apache2/conf-enabled/zz-broken.conf"


class Told:
    """What the parts have said since this was made."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._since = int(time.time())
        self._after = fleet.events(-1)[-1]["id"]

    def log(self, vm: Vm, unit: str, event: str) -> list[Mapping[str, Any]]:
        """The lines of a unit's log about one event."""
        shown = vm.run(["journalctl", "-u", unit, "-o", "cat", f"--since=@{self._since}"]).stdout
        lines = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def daemon(self, event: str) -> Mapping[str, Any]:
        """The daemon's last line about one event."""
        machine.wait_until(lambda: self.log(self._fleet.cert, "certfan", event), f"{event} in the log", SOON)
        return self.log(self._fleet.cert, "certfan", event)[-1]

    def events(self, name: str) -> list[Mapping[str, Any]]:
        """The events of that name in the daemon's journal."""
        return [one for one in self._fleet.events(self._after) if one["name"] == name]


@pytest.fixture
def told(fleet: Fleet) -> Told:
    return Told(fleet)


@pytest.fixture(autouse=True)
def well(fleet: Fleet) -> Iterator[None]:
    """However a test ends, the next one finds the fleet well, and every key that there was."""
    keys = _keys(fleet)
    yield
    fleet.cert.run(["sh", "-c", f"rm -f {CONF_D}/bad.toml"])
    fleet.wait_proven()
    machine.wait_until(lambda: not _problems(fleet), "no problem to be left", 70)
    assert keys.items() <= _keys(fleet).items()


def _keys(fleet: Fleet) -> dict[str, str]:
    """The hash of every private key in the daemon's state, by path."""
    shown = fleet.cert.run(
        ["sh", "-c", f"sha256sum {STATE}/accounts/*.pem {STATE}/generations/*.privkey.pem"]
    )
    return {path: digest for digest, path in (line.split() for line in shown.stdout.splitlines())}


def _problems(fleet: Fleet) -> list[Mapping[str, str]]:
    return list(fleet.get("/api/v1/status")["problems"])


def _problem(fleet: Fleet, subject: str, code: str, timeout: float = SOON) -> Mapping[str, str]:
    """Wait until the status page tells of a problem, and return it."""

    def found() -> list[Mapping[str, str]]:
        return [one for one in _problems(fleet) if (one["subject"], one["code"]) == (subject, code)]

    try:
        machine.wait_until(found, f"{code} of {subject} in the status", timeout)
    except machine.NotInTime as why:
        raise AssertionError(f"{why}; there is {_problems(fleet)}") from why
    return found()[0]


def _generation(fleet: Fleet, name: str) -> int:
    try:
        return fleet.certificate(name)["generation"] or 0
    except KeyError:  # the config that names it is not in force yet
        return 0


def _wait_issued(fleet: Fleet, name: str, number: int = 1, timeout: float = SOON) -> None:
    machine.wait_until(lambda: _generation(fleet, name) >= number, f"{name}@{number} to be issued", timeout)


def _all_proven(fleet: Fleet, name: str = NAME) -> bool:
    return {row["verdict"] for row in fleet.certificate(name)["endpoints"]} == {"proven"}


def _shown(fleet: Fleet, consumer: str) -> set[tuple[str, int]]:
    """Verdict and served generation of each endpoint of a consumer."""
    rows = [row for row in fleet.certificate()["endpoints"] if row["consumer"] == consumer]
    return {(row["verdict"], row["served"]["generation"]) for row in rows}


def _serials(fleet: Fleet) -> set[str]:
    """What openssl sees everywhere."""
    return {fleet.serial(endpoint) for endpoint in ENDPOINTS}


# Config


@pytest.mark.parametrize(
    ("name", "wrong", "told_of"),
    [
        ("n41.example.test", lambda good: good[: good.index("=") + 3], "line 2, column 10"),
        ("n45.example.test", lambda good: good + 'consumer = "web1"\n', "certificate[0].consumer"),
        (
            "n46.example.test",
            lambda good: good.replace("web1", "web2"),
            'no [consumer.web2], did you mean "web1"?',
        ),
    ],
    ids=["half written", "unknown key", "unknown consumer"],
)
def test_a_bad_config_is_named_and_the_good_one_stays(
    fleet: Fleet, told: Told, name: str, wrong: Callable[[str], str], told_of: str
) -> None:
    """The file and the place in it are told; what was configured is proven on; the finished file counts at once."""
    good = CERTIFICATE.format(name)
    fleet.write_config("bad", wrong(good))
    problem = _problem(fleet, "config", "config.invalid", 10)

    assert f"{CONF_D}/bad.toml: " in problem["detail"]
    assert told_of in problem["detail"]
    assert problem["hint"] == "run: certfan check"
    assert told.daemon("config.problem")["detail"] == problem["detail"]
    assert told.daemon("config.problem")["hint"] == problem["hint"]
    refused = fleet.cert.run(["certfan", "check"], check=False)
    assert (refused.returncode, told_of in refused.stderr) == (78, True)
    assert _all_proven(fleet)

    fleet.write_config("bad", good)
    _wait_issued(fleet, name)
    assert _problems(fleet) == []


@pytest.mark.parametrize(
    ("name", "mode"),
    [("n42.example.test", "0664"), ("n47.example.test", "0646")],
    ids=["by its group", "by others"],
)
def test_a_config_that_others_may_write_is_refused_until_they_may_not(
    fleet: Fleet, told: Told, name: str, mode: str
) -> None:
    """Nothing of it is taken, the remedy is the command to run, and running it is enough."""
    script = 'cat >"$1.new" && chmod "$2" "$1.new" && mv "$1.new" "$1"'
    bad = f"{CONF_D}/bad.toml"
    fleet.cert.run(["sh", "-c", script, "sh", bad, mode], input=CERTIFICATE.format(name))
    problem = _problem(fleet, "config", "config.too_open", 10)

    assert problem["detail"] == f"{bad} can be written by others (mode {mode})"
    assert problem["hint"] == f"run: chmod go-w {bad}"
    assert told.daemon("config.problem")["hint"] == problem["hint"]
    assert [one["name"] for one in fleet.get("/api/v1/status")["certificates"]] == [NAME]
    assert _all_proven(fleet)

    fleet.cert.run(problem["hint"].removeprefix("run: ").split())
    _wait_issued(fleet, name)


# The authority


def test_an_authority_that_is_cut_off_is_asked_again_by_itself(fleet: Fleet, told: Told) -> None:
    """The renewal waits, the old pair is proven on; back on the net, it goes on within half a minute."""
    before = fleet.wait_proven()
    old = fleet.certificate()["serial"]
    fleet.farm.network.cut("ca")
    try:
        fleet.renew()
        problem = _problem(fleet, NAME, "authority.unreachable", 60)
        # Beyond the early tries, so that only the look at the authority itself can be what heals it.
        machine.wait_until(lambda: _wait(fleet) > 40, "a wait of a minute", 90)
        assert fleet.certificate()["next"]["step"] == "issue"
        assert _serials(fleet) == {old}
        assert _all_proven(fleet)
    finally:
        fleet.farm.network.heal("ca")
    began = time.monotonic()
    assert fleet.wait_proven(before + 1, timeout=60) == before + 1
    took = time.monotonic() - began

    assert "authority pebble: no answer from ca.example.test:14000" in problem["detail"]
    assert problem["hint"].endswith("run: curl -v https://ca.example.test:14000/dir")
    failed = told.daemon("step.failed")
    assert {"code": "authority.unreachable", "hint": problem["hint"]}.items() <= failed.items()
    assert took < SOON + 10  # to be installed and proven takes its time too
    assert old not in _serials(fleet)


def _wait(fleet: Fleet) -> float:
    """Return the seconds until the next try."""
    at = fleet.certificate()["next"]["at"]
    return (datetime.fromisoformat(at) - datetime.now(UTC)).total_seconds() if at else 0.0


def test_an_authority_that_lost_our_account_gets_it_again_with_the_same_key(fleet: Fleet, told: Told) -> None:
    """A restarted Pebble knows nobody: registered anew at once, by the key that there is."""
    before = fleet.wait_proven()
    keys = _keys(fleet)
    fleet.farm.pebble.stop()
    fleet.farm.pebble.start()
    fleet.trust_authority()  # it has new roots

    fleet.renew()
    assert fleet.wait_proven(before + 1) == before + 1

    lost = told.daemon("account.lost")
    assert "accountDoesNotExist" in lost["detail"]
    assert lost["hint"] == "registered again by itself, with the same key"
    assert len(told.events("account.registered")) == 1
    account = f"{STATE}/accounts/pebble.pem"
    assert keys[account] == _keys(fleet)[account]
    assert told.events("step.failed") == []


def test_a_name_that_the_authority_refuses_is_named_and_holds_up_nothing_else(
    fleet: Fleet, told: Told, request: pytest.FixtureRequest
) -> None:
    """One order, one back-off; the certificate is there as soon as the config no longer names it, with its key."""
    request.addfinalizer(lambda: fleet.cert.run(["sed", "-i", "/^self_check/d", MAIN_CONFIG]))
    # The name is at no address, which our own check would say before the authority is asked.
    fleet.cert.run(["sed", "-i", '/^\\[http01\\]/a self_check = "off"', MAIN_CONFIG])
    text = CERTIFICATE.format("n43.example.test")
    fleet.write_config("bad", text.replace('test"]', 'test", "www.blocked.test"]'))
    problem = _problem(fleet, "n43.example.test", "authority.refused")
    refused = fleet.certificate("n43.example.test")

    assert "www.blocked.test" in problem["detail"]
    assert "rejectedIdentifier" in problem["detail"]
    assert problem["hint"] == "remove the name, or choose another authority for it"
    assert refused["next"]["at"] is not None
    assert refused["failures"] == 1
    failed = told.daemon("step.failed")
    assert {
        "subject": "n43.example.test",
        "code": problem["code"],
        "hint": problem["hint"],
    }.items() <= failed.items()
    assert _all_proven(fleet)

    fleet.write_config("bad", text)
    _wait_issued(fleet, "n43.example.test")
    assert fleet.certificate("n43.example.test")["generation"] == 1


def test_a_vhost_that_stops_forwarding_is_named_and_costs_no_order(fleet: Fleet, told: Told) -> None:
    """Our own look finds it before the authority could; mended, the name is ordered by itself, and once."""
    name, line = "n48.example.test", "Use le_proxy"
    broken = f"/ServerName {name}/,/<\\/VirtualHost>/s|{line}|# {line}|"
    fleet.web1.run(["cp", SITES, "/root/farm.conf"])
    try:
        fleet.web1.run(["sed", "-i", broken, SITES])
        fleet.web1.run(["systemctl", "reload", "apache2"])
        keys, orders = _keys(fleet), _orders(fleet)
        fleet.write_config("bad", CERTIFICATE.format(name))
        problem = _problem(fleet, name, "challenge.self_check_failed")
        # Some looks later there is still no order, and the path is told of once.
        machine.wait_until(lambda: _looked_again(fleet, name), "another look", SOON)
        view = fleet.certificate(name)
        spent = _orders(fleet) - orders
        made = _keys(fleet).keys() - keys.keys()
        told_broken = told.events("path.broken")
    finally:
        fleet.web1.run(["cp", "/root/farm.conf", SITES])
        fleet.web1.run(["systemctl", "reload", "apache2"])
    machine.wait_until(lambda: told.events("path.mended"), "the next look", 70)
    _wait_issued(fleet, name)

    assert problem["detail"].startswith(f"{name}: ")
    assert f"http://{name}/.well-known/acme-challenge/<probe> at " in problem["detail"]
    assert "le_proxy" in problem["hint"]
    assert [(name, problem["detail"])] == [(one["subject"], one["fields"]["detail"]) for one in told_broken]
    assert told.daemon("path.broken")["hint"] == problem["hint"]
    assert ("check_path", [name]) == (
        view["next"]["step"],
        [one["identifier"] for one in view["broken_paths"]],
    )
    assert (0, set()) == (spent, made)
    assert [name] == [one["subject"] for one in told.events("path.mended")]
    assert 1 == _orders(fleet) - orders
    assert told.events("step.failed") == []


def _orders(fleet: Fleet) -> int:
    """How many orders the authority was ever asked for."""
    return len(re.findall(r"Added order ", fleet.farm.pebble.log_path.read_text(errors="replace")))


def _looked_again(fleet: Fleet, name: str) -> bool:
    (path,) = fleet.certificate(name)["broken_paths"]
    return bool(path["looked_at"] > path["since"])


# The share


def test_an_unmounted_share_is_named_and_nothing_is_written_below_it(fleet: Fleet, told: Told) -> None:
    """The order goes on without it; mounted again, the generation is published and proven."""
    before = fleet.wait_proven()
    old = fleet.certificate()["serial"]
    fleet.cert.run(["umount", "-l", "/srv/le"])
    try:
        fleet.renew()
        problem = _problem(fleet, "share", "share.unavailable")
        _wait_issued(fleet, NAME, before + 1)
        lost = told.daemon("share.lost")
        ready = fleet.cert.run(["curl", "-s", "http://127.0.0.1:8056/readyz?verbose"]).stdout
        below = fleet.cert.run(["ls", "-A", "/srv/le"]).stdout
        assert _serials(fleet) == {old}
    finally:
        fleet.cert.run(["systemctl", "restart", "srv-le.mount"])
    assert fleet.wait_proven(before + 1) == before + 1

    assert below == ""
    assert problem["detail"] == "share /srv/le: is not mounted: only the bare directory is there"
    assert problem["hint"].startswith("look with: mount | grep -F ' /srv/le '")
    assert f"share: {problem['detail']}" in ready
    assert lost["hint"] == problem["hint"]
    assert told.daemon("share.found")
    assert len(told.events("order.created")) == 1


# Enrolment and identity


@pytest.fixture
def stranger(fleet: Fleet) -> Iterator[Callable[[str], tuple[int, str]]]:
    """Another machine that tries to enrol with a line; returns exit code and what it was told."""
    config = '[agent]\nstate = "/root/stranger/state"\ntrust = "/root/stranger/trust"\nuser = "root"\n'
    fleet.farm.host.run(
        ["sh", "-c", "mkdir -m 700 /root/stranger && cat >/root/stranger/agent.toml"], input=config
    )

    def enrol(line: str) -> tuple[int, str]:
        argv = ["certfan", "agent", "enrol", "--config", "/root/stranger/agent.toml", line]
        done = fleet.farm.host.run(argv, check=False)
        return done.returncode, done.stderr

    yield enrol
    fleet.farm.host.run(["rm", "-r", "/root/stranger"])


def _line(fleet: Fleet, consumer: str) -> str:
    printed = fleet.cert.run(["certfan", "consumer", "add", consumer]).stdout
    found = re.search(r"certfan1:\S+", printed)
    assert found, printed
    return found[0]


def test_a_wrong_line_enrols_nobody_and_ends_nobody(
    fleet: Fleet, told: Told, stranger: Callable[[str], tuple[int, str]]
) -> None:
    """A made-up token, a line cut short and the wrong CA are each told apart; web1 goes on as it was."""
    head, token, ca = _line(fleet, "web1").rsplit(":", 2)

    code, said = stranger(f"{head}:{'a' * len(token)}:{ca}")
    assert code == 1
    assert "enrolment token is not known" in said
    assert "try: certfan consumer add NAME" in said
    refused = told.daemon("request.refused")
    assert {"code": "channel.enrolment_refused", "path": "/v1/enrol"}.items() <= refused.items()
    assert "certfan consumer add NAME" in refused["hint"]
    for line in (f"{head}:{token}", f"{head}:{token}:{'0' * 64}", "certfan1:"):
        code, said = stranger(line)
        assert code == 1
        assert "try: " in said
    assert _heard_again(fleet, "web1")


def test_a_used_line_is_refused_to_another_machine_and_named(
    fleet: Fleet, told: Told, stranger: Callable[[str], tuple[int, str]]
) -> None:
    """Whoever comes second gets nothing; the machine that used it may repeat it, and is heard on."""
    line = _line(fleet, "web1")
    fleet.web1.run(["certfan", "agent", "enrol", line])

    code, said = stranger(line)
    assert code == 1
    assert "enrolment token of web1 is used" in said
    assert "try: certfan consumer add web1" in said
    (event,) = told.events("request.refused")
    assert event["subject"] == "web1"
    assert event["fields"]["hint"] == "run: certfan consumer add web1"
    fleet.web1.run(["certfan", "agent", "enrol", line])
    assert _heard_again(fleet, "web1")


def _heard_again(fleet: Fleet, consumer: str) -> bool:
    """Wait for another report of a consumer."""

    def heard_at() -> Any:
        return next(c["heard_at"] for c in fleet.get("/api/v1/status")["consumers"] if c["name"] == consumer)

    before = heard_at()
    machine.wait_until(lambda: heard_at() > before, f"another report of {consumer}", SOON)
    return True


ASK = """
import asyncio, json, sys
from pathlib import Path
from certfan.agent.link import Link
from certfan.errors import CertfanError
async def main():
    trust = json.loads(Path("/etc/certfan/fleet.json").read_text())
    async with Link(trust["address"], Path(sys.argv[1]), fleet=trust["fleet"], ca_pem=trust["ca"].encode()) as link:
        try:
            print(sorted(await link.bundle(sys.argv[2], 1)))
        except CertfanError as why:
            print(why.code, why.text)
asyncio.run(main())
"""


def test_a_consumer_does_not_get_what_is_another_ones(fleet: Fleet, told: Told) -> None:
    """web1's own identity asks for a bundle of mail1: refused, and the admin can see who asked for what."""
    name = "n44.example.test"
    fleet.write_config("bad", CERTIFICATE.format(name).replace("web1", "mail1"))
    _wait_issued(fleet, name)

    said = fleet.web1.run(["/opt/certfan/bin/python", "-c", ASK, IDENTITY, name]).stdout

    assert said.split()[0] == "channel.not_allowed"
    assert f"{name}@1 is not assigned to web1" in said
    refused = told.daemon("request.refused")
    assert refused["detail"] == f"{name}@1 is not assigned to web1"
    assert refused["hint"]
    (event,) = told.events("request.refused")
    assert (event["subject"], event["fields"]["code"]) == ("web1", "channel.not_allowed")


def test_an_agent_with_a_copied_identity_says_so_and_speaks_for_nobody(fleet: Fleet, told: Told) -> None:
    """mail1's machine with web1's certificate: silent, shown as unheard; with its own again, proven by itself."""
    stolen = {name: fleet.web1.run(["cat", f"{IDENTITY}/{name}.pem"]).stdout for name in ("key", "cert")}
    fleet.cert.run(["cp", "-a", IDENTITY, "/root/identity"])
    try:
        for name, text in stolen.items():
            fleet.cert.run(["sh", "-c", f"cat >{IDENTITY}/{name}.pem"], input=text)
        fleet.cert.run(["systemctl", "restart", "certfan-agent"])
        problem = _problem(fleet, "mail1", "consumer.unheard")
        away = told.log(fleet.cert, "certfan-agent", "daemon.away")[-1]
        web1 = [row for row in fleet.certificate()["endpoints"] if row["consumer"] == "web1"]
    finally:
        fleet.cert.run(["sh", "-c", f"cp -a /root/identity/*.pem {IDENTITY}/ && rm -r /root/identity"])

    assert problem["hint"] == "run on mail1: systemctl status certfan-agent"
    assert away["code"] == "channel.not_authenticated"
    assert (
        away["detail"] == f"{IDENTITY}/cert.pem is the identity of consumer web1, and this machine is mail1"
    )
    assert "certfan consumer add mail1" in away["hint"]
    assert {(row["endpoint"]["service"], row["verdict"]) for row in web1} == {("apache2", "proven")}
    machine.wait_until(lambda: _all_proven(fleet), "mail1 to be heard again", SOON)


# A service


def test_a_service_whose_config_test_fails_keeps_its_old_pair_and_heals(fleet: Fleet, told: Told) -> None:
    """The test's own words are in status and log; Apache serves on; mended, the new pair is proven soon."""
    before = fleet.wait_proven()
    old = fleet.certificate()["serial"]
    web = [endpoint for endpoint in ENDPOINTS if endpoint.port == 443]
    fleet.web1.run(["sh", "-c", f"echo NoSuchDirective On >{BROKEN_APACHE}"])
    try:
        fleet.renew()
        problem = _problem(fleet, f"{NAME}/web1", "service.config_test_failed")
        rows = [row for row in fleet.certificate()["endpoints"] if row["consumer"] == "web1"]
        tries = told.log(fleet.web1, "certfan-agent", "apply.failed")
        assert {fleet.serial(endpoint) for endpoint in web} == {old}
        machine.wait_until(lambda: _shown(fleet, "mail1") == {("proven", before + 1)}, "mail1 to go on", SOON)
    finally:
        fleet.web1.run(["rm", BROKEN_APACHE])
    assert fleet.wait_proven(before + 1, timeout=SOON + 10) == before + 1

    assert "config test of apache2" in problem["detail"]
    assert problem["hint"] == "run: apache2ctl configtest"
    assert {row["served"]["generation"] for row in rows} == {before}
    assert {"Invalid command 'NoSuchDirective'" in row["problem"]["output"] for row in rows} == {True}
    assert tries[0]["hint"] == problem["hint"]
    assert "NoSuchDirective" in tries[0]["output"]
    failed = told.daemon("deployment.failed")
    assert {"code": "service.config_test_failed", "hint": problem["hint"]}.items() <= failed.items()
    assert len(told.events("deployment.failed")) == 1
