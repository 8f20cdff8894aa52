"""agent.toml: what it fills in, what it refuses, and where services are probed."""

import re
import typing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from certfan import probe
from certfan.agent import config_schema
from certfan.agent.check import Outlook, check
from certfan.agent.config import AgentConfig, endpoints_of, load
from certfan.agent.forms import Form, KeyFile, Layout
from certfan.agent.recipes import RECIPES
from certfan.agent.record import Record
from certfan.core.agent_steps import Assignment
from certfan.errors import ConfigInvalid, ConfigTooOpen

EXAMPLE = Path(__file__).parents[2] / "config" / "agent.toml"
APACHE = '[[service]]\nname = "apache2"\nrecipe = "apache2"\nendpoints = [{ address = "192.0.2.10" }]\n'


def read(folder: Path, text: str, *, with_systemd: bool = False) -> AgentConfig:
    path = folder / "agent.toml"
    path.write_text(text)
    path.chmod(0o644)
    return load(path, with_systemd=with_systemd)


def refused(folder: Path, text: str, *, with_systemd: bool = False) -> list[str]:
    with pytest.raises(ConfigInvalid) as caught:
        read(folder, text, with_systemd=with_systemd)
    return [problem.removeprefix(f"{folder / 'agent.toml'}: ") for problem in caught.value.problems]


@pytest.mark.parametrize("with_systemd", [True, False])
def test_the_example_is_a_good_config(tmp_path: Path, with_systemd: bool) -> None:
    """What is shipped is accepted as it stands."""
    config = read(tmp_path, EXAMPLE.read_text(), with_systemd=with_systemd)

    assert [service.name for service in config.services] == ["apache2", "postfix", "dovecot"]
    assert config.literal_names == ("mail.example.org",)


def test_the_examples_commented_lines_are_the_defaults(tmp_path: Path) -> None:
    """Taking away every `# ` before a key changes nothing but the hook."""
    text = EXAMPLE.read_text()
    spoken = re.sub(r"(?m)^# (?=[a-z_]+ = )", "", text[: text.index("# A service without a recipe")])
    config = read(tmp_path, spoken, with_systemd=True)
    apache2 = config.services[0]

    assert apache2.hook == ("/usr/local/sbin/after-renewal",)
    plain = read(tmp_path, text, with_systemd=True)
    assert (config.services[1:], replace(config, services=())) == (
        plain.services[1:],
        replace(plain, services=()),
    )
    assert (apache2.test, apache2.reload, apache2.start, apache2.active, apache2.endpoints) == (
        plain.services[0].test,
        plain.services[0].reload,
        plain.services[0].start,
        plain.services[0].active,
        plain.services[0].endpoints,
    )


def test_the_examples_further_services_are_good_ones(tmp_path: Path) -> None:
    """Whoever takes away the `# ` before them has no error to mend."""
    text = EXAMPLE.read_text()
    head, _, tail = text.partition("# A service without a recipe")
    spoken = re.sub(r"(?m)^# (?=\[\[|[a-z_]+ = )", "", tail)
    config = read(tmp_path, head + "#" + spoken, with_systemd=True)

    forms = [form.file for form in config.layout("app.example.org").forms]
    assert [service.name for service in config.services[3:]] == ["prosody", "haproxy", "tomcat"]
    assert forms == ["haproxy.pem", "tomcat.p12"]


def test_the_schema_knows_every_probe_and_the_recipes_only_those() -> None:
    """A protocol that config accepts can be probed."""
    known = set(typing.get_args(config_schema.Probe))

    assert known == set(probe.PROTOCOLS)
    assert {p for recipe in RECIPES.values() for p in recipe.ports.values()} <= known


def test_a_recipe_runs_systemctl_where_systemd_is(tmp_path: Path) -> None:
    """The config test stays the service's own; everything else goes through the manager."""
    service = read(tmp_path, APACHE, with_systemd=True).services[0]

    assert service.test == ("apache2ctl", "configtest")
    assert service.reload == ("systemctl", "reload", "apache2.service")
    assert service.start == ("systemctl", "start", "apache2.service")
    assert service.active == ("systemctl", "is-active", "apache2.service")


def test_a_recipe_runs_direct_commands_elsewhere_and_the_admin_wins(tmp_path: Path) -> None:
    """Each argv can be overridden by itself."""
    service = read(tmp_path, APACHE + 'reload = ["/usr/local/bin/mine"]\n').services[0]

    assert service.reload == ("/usr/local/bin/mine",)
    assert service.start == ("apache2ctl", "start")


def test_an_endpoint_takes_what_it_does_not_say_from_the_recipe(tmp_path: Path) -> None:
    """A port tells the protocol, a protocol the port, and nothing the recipe's first."""
    text = """
    [[service]]
    name = "postfix"
    recipe = "postfix"
    endpoints = [{ address = "192.0.2.1" }, { address = "192.0.2.1", port = 465 },
                 { address = "192.0.2.1", protocol = "tls" }, { address = "192.0.2.1", port = 2525, protocol = "smtp" }]
    """
    templates = read(tmp_path, text).services[0].endpoints

    assert [(t.protocol, t.port) for t in templates] == [
        ("smtp", 25),
        ("tls", 465),
        ("tls", 465),
        ("smtp", 2525),
    ]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """One reading of the message is enough to mend the file."""
    problems = refused(
        tmp_path,
        """
        [agent]
        sate = "/x"
        install_to = "relative"
        [[service]]
        name = "apache2"
        recipe = "apche2"
        endpoints = [{ address = "www.example.org" }, { address = "0.0.0.0", port = 0 }]
        mode = "0644"
        certificates = ["WWW"]
        reload = "systemctl reload apache2"
        """,
    )

    told = {problem.partition(": ")[0] for problem in problems}
    assert told == {
        "agent.sate",
        "agent.install_to",
        "service[0].recipe",
        "service[0].endpoints[0].address[0]",
        "service[0].endpoints[1].address[0]",
        "service[0].endpoints[1].port",
        "service[0].mode",
        "service[0].certificates[0]",
        "service[0].reload",
    }
    assert 'agent.sate: unknown key, did you mean "state"?' in problems
    assert any('did you mean "apache2"?' in problem for problem in problems)


def test_problems_between_keys_are_told_together(tmp_path: Path) -> None:
    """Double names, missing commands and unknown ports come in one error."""
    problems = refused(
        tmp_path,
        APACHE + APACHE + '[[service]]\nname = "own"\nendpoints = [{ address = "192.0.2.1", port = 5223 }]\n',
    )

    assert {problem.partition(": ")[0] for problem in problems} == {
        "service[1].name",
        "service[2].reload",
        "service[2].start",
        "service[2].active",
        "service[2].endpoints[0]",
    }


@pytest.mark.parametrize("mode", ['"0644"', '"0660"', '"0700"', "640", '"abc"', "true", '"0040"', "0"])
def test_a_mode_that_shows_a_key_is_refused(tmp_path: Path, mode: str) -> None:
    """Others never read, the group never writes, nobody executes; a decimal 640 is caught."""
    assert any("service[0].mode" in problem for problem in refused(tmp_path, APACHE + f"mode = {mode}\n"))


@pytest.mark.parametrize(("mode", "expected"), [('"0640"', 0o640), ("0o440", 0o440), ('"600"', 0o600)])
def test_a_mode_may_be_written_in_octal_either_way(tmp_path: Path, mode: str, expected: int) -> None:
    """TOML's own octal and the string that admins are used to."""
    config = read(tmp_path, APACHE + f"mode = {mode}\n")

    assert config.layout("any.example.org").key == KeyFile("root", "root", expected)


def test_a_group_alone_lets_the_group_read(tmp_path: Path) -> None:
    """Who names a group wants it to read the key."""
    config = read(tmp_path, APACHE + 'group = "ssl-cert"\n')

    assert config.layout("any.example.org").key == KeyFile("root", "ssl-cert", 0o640)


def test_services_that_share_a_certificate_must_agree_on_its_key(tmp_path: Path) -> None:
    """A file has one owner; patterns that cannot meet may differ."""
    other = APACHE.replace('name = "apache2"', 'name = "other"')
    narrow = 'certificates = ["{}.example.org"]\ngroup = "{}"\n'

    assert len(refused(tmp_path, APACHE + 'group = "a"\n' + other + 'group = "b"\n')) == 1
    config = read(tmp_path, APACHE + narrow.format("a", "a") + other + narrow.format("b", "b"))
    assert [config.layout(f"{n}.example.org").key.group for n in "ab"] == ["a", "b"]


def test_a_config_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """It says what root runs."""
    path = tmp_path / "agent.toml"
    path.write_text(APACHE)
    path.chmod(0o666)

    with pytest.raises(ConfigTooOpen):
        load(path)


def names(config: AgentConfig, identifiers: list[str], certificate: str = "c") -> list[tuple[str, str]]:
    found = endpoints_of(config, certificate, identifiers)
    return sorted((e.address, e.server_name) for e in found["apache2"])


def test_each_name_is_probed_at_each_address(tmp_path: Path) -> None:
    """Wildcards cannot be asked for, and an IP identifier only at its own address."""
    config = read(tmp_path, APACHE.replace('"192.0.2.10"', '["192.0.2.10", "2001:DB8:0::10"]'))

    assert names(config, ["a.example.org", "*.example.org", "2001:db8::10", "198.51.100.1"]) == [
        ("192.0.2.10", "a.example.org"),
        ("2001:db8::10", "2001:db8::10"),
        ("2001:db8::10", "a.example.org"),
    ]


def test_listed_server_names_choose_among_the_identifiers(tmp_path: Path) -> None:
    """Patterns filter; a literal name may also stand below a wildcard; what is not covered is not probed."""
    listed = '{ address = "192.0.2.10", server_names = ["www.*", "b.example.org", "x.y.example.org", "192.0.2.77"] }'
    config = read(tmp_path, APACHE.replace('{ address = "192.0.2.10" }', listed))

    assert names(config, ["www.example.org", "mail.example.org", "*.example.org", "192.0.2.77"]) == [
        ("192.0.2.10", "192.0.2.77"),
        ("192.0.2.10", "b.example.org"),
        ("192.0.2.10", "www.example.org"),
    ]


def test_only_services_that_load_a_certificate_are_concerned(tmp_path: Path) -> None:
    """Patterns of certificate names decide."""
    config = read(tmp_path, APACHE + 'certificates = ["www.*"]\n')

    assert set(endpoints_of(config, "www.example.org", ["a"])) == {"apache2"}
    assert endpoints_of(config, "mail.example.org", ["a"]) == {}


def test_times_are_seconds(tmp_path: Path) -> None:
    """Numbers become durations."""
    config = read(tmp_path, "[agent]\nprobe_interval = 30\nquiet = 0.5\n")

    assert (config.probe_interval, config.quiet) == (timedelta(seconds=30), timedelta(seconds=0.5))


# What `certfan agent check` says beyond the file

HERE = """
[agent]
state = "{folder}/state"
user = "root"

[[service]]
name = "web"
reload = ["true"]
start = ["true"]
active = ["true"]
certificates = ["www.*"]
endpoints = [{{ address = ["192.0.2.10", "2001:db8::10"], port = 443, protocol = "tls" }}]
"""


def checked(folder: Path, text: str) -> Outlook:
    path = folder / "agent.toml"
    path.write_text(text.format(folder=folder))
    path.chmod(0o644)
    return check(path)


def test_check_tells_what_would_be_probed_once_something_is_assigned(tmp_path: Path) -> None:
    """And which certificate no service of this machine takes; before that it says that it cannot know."""
    before = checked(tmp_path, HERE)
    assignments = {
        "www.example.org": Assignment("www.example.org", 0, identifiers=("www.example.org", "example.org")),
        "mail.example.org": Assignment("mail.example.org", 1, identifiers=("mail.example.org",)),
    }
    Record(tmp_path / "state").remember_assignments(assignments)

    after = checked(tmp_path, HERE)

    assert (before.services, before.endpoints) == (("web",), None)
    assert list(before.lines) == ["no certificate was assigned yet, so nothing is known to be probed"]
    assert list(after.lines) == [
        "mail.example.org: no endpoint of any service shows it",
        "www.example.org: "
        + ", ".join(
            f"web tls://{name}@{address}:443"
            for name in ("example.org", "www.example.org")
            for address in ("192.0.2.10", "[2001:db8::10]")
        ),
    ]


def test_check_tells_every_program_and_account_that_is_missing(tmp_path: Path) -> None:
    """Better now than at the first renewal, and as root; a running agent does not mind."""
    text = HERE.replace('user = "root"', 'user = "nobody-there"').replace(
        'start = ["true"]', 'start = ["tru"]'
    )
    more = 'owner = "nobody-here"\ngroup = "no-group"\nhook = ["/nowhere/hook"]\n'
    text = text.replace('name = "web"\n', f'name = "web"\n{more}')

    with pytest.raises(ConfigInvalid) as caught:
        checked(tmp_path, text)

    told = [problem.split(": ", 1)[1].split(" (")[0] for problem in caught.value.problems]
    assert told == [
        "agent.user: there is no user nobody-there on this machine",
        "service[0].start: there is no program tru",
        "service[0].hook: there is no program /nowhere/hook",
        "service[0].owner: there is no user nobody-here on this machine",
        "service[0].group: there is no group no-group on this machine",
    ]
    assert load(tmp_path / "agent.toml").services[0].start == ("tru",)


def test_an_agent_that_owned_its_own_trust_or_pairs_is_refused(tmp_path: Path) -> None:
    """What root believes and lays must not stand where the agent's user may move it."""
    text = '[agent]\nstate = "/var/lib/x"\ntrust = "/var/lib/x/trust"\ninstall_to = "/var/lib/x"\n'

    assert [problem.partition(":")[0] for problem in refused(tmp_path, text)] == [
        "agent.trust",
        "agent.install_to",
    ]


def test_a_share_that_is_the_only_way_must_be_named(tmp_path: Path) -> None:
    """Else no bundle would ever come."""
    assert refused(tmp_path, '[agent]\ndelivery = "share-only"\n') == [
        "agent.delivery: is share-only, and agent.share is not set"
    ]


# Forms


def own(name: str, recipe: str = "apache2") -> str:
    return APACHE.replace('name = "apache2"', f'name = "{name}"').replace(
        'recipe = "apache2"', f'recipe = "{recipe}"'
    )


PKCS12 = 'output = "pkcs12"\npassword_file = "/etc/certfan/store.password"\n'


def test_a_service_with_a_form_of_its_own_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Its owner and mode are no matter of the services beside it; HAProxy takes one PEM unless told otherwise."""
    text = APACHE + 'group = "www"\n' + own("proxy", "haproxy")
    text += 'group = "haproxy"\n' + own("store") + 'owner = "tomcat"\n' + PKCS12

    assert read(tmp_path, text).layout("any.example.org") == Layout(
        KeyFile("root", "www", 0o640),
        (
            Form("proxy.pem", KeyFile("root", "haproxy", 0o640)),
            Form("store.p12", KeyFile("tomcat", "root", 0o600), Path("/etc/certfan/store.password")),
        ),
    )


def test_a_recipe_with_a_form_gives_way_to_the_admin(tmp_path: Path) -> None:
    """HAProxy reads certbot's layout too, with a key of the same name beside the chain."""
    text = own("apache2", "haproxy") + 'output = "certbot"\n'

    assert read(tmp_path, text).layout("any.example.org") == Layout()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('output = "jks"\n', ["service[0].output: input should be 'certbot', 'pem' or 'pkcs12'"]),
        ('output = "pkcs12"\n', ["service[0].password_file: is missing, and output is pkcs12"]),
        (
            'password_file = "/etc/p"\n',
            ["service[0].password_file: is for pkcs12 only, and output is certbot"],
        ),
        (
            'output = "pkcs12"\npassword_file = "/var/lib/certfan-agent/p"\n',
            [
                "service[0].password_file: lies below agent.state, where the agent's user may put anything in its place"
            ],
        ),
    ],
)
def test_a_form_that_cannot_be_is_refused(tmp_path: Path, text: str, expected: list[str]) -> None:
    """Each with its key."""
    assert [one.partition(" (got")[0] for one in refused(tmp_path, APACHE + text)] == expected


@pytest.mark.parametrize("name", ["privkey", "combined", "fullchain"])
def test_a_form_never_takes_the_place_of_certbots_files(tmp_path: Path, name: str) -> None:
    """Two files of one name would be one too few."""
    text = own(name) + 'output = "pem"\n'

    assert [one.partition(":")[0] for one in refused(tmp_path, text)] == ["service[0].output"]


def test_check_looks_at_password_files(tmp_path: Path) -> None:
    """As root, before the first renewal does."""
    text = HERE.replace(
        'name = "web"\n', 'name = "web"\noutput = "pkcs12"\npassword_file = "{folder}/password"\n'
    )
    (tmp_path / "password").write_text("open sesame")
    (tmp_path / "password").chmod(0o644)

    with pytest.raises(ConfigInvalid) as caught:
        checked(tmp_path, text)
    (tmp_path / "password").chmod(0o600)

    assert [p.split(": ", 1)[1].split(":")[0] for p in caught.value.problems] == ["service[0].password_file"]
    assert "sesame" not in str(caught.value.problems)
    assert checked(tmp_path, text).services == ("web",)


# In place

IN_PLACE = '[agent]\ninstall = "in-place"\n'


def test_in_place_is_for_a_consumer_with_a_share(tmp_path: Path) -> None:
    """Without one, or with an agent that never looks there, it could never be."""
    shared = IN_PLACE + 'share = "/srv/le"\n'

    assert read(tmp_path, shared + APACHE).install == "in-place"
    assert read(tmp_path, APACHE).install == "copy"
    assert refused(tmp_path, IN_PLACE + APACHE) == ["agent.install: is in-place, and agent.share is not set"]
    assert refused(tmp_path, shared + 'delivery = "channel"\n' + APACHE) == [
        "agent.install: is in-place, and agent.delivery is channel, which never looks at the share"
    ]


def test_forms_need_copies(tmp_path: Path) -> None:
    """HAProxy's recipe has one, unless it is told to take certbot's files."""
    shared = IN_PLACE + 'share = "/srv/le"\n'
    problem = "output: {} needs copies on the local disk, and agent.install is in-place"

    assert refused(tmp_path, shared + own("proxy", "haproxy") + own("store") + PKCS12) == [
        f"service[0].{problem.format('pem')}",
        f"service[1].{problem.format('pkcs12')}",
    ]
    assert read(tmp_path, shared + own("proxy", "haproxy") + 'output = "certbot"\n').services[0].form is None
