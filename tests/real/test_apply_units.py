"""The privileged half and the boot unit as systemd runs them, sandbox and all, with Apache, Postfix, Dovecot and HAProxy."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from certfan import pki
from certfan.agent.identity import Trust, write_trust
from certfan.core.model import Custody
from certfan.protocol import manifest
from tests.lab import apache, machine, mail
from tests.lab.lab import Lab
from tests.lab.network import Network, Seat
from tests.lab.project import OPT, install_units, lay_opt, link_command
from tests.lab.vm import Vm

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(machine.capabilities()), reason="; ".join(machine.capabilities())),
]

WEB, MAIL, PROXY = "example.test", "mail.example.test", "proxy.test"
SERVICES = ["apache2.service", "postfix.service", "dovecot.service", "haproxy.service"]
AGENT = """
[[service]]
name = "apache2"
recipe = "apache2"
certificates = ["example.test", "*.shop.test"]
endpoints = [{ address = ["10.61.0.20", "fd61::20"] }]

[[service]]
name = "postfix"
recipe = "postfix"
certificates = ["mail.*", "mail.example.test"]
endpoints = [{ address = "10.61.0.20" }]

[[service]]
name = "dovecot"
recipe = "dovecot"
certificates = ["mail.*"]
endpoints = [{ address = "10.61.0.20" }]

[[service]]
name = "haproxy"
recipe = "haproxy"
certificates = ["proxy.test"]
endpoints = [{ address = "10.61.0.20", port = 8443, protocol = "tls" }]
"""
HAPROXY = """\
defaults
    mode http
    timeout client 5s
    timeout server 5s
    timeout connect 5s
frontend web
    bind 10.61.0.20:8443 ssl crt /etc/certfan/live/proxy.test/haproxy.pem
    http-request return status 200 content-type text/plain string served
"""
ASK = """
import asyncio, sys
from pathlib import Path
from certfan.agent.privileged import Privileged
pairs = [(word.split("@")[0], int(word.split("@")[1])) for word in sys.argv[1:]]
answer = asyncio.run(Privileged(Path("/run/certfan-apply/apply.sock")).apply(pairs))
print(answer.encode().decode())
"""
PROBE = """
import asyncio, json, sys
from certfan.probe import probe
async def all_of_them():
    return [(await probe(protocol, address, port, name)).fingerprint for name, protocol, address, port in json.loads(sys.argv[1])]
print(json.dumps(asyncio.run(all_of_them())))
"""
STAGE = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
for name, data in json.load(sys.stdin).items():
    (folder / name).write_bytes(bytes.fromhex(data))
"""
ENDPOINTS = [
    (WEB, "tls", "10.61.0.20", 443),
    (WEB, "tls", "fd61::20", 443),
    (MAIL, "smtp", "10.61.0.20", 25),
    (MAIL, "imap", "10.61.0.20", 143),
    (MAIL, "tls", "10.61.0.20", 993),
]


class Consumer:
    """One VM with three services, certfan's units, and the daemon's signing key outside of it."""

    def __init__(self, lab: Lab) -> None:
        self.vm = Vm(lab, "web1")
        now = datetime.now(UTC)
        self._ca = pki.InternalCA.create("home", now)
        self._signer = self._ca.issue_signer(now)
        self._opt = lay_opt(lab)

    def boot(self) -> None:
        units = ["certfan-apply.socket", "certfan-agent-boot.service", *SERVICES]
        self.vm.boot(units, self._lay, [self._opt])

    def _lay(self, root: Path) -> None:
        link_command(root)
        install_units(root)
        apache.configure(root, (apache.Site(WEB),))
        mail.configure(root)
        (root / "etc/haproxy/haproxy.cfg").write_text(HAPROXY)
        write_trust(
            root / "etc/certfan", Trust("home", "web1", "10.62.0.10:8443", self._ca.cert_pem.decode())
        )
        (root / "etc/certfan/agent.toml").write_text(AGENT)

    def stage(self, certificate: str, generation: int) -> str:
        """Stage a genuine bundle as the agent's user would; return its fingerprint."""
        pair = pki.load_pair(*pki.make_placeholder([certificate], datetime.now(UTC)))
        bundle = manifest.pack(
            pair,
            pair.key_pem,
            fleet="home",
            consumer="web1",
            certificate=certificate,
            generation=generation,
            custody=Custody.SHARE,
            signer_key_pem=self._signer.key_pem,
            signer_cert_pem=self._signer.cert_pem,
        )
        folder = f"/var/lib/certfan-agent/bundles/{certificate}/{generation}"
        said = json.dumps({name: data.hex() for name, data in bundle.items()})
        self.as_agent(["python3", "-c", STAGE, folder], said)
        return pair.leaf.fingerprint

    def as_agent(self, argv: list[str], said: str | None = None) -> str:
        words = ["setpriv", "--reuid=certfan-agent", "--regid=certfan-agent", "--init-groups", *argv]
        return self.vm.run(words, input=said).stdout

    def ask(self, *pairs: str) -> dict[str, Any]:
        """Ask over the socket that systemd listens on."""
        answer: dict[str, Any] = json.loads(self.as_agent([f"{OPT}/bin/python", "-P", "-c", ASK, *pairs]))
        return answer

    def is_placeholder(self, endpoint: tuple[str, str, str, int]) -> bool:
        """Whether an endpoint shows the placeholder that is laid for its name."""
        live = f"/etc/certfan/live/{endpoint[0]}"
        laid = pki.read_leaf(self.vm.run(["cat", f"{live}/cert.pem"]).stdout.encode())
        return laid.placeholder and self.served([endpoint]) == [laid.fingerprint]

    def served(self, endpoints: Sequence[tuple[str, str, str, int]] = ENDPOINTS) -> list[str]:
        """Return the fingerprint that each endpoint serves."""
        argv = [f"{OPT}/bin/python", "-P", "-c", PROBE, json.dumps(endpoints)]
        found: list[str] = json.loads(self.vm.run(argv).stdout)
        return found


@pytest.fixture(scope="module")
def consumer() -> Iterator[Consumer]:
    lab = Lab()
    lab.start()
    try:
        Network(lab, [Seat("web1", 20)]).up()
        consumer = Consumer(lab)
        consumer.boot()
        yield consumer
    finally:
        lab.down()


def test_boot_lays_placeholders_before_the_services_start(consumer: Consumer) -> None:
    """Nothing was assigned yet, and Apache, which dies of a missing file, runs."""
    live = consumer.vm.run(
        ["readlink", f"/etc/certfan/live/{WEB}", f"/etc/certfan/live/{MAIL}"]
    ).stdout.split()

    assert consumer.vm.failed_units() == []
    assert [path.rpartition("/")[2].partition("-")[0] for path in live] == ["placeholder"] * 2
    assert len(consumer.served()) == len(ENDPOINTS)


def test_a_request_of_the_agents_user_brings_pairs_live_in_three_services(consumer: Consumer) -> None:
    """Config tests and reloads work inside the sandbox, for Apache's sockets and Postfix's spool alike."""
    web, post = consumer.stage(WEB, 1), consumer.stage(MAIL, 1)

    answer = consumer.ask(f"{WEB}@1", f"{MAIL}@1")

    assert answer["problem"] is None, answer
    assert {one["name"]: one["state"] for one in answer["services"]} == {
        "apache2": "reloaded",
        "postfix": "reloaded",
        "dovecot": "reloaded",
        "haproxy": "unconcerned",
    }
    machine.wait_until(
        lambda: consumer.served() == [web, web, post, post, post], "every endpoint to serve it", 10
    )


def test_haproxy_starts_on_its_one_pem_and_takes_renewals_by_its_unit(consumer: Consumer) -> None:
    """The placeholder was there before it started; each generation comes with one reload of the master."""
    endpoint = (PROXY, "tls", "10.61.0.20", 8443)
    began_with_placeholder = consumer.is_placeholder(endpoint)
    master = consumer.vm.run(["systemctl", "show", "-p", "MainPID", "haproxy"]).stdout
    answers = []
    for number in (1, 2):
        laid = consumer.stage(PROXY, number)
        answers.append(consumer.ask(f"{PROXY}@{number}"))
        machine.wait_until(lambda laid=laid: consumer.served([endpoint]) == [laid], "HAProxy to serve it", 10)  # type: ignore[misc]

    assert began_with_placeholder
    assert [answer["problem"] for answer in answers] == [None, None]
    assert consumer.vm.run(["systemctl", "show", "-p", "MainPID", "haproxy"]).stdout == master


def test_a_broken_config_is_told_and_nothing_served_changes(consumer: Consumer) -> None:
    """Apache's own words are in the answer; the group is back where it was, and heals with the config."""
    before = consumer.served()
    consumer.stage(WEB, 2)
    consumer.vm.run(["sh", "-c", "echo 'NoSuchDirective on' > /etc/apache2/sites-enabled/broken.conf"])
    answer = consumer.ask(f"{WEB}@2")
    consumer.vm.run(["rm", "/etc/apache2/sites-enabled/broken.conf"])

    assert (answer["problem"]["code"], answer["rolled_back"]) == ("service.config_test_failed", True)
    assert "NoSuchDirective" in answer["problem"]["output"]
    assert (answer["installed"], consumer.served()) == ({WEB: 1}, before)
    assert consumer.ask(f"{WEB}@2")["installed"] == {WEB: 2}


def test_a_name_assigned_for_the_first_time_has_its_placeholder_before_its_vhost_is_loaded(
    consumer: Consumer,
) -> None:
    """The admin wrote the vhost beforehand: Apache cannot load it as long as its files are missing."""
    site = apache.vhosts(apache.Site("www.shop.test", certificate="www.shop.test"))
    consumer.vm.run(["tee", "/etc/apache2/sites-enabled/shop.conf"], input=site)
    refused = consumer.vm.run(["apache2ctl", "configtest"], check=False)

    answer = consumer.ask("www.shop.test@0")

    assert refused.returncode != 0
    assert (answer["problem"], answer["installed"]) == (None, {"www.shop.test": 0})
    shop = ("www.shop.test", "tls", "10.61.0.20", 443)
    machine.wait_until(lambda: consumer.is_placeholder(shop), "Apache to serve the placeholder", 10)


def test_postfix_that_was_killed_is_started_with_the_new_pair(consumer: Consumer) -> None:
    """Debian's postfix.service is active whatever happens; the instance's unit is what counts."""
    consumer.vm.run(["systemctl", "kill", "-s", "KILL", "postfix@-.service"])
    machine.wait_until(lambda: not consumer.vm.listens(25), "postfix to be gone", 10)
    state = consumer.vm.run(["systemctl", "is-active", "postfix@-.service"], check=False).stdout.strip()
    post = consumer.stage(MAIL, 2)

    answer = consumer.ask(f"{MAIL}@2")

    assert {one["name"]: one["state"] for one in answer["services"]}["postfix"] == "reloaded", (state, answer)
    machine.wait_until(lambda: consumer.served()[2:] == [post] * 3, "every endpoint to serve it", 10)


def test_a_service_that_the_admin_stopped_stays_stopped(consumer: Consumer) -> None:
    """The pair is laid for its next start, and that is no failure."""
    consumer.vm.run(["systemctl", "stop", "dovecot.service"])
    consumer.stage(MAIL, 3)
    answer = consumer.ask(f"{MAIL}@3")
    active = consumer.vm.run(["systemctl", "is-active", "dovecot.service"], check=False).stdout.strip()
    consumer.vm.run(["systemctl", "start", "dovecot.service"])

    assert (answer["problem"], answer["installed"], active) == (None, {MAIL: 3}, "inactive")
    assert {one["name"]: one["state"] for one in answer["services"]}["dovecot"] == "down"


def test_after_a_power_cut_services_start_on_what_was_proven(consumer: Consumer) -> None:
    """The boot unit goes by the agent's notes; nothing needs the network or the daemon."""
    noted = {
        WEB: {
            "1": {"state": "proven", "at": "2026-01-01T00:00:00Z"},
            "2": {"state": "trying", "at": "2026-01-02T00:00:00Z"},
        }
    }
    script = "import sys; open('/var/lib/certfan-agent/outcomes.json', 'w').write(sys.stdin.read())"
    consumer.as_agent(["python3", "-c", script], json.dumps(noted))
    first = pki.read_leaf(
        consumer.vm.run(["cat", f"/etc/certfan/generations/{WEB}/1/cert.pem"]).stdout.encode()
    )
    mail_before = consumer.served()[2:]
    consumer.vm.run(["sync"])
    consumer.vm.power_cut()
    consumer.vm.boot()

    assert consumer.vm.failed_units() == []
    assert (
        consumer.vm.run(["readlink", f"/etc/certfan/live/{WEB}"]).stdout.strip() == f"../generations/{WEB}/1"
    )
    assert consumer.served() == [first.fingerprint] * 2 + mail_before
