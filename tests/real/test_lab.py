"""The farm itself, before certfan lives in it: every part is real, reachable, and gone afterwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.lab import machine
from tests.lab.farm import Farm
from tests.lab.lab import Lab
from tests.lab.network import Network
from tests.lab.project import install_units

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(machine.capabilities()), reason="; ".join(machine.capabilities())),
]

AUTHORITY = trustme.CA()
TOKEN = "/.well-known/acme-challenge/token-1"
STAND_IN = """[Service]
ExecStart=/usr/bin/python3 -m http.server 8055 --bind 10.62.0.10 --directory /srv/stand-in
"""


def _lay_pair(root: Path, certificate: str, *names: str) -> None:
    folder = root / "etc/certfan/live" / certificate
    folder.mkdir(parents=True)
    pair = AUTHORITY.issue_cert(*names)
    pair.private_key_pem.write_to_path(folder / "privkey.pem")
    for pem in pair.cert_chain_pems:
        pem.write_to_path(folder / "fullchain.pem", append=True)


def _cert_hook(root: Path) -> None:
    _lay_pair(root, "mail.example.test", "mail.example.test")
    answer = root / "srv/stand-in" / TOKEN.lstrip("/")
    answer.parent.mkdir(parents=True)
    answer.write_text("token-1.thumbprint")
    (root / "etc/systemd/system/stand-in.service").write_text(STAND_IN)


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    hooks = {
        "cert": _cert_hook,
        "web1": lambda root: _lay_pair(root, "example.test", "example.test", "*.example.test"),
    }
    units = {"cert": ["postfix.service", "dovecot.service"], "web1": ["apache2.service"]}
    with Farm(say=print).up(hooks=hooks, units=units) as farm:
        farm.cert.run(["systemctl", "start", "stand-in.service"])
        farm.cert.run(["mkdir", "-m", "755", "/srv/le/web1", "/srv/le/mail1"])
        farm.mount_consumers()
        machine.wait_until(lambda: farm.cert.listens(8055), "the stand-in to listen")
        AUTHORITY.cert_pem.write_to_path(farm.lab.rundir / "authority.pem")
        yield farm


def _served(farm: Farm, connect: str, name: str, starttls: str | None = None) -> str:
    """What s_client says about the verification of what a port serves, asked from the CA's machine."""
    words = ["-starttls", starttls] if starttls else []
    asked = farm.ca.run(
        ["openssl", "s_client", "-connect", connect, "-servername", name, "-verify_hostname", name, *words,
         "-CAfile", str(farm.lab.rundir / "authority.pem")],
        check=False, timeout=10,
    )  # fmt: skip
    verdicts = [
        line.strip() for line in asked.stdout.splitlines() if line.strip().startswith("Verify return code")
    ]
    return verdicts[0] if verdicts else asked.stdout + asked.stderr


def test_no_unit_has_failed(farm: Farm) -> None:
    """Every VM is booted with all of its units running."""
    assert {vm.name: vm.failed_units() for vm in (farm.cert, farm.web1, farm.host)} == {
        "cert": [],
        "web1": [],
        "host": [],
    }


@pytest.mark.parametrize("name", ["example.test", "v6.example.test", "n07.example.test"])
@pytest.mark.parametrize("address", ["10.61.0.20", "[fd61::20]"])
def test_a_challenge_reaches_the_responder_through_each_vhost_in_both_families(
    farm: Farm, name: str, address: str
) -> None:
    """The CA's machine gets the responder's answer from web1's port 80, whichever address it asks."""
    answer = farm.ca.run(["curl", "-sS", "--connect-to", f"{name}:80:{address}:80", f"http://{name}{TOKEN}"])

    assert answer.stdout == "token-1.thumbprint"


def test_a_name_with_aaaa_alone_is_reached_by_its_name(farm: Farm) -> None:
    """bind9 answers v6.example.test with web1's IPv6 address, and the challenge is answered there."""
    answer = farm.ca.run(["curl", "-sS", "-w", " from %{remote_ip}", f"http://v6.example.test{TOKEN}"])

    assert answer.stdout == "token-1.thumbprint from fd61::20"


def test_a_vhost_without_the_macro_does_not_forward_the_challenge(farm: Farm) -> None:
    """broken.example.test answers from its own files, where no challenge ever is."""
    answer = farm.ca.run(
        ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"http://broken.example.test{TOKEN}"]
    )

    assert answer.stdout == "404"


def test_everything_but_the_challenge_is_redirected_to_https(farm: Farm) -> None:
    """le_sslredir sends a page's visitor to https, where HSTS is announced."""
    trust = ["--cacert", str(farm.lab.rundir / "authority.pem")]
    answer = farm.ca.run(["curl", "-sSLI", *trust, "http://www.example.test/index.html"]).stdout

    assert "Location: https://www.example.test/index.html" in answer
    assert "Strict-Transport-Security: max-age=31536000; includeSubDomains" in answer


@pytest.mark.parametrize(
    ("connect", "name", "starttls"),
    [
        ("10.61.0.20:443", "example.test", None),
        ("[fd61::20]:443", "v6.example.test", None),
        ("mail.example.test:25", "mail.example.test", "smtp"),
        ("mail.example.test:143", "mail.example.test", "imap"),
        ("[fd61::10]:143", "mail.example.test", "imap"),
        ("mail.example.test:993", "mail.example.test", None),
    ],
)
def test_each_service_serves_its_pair_in_its_own_protocol(
    farm: Farm, connect: str, name: str, starttls: str | None
) -> None:
    """A handshake from outside verifies against the authority that the pairs are from."""
    assert _served(farm, connect, name, starttls) == "Verify return code: 0 (ok)"


def test_the_share_shows_a_consumer_its_own_directory_read_only(farm: Farm) -> None:
    """What cert writes for web1 appears there, what it writes for mail1 does not, and web1 cannot write."""
    farm.cert.run(["tee", "/srv/le/web1/seen"], input="by web1")
    farm.cert.run(["tee", "/srv/le/mail1/seen"], input="by mail1")

    assert farm.web1.run(["cat", "/srv/le/seen"]).stdout == "by web1"
    assert farm.cert.run(["cat", "/srv/le-mail1/seen"]).stdout == "by mail1"
    assert "Read-only file system" in farm.web1.run(["touch", "/srv/le/mine"], check=False).stderr


@pytest.mark.parametrize("what", ["le", "le/mail1"])
def test_a_consumer_cannot_mount_what_is_not_its_own(farm: Farm, what: str) -> None:
    """The server refuses web1 the whole volume and another consumer's directory."""
    where = f"/srv/try-{what.replace('/', '-')}"
    farm.web1.run(["mkdir", where])

    # mount itself may say 0: the client learns of the refusal after it has mounted, and ends.
    farm.web1.run(["mount", "-t", "glusterfs", f"host.int:/{what}", where], check=False)

    machine.wait_until(
        lambda: not farm.web1.run(["findmnt", where], check=False).stdout, "the client to give up"
    )
    log = f"/var/log/glusterfs/{where.strip('/').replace('/', '-')}.log"
    assert "Authentication failed" in farm.web1.run(["cat", log]).stdout


def test_the_ca_is_reached_by_its_name_and_trusted_by_its_own_root(farm: Farm) -> None:
    """From the cert VM the directory answers over a connection that verifies against Pebble's listener CA."""
    anchor = farm.pebble.ca_file.read_text()
    farm.cert.run(["tee", "/run/pebble-ca.pem"], input=anchor)

    assert (
        "newOrder"
        in farm.cert.run(["curl", "-sS", "--cacert", "/run/pebble-ca.pem", farm.pebble.directory_url]).stdout
    )
    assert farm.pebble.root_pem().startswith("-----BEGIN CERTIFICATE-----")


def test_the_environment_runs_inside_for_any_user(farm: Farm) -> None:
    """/opt/certfan holds a Python with the dependencies that an unprivileged user can start, and nobody can change."""
    nobody = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
    code = "import aiohttp, sys; print(sys.prefix)"

    assert farm.web1.run([*nobody, "/opt/certfan/bin/python", "-c", code]).stdout == "/opt/certfan\n"
    assert "Read-only file system" in farm.web1.run(["touch", "/opt/certfan/x"], check=False).stderr


def test_a_vm_comes_back_from_a_power_cut_with_its_disk_mount_and_service(farm: Farm) -> None:
    """After the cut web1 boots with what it had written, its share and its https."""
    farm.web1.run(["tee", "/var/lib/kept"], input="kept")

    farm.web1.power_cut()
    assert farm.web1.leader() is None
    farm.web1.boot()

    assert farm.web1.run(["cat", "/var/lib/kept"]).stdout == "kept"
    assert farm.web1.run(["cat", "/srv/le/seen"]).stdout == "by web1"
    assert _served(farm, "10.61.0.20:443", "example.test") == "Verify return code: 0 (ok)"
    assert farm.web1.journal("apache2.service").count("Started apache2.service") == 2


def test_the_share_outlives_a_power_cut_of_the_cert_vm(farm: Farm) -> None:
    """With one brick gone web1 still reads; when cert is back it writes again."""
    farm.gluster.wait_alike()  # what was written while a brick was still booting
    farm.cert.power_cut()
    assert farm.web1.run(["cat", "/srv/le/seen"]).stdout == "by web1"
    farm.cert.boot()

    farm.cert.run(["tee", "/srv/le/web1/later"], input="after the cut")
    assert farm.web1.run(["cat", "/srv/le/later"]).stdout == "after the cut"


def test_a_clean_stop_takes_a_vm_down_and_keeps_its_disk(farm: Farm) -> None:
    """A shut-down VM has no process left and boots again with its files."""
    farm.web1.run(["tee", "/var/lib/kept-too"], input="kept")

    farm.web1.stop()
    assert farm.web1.leader() is None
    farm.web1.boot()

    assert farm.web1.run(["cat", "/var/lib/kept-too"]).stdout == "kept"


def test_a_cut_cable_keeps_web1_from_the_ca_until_it_is_healed(farm: Farm) -> None:
    """Pulled out of the public bridge web1 is silent there, and back with both addresses after."""
    ask = ["curl", "-sS", "-m", "2", "-o", "/dev/null"]

    farm.network.cut("web1")
    assert farm.ca.run([*ask, "http://www.example.test/"], check=False).returncode != 0
    farm.network.heal("web1")

    for family in ("-4", "-6"):
        asked = [*ask, family, "http://www.example.test/"]
        machine.wait_until(lambda argv=asked: farm.ca.run(argv, check=False).returncode == 0, family)


def test_units_users_and_folders_of_the_project_reach_a_root(tmp_path: Path) -> None:
    """Shipped units are laid, and the users of sysusers exist before the VM boots."""
    shipped, root = tmp_path / "systemd", tmp_path / "root"
    for folder in (shipped, root / "etc/systemd/system"):
        folder.mkdir(parents=True)
    (shipped / "part.service").write_text("[Service]\nExecStart=true\n")
    (shipped / "part.sysusers.conf").write_text('u part-user - "a part"\n')
    (shipped / "part.tmpfiles.conf").write_text("d /run/part 0755 part-user\n")

    assert install_units(root, shipped) == ["part.service"]

    assert "part-user" in (root / "etc/passwd").read_text()
    assert (root / "etc/tmpfiles.d/part.conf").exists()
    assert (root / "etc/systemd/system/part.service").exists()


def test_two_labs_live_side_by_side(farm: Farm) -> None:
    """A second lab's network with the same addresses neither fails nor hears the first."""
    second = Lab()
    second.start()
    try:
        Network(second).up()
        probe = Network(second)["ca"].run(["curl", "-sS", "-m", "1", "http://10.61.0.20/"], check=False)
        assert probe.returncode != 0
    finally:
        second.down()

    assert second.leftovers() == []
    assert farm.web1.leader() is not None


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_farm_that_failed_half_way(failure: type[BaseException]) -> None:
    """A failure while the VMs boot removes what was there already, and down may be repeated."""

    def fail(_root: Path) -> None:
        raise failure("planted")

    farm = Farm()
    with pytest.raises(failure, match="planted"):
        farm.up(hooks={"web1": fail})
    farm.down()

    assert farm.lab.leftovers() == []


def test_zz_nothing_is_left_after_down(farm: Farm) -> None:
    """No namespace, mount, loop device, cgroup or folder of the farm outlives it."""
    assert farm.lab.leftovers() != []

    farm.down()

    assert farm.lab.leftovers() == []
