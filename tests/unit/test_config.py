"""certfan.toml and conf.d: what is read, what is refused, and how every problem is told at once."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certfan.core.model import Identifier, KeyType, Limit, Limits
from certfan.daemon.config import loading as config
from certfan.daemon.config.schema import identifier
from certfan.daemon.issuing import published
from certfan.daemon.listeners import Listener, parse_listener
from certfan.errors import ConfigError, ConfigInvalid, ConfigTooOpen

MAIN = """
fleet = "example"
[share]
path = "/srv/le"
[http01]
listen = ["192.168.1.1:8055", "[fd00::1]:80", "unix:/run/certfan/http01.sock"]
[channel]
listen = ["[fd00::1]:8057"]
[authority.pebble]
directory = "https://ca.int:14000/dir"
agree_to_terms = true
[consumer.web1]
group = "certfan-web1"
mode = "0640"
[consumer.mail1]
"""


def write(folder: Path, main: str = MAIN, **fragments: str) -> Path:
    path = folder / "certfan.toml"
    path.write_text(main)
    for name, text in fragments.items():
        (folder / "conf.d").mkdir(exist_ok=True)
        (folder / "conf.d" / f"{name}.toml").write_text(text)
    return path


def problems_of(path: Path) -> list[str]:
    """Return the problems without the folder they were found in."""
    with pytest.raises(ConfigInvalid) as caught:
        config.load(path)
    return [problem.replace(f"{path.parent}/", "") for problem in caught.value.problems]


def one(names: str, **more: str) -> str:
    lines = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f'[[certificate]]\nnames = {names}\nconsumers = ["web1"]\n{lines}'


def test_a_config_becomes_values(tmp_path: Path) -> None:
    """Files of conf.d are read beside the main file; defaults fill what they leave out."""
    path = write(tmp_path, a=one('["www.example.org", "EXAMPLE.org"]', key_type='"rsa-2048"'))

    loaded = config.load(path)

    certificate = loaded.desired.certificates["www.example.org"]
    assert (Identifier("www.example.org"), Identifier("example.org")) == certificate.identifiers
    assert KeyType.RSA_2048 is certificate.key_type
    assert certificate.authority == "pebble"
    assert loaded.desired.consumers["web1"].mode == 0o640
    assert loaded.channel_address == "[fd00::1]:8057"
    assert loaded.state == Path("/var/lib/certfan")
    assert loaded.status == (Listener("127.0.0.1", 8056),)
    assert loaded.control == Listener(path="/run/certfan/control.sock", mode=0o660, group="certfan-admin")


def test_listeners_are_exactly_what_is_written(tmp_path: Path) -> None:
    """TCP v4, bracketed v6 and unix sockets come out as they went in."""
    loaded = config.load(write(tmp_path))

    assert [str(listener) for listener in loaded.http01] == [
        "192.168.1.1:8055",
        "[fd00::1]:80",
        "unix:/run/certfan/http01.sock",
    ]


@pytest.mark.parametrize(
    "text",
    ["localhost:80", "*:80", "1.2.3.4", "1.2.3.4:0", "1.2.3.4:65536", "::1:80", "[1.2.3.4]:80", "unix:run/x"],
)
def test_a_listener_that_is_not_literal_is_refused(text: str) -> None:
    """A name, a star, a missing port or bracket cannot be bound exactly."""
    with pytest.raises(ValueError, match=r".+"):
        parse_listener(text)


def test_all_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    """Each line names the file and the key path; a typo gets a suggestion, bad syntax its line and column."""
    path = write(
        tmp_path,
        MAIN.replace('path = "/srv/le"', 'path = "/srv/le"\nrequire_mout = true').replace(
            'fleet = "example"', ""
        ),
        a="[[certificate]]\nnames = nothing\n",
        b=one('["*.example.org"]', custody='"nobody"'),
    )

    problems = problems_of(path)

    assert 'certfan.toml: share.require_mout: unknown key, did you mean "require_mount"?' in problems
    assert "certfan.toml: fleet: is missing" in problems
    assert any("conf.d/a.toml: " in p and "line 2, column 9" in p for p in problems)
    assert (
        "conf.d/b.toml: certificate[0].names[0]: *.example.org: a wildcard needs a dns-01 challenge, "
        "which this release does not have" in problems
    )
    assert any(
        p.startswith("conf.d/b.toml: certificate[0].custody: ") and "'consumer'" in p for p in problems
    )


def test_a_key_that_never_leaves_its_consumer_has_exactly_one(tmp_path: Path) -> None:
    """The sentence says what to write instead; for one consumer it is a config like any other."""
    told = "takes exactly one, as its key never leaves it; write a [[certificate]] with a name of its own for each"
    several = problems_of(
        write(
            tmp_path,
            a=one('["a.test"]', custody='"consumer"').replace('["web1"]', '["web1", "web2"]'),
            b="[consumer.web2]\n",
        )
    )
    loaded = config.load(write(tmp_path, a=one('["a.test"]', custody='"consumer"')))

    assert any("certificate[0].consumers: " in p and told in p for p in several)
    assert "web1" == loaded.desired.certificates["a.test"].holder


def test_the_same_name_twice_names_both_places(tmp_path: Path) -> None:
    """The folder is the name, so two certificates cannot share one."""
    path = write(tmp_path, a=one('["b.test"]') + one('["a.test"]'), b=one('["c.test"]', name='"a.test"'))

    assert [p.replace(f"{tmp_path}/", "") for p in problems_of(path)] == [
        "conf.d/b.toml: certificate[0]: the name a.test is taken by conf.d/a.toml: certificate[1] already"
    ]


def test_unknown_references_get_a_suggestion(tmp_path: Path) -> None:
    """A consumer or authority that is not defined anywhere is a problem of the certificate."""
    path = write(
        tmp_path,
        'default_authority = "pebbel"\n' + MAIN,
        a='[[certificate]]\nnames = ["a.test"]\nconsumers = ["web1", "wbe1"]\nauthority = "peble"\n',
    )

    assert problems_of(path) == [
        'certfan.toml: default_authority: there is no [authority.pebbel], did you mean "pebble"?',
        'conf.d/a.toml: certificate[0].consumers[1]: there is no [consumer.wbe1], did you mean "web1"?',
        'conf.d/a.toml: certificate[0].authority: there is no [authority.peble], did you mean "pebble"?',
    ]


def test_several_authorities_need_a_default(tmp_path: Path) -> None:
    """With two authorities a certificate must say which, or the config must."""
    second = '[authority.other]\ndirectory = "https://other.int/dir"\nagree_to_terms = true\n'
    path = write(tmp_path, a=second + one('["a.test"]'))

    assert problems_of(path) == [
        "conf.d/a.toml: certificate[0].authority: is missing, and there is no default_authority"
    ]


LETSENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
STAGING = """
[authority.pebble-staging]
directory = "https://staging.int/dir"
agree_to_terms = true
"""


def with_authority(lines: str, more: str = STAGING) -> str:
    """The main file with more keys of its authority."""
    return MAIN.replace("agree_to_terms = true", f"agree_to_terms = true\n{lines}") + more


def test_a_staging_authority_is_nobodys_default(tmp_path: Path) -> None:
    """It is there for trials; the one that names it stays the only one to order at."""
    path = write(tmp_path, with_authority('staging = "pebble-staging"') + one('["a.test"]'))

    desired = config.load(path).desired

    assert desired.certificates["a.test"].authority == "pebble"
    assert desired.authorities["pebble"].staging == "pebble-staging"


def test_an_authority_and_a_certificate_take_their_new_keys(tmp_path: Path) -> None:
    """Spans in words or seconds; a certificate that says nothing of them behaves as before."""
    (tmp_path / "eab.key").write_text("c2VjcmV0")
    (tmp_path / "eab.key").chmod(0o600)
    keys = """
eab_kid = "kid-1"
eab_key_file = "eab.key"
preferred_chain = "Root X1"
origins = ["https://orders.int/"]
limits.orders = { count = 10, window = "3h" }
limits.failures_per_name = { count = 2, window = 60 }
"""
    certificate = {"fallback": '["pebble-staging"]', "fallback_after": '"12h"', "reuse_key": '"365d"'}
    named = one('["a.test"]', authority='"pebble"', **certificate)
    path = write(tmp_path, with_authority(keys) + named + one('["b.test"]', authority='"pebble"'))

    desired = config.load(path).desired

    pebble, a, b = desired.authorities["pebble"], *(desired.certificates[f"{n}.test"] for n in "ab")
    assert (pebble.eab_kid, pebble.eab_key_file) == ("kid-1", str(tmp_path / "eab.key"))
    assert (pebble.preferred_chain, pebble.origins) == ("Root X1", ("https://orders.int",))
    limits = Limits(orders=Limit(10, timedelta(hours=3)), failures_per_name=Limit(2, timedelta(seconds=60)))
    assert pebble.limits == limits
    assert (a.fallback, a.fallback_after, a.reuse_key) == (
        ("pebble-staging",),
        timedelta(hours=12),
        timedelta(days=365),
    )
    assert (b.fallback, b.fallback_after, b.reuse_key) == ((), timedelta(days=1), None)


def test_shipped_limits_are_overridden_one_by_one(tmp_path: Path) -> None:
    """What the admin does not name is as the authority publishes it."""
    named = with_authority("limits.orders = { count = 10, window = 60 }")
    path = write(tmp_path, named.replace("https://ca.int:14000/dir", LETSENCRYPT))

    limits = config.load(path).desired.authorities["pebble"].limits

    assert limits == replace(published.of(LETSENCRYPT).limits, orders=Limit(10, timedelta(seconds=60)))
    assert limits.certificates_per_domain is not None


@pytest.mark.parametrize(
    ("keys", "certificate", "problem"),
    [
        ('eab_kid = "kid-1"', {}, "certfan.toml: authority.pebble.eab_key_file: is missing"),
        ('staging = "pebble"', {}, "certfan.toml: authority.pebble.staging: there is no other"),
        (
            'staging = "pebble-stagin"',
            {},
            'there is no other [authority.pebble-stagin], did you mean "pebble-staging"?',
        ),
        ('origins = ["http://orders.int"]', {}, "authority.pebble.origins[0]: must be of the form"),
        ("limits.orders = { count = 0, window = 60 }", {}, "authority.pebble.limits.orders.count"),
        ("", {"fallback": '["pebbel"]'}, "fallback[0]: there is no [authority.pebbel], did you mean"),
        ("", {"fallback": '["pebble"]'}, "certificate[0].fallback[0]: pebble is its authority already"),
        ("", {"fallback_after": '"soon"'}, 'fallback_after: must be seconds, or text of the form "90d"'),
        ("", {"reuse_key": '"5m"'}, "certificate[0].reuse_key"),
    ],
)
def test_what_is_wrong_with_an_authoritys_keys_is_told_by_key_path(
    tmp_path: Path, keys: str, certificate: dict[str, str], problem: str
) -> None:
    """One problem, at its place."""
    named = one('["a.test"]', authority='"pebble"', **certificate)

    (told,) = problems_of(write(tmp_path, with_authority(keys) + named))

    assert problem in told


def test_what_an_authority_is_known_to_refuse_is_told_before_it_is_asked(tmp_path: Path) -> None:
    """Also of a fallback, whose own profile applies there."""
    second = STAGING.replace("https://staging.int/dir", LETSENCRYPT)
    named = one('["192.0.2.1"]', authority='"pebble"', fallback='["pebble-staging"]')

    (told,) = problems_of(write(tmp_path, MAIN + second + named))
    config.load(write(tmp_path, MAIN + second + 'profile = "shortlived"\n' + named))

    assert told.startswith("certfan.toml: certificate[0].names: pebble-staging: 192.0.2.1: only the profile")


def test_a_secret_that_others_can_read_is_a_problem_whoever_owns_it(tmp_path: Path) -> None:
    """It belongs to the daemon's user, and root may check the config all the same."""
    secret = tmp_path / "eab.key"
    secret.write_text("c2VjcmV0")
    path = write(tmp_path, with_authority('eab_kid = "kid-1"\neab_key_file = "eab.key"'))
    secret.chmod(0o640)
    (told,) = problems_of(path)
    secret.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(secret, 12345, 12345)

    config.load(path)

    assert told == (
        "certfan.toml: authority.pebble.eab_key_file: eab.key holds a secret that others can read;"
        " run: chmod 600 eab.key"
    )


def test_a_bad_file_raises_no_false_alarm_about_references(tmp_path: Path) -> None:
    """What is defined in a file with a problem of its own is not called unknown."""
    path = write(tmp_path, a='[consumer.web2]\nmode = "0644"\n', b=one('["a.test"]').replace("web1", "web2"))

    assert problems_of(path) == [
        'conf.d/a.toml: consumer.web2.mode: 0644 is too open for a private key: use "0640", "0600" or "0440"'
    ]


def test_terms_must_be_agreed_to(tmp_path: Path) -> None:
    """An authority whose terms nobody agreed to is refused."""
    path = write(tmp_path, MAIN.replace("agree_to_terms = true", "agree_to_terms = false"))

    assert problems_of(path) == [
        "certfan.toml: authority.pebble.agree_to_terms: must be true: "
        "read the authority's terms of service, then say so here"
    ]


def test_two_listeners_on_one_address_are_refused(tmp_path: Path) -> None:
    """Two sections cannot bind the same address."""
    path = write(tmp_path, MAIN.replace('["[fd00::1]:8057"]', '["192.168.1.1:8055"]'))

    assert problems_of(path) == [
        "certfan.toml: channel.listen: 192.168.1.1:8055 is used by http01.listen already"
    ]


def test_an_address_nobody_can_dial_needs_another(tmp_path: Path) -> None:
    """`0.0.0.0` may be listened on, but enrolment must print something an agent can dial."""
    path = write(tmp_path, MAIN.replace("[fd00::1]:8057", "0.0.0.0:8057"))

    assert problems_of(path) == [
        "certfan.toml: channel.address: is missing, and nobody can dial 0.0.0.0:8057"
    ]


@pytest.mark.parametrize("which", ["certfan.toml", "conf.d/a.toml"])
def test_a_config_that_others_may_write_is_refused(tmp_path: Path, which: str) -> None:
    """Whoever may write the config decides who gets keys."""
    path = write(tmp_path, a=one('["a.test"]'))
    (tmp_path / which).chmod(0o664)

    with pytest.raises(ConfigTooOpen) as caught:
        config.load(path)

    assert caught.value.exit_code == 77
    assert which in caught.value.text


def test_a_trust_anchor_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Whoever may write what an authority is verified by may be the authority."""
    anchor = tmp_path / "ca.pem"
    anchor.write_text("x")
    anchor.chmod(0o666)
    path = write(tmp_path, MAIN.replace("agree_to_terms", 'ca_file = "ca.pem"\nagree_to_terms'))

    with pytest.raises(ConfigTooOpen, match=r"ca\.pem"):
        config.load(path)


def test_a_missing_trust_anchor_is_a_problem_with_a_key_path(tmp_path: Path) -> None:
    """The path is read relative to the file that names it."""
    path = write(tmp_path, MAIN.replace("agree_to_terms", 'ca_file = "ca.pem"\nagree_to_terms'))

    assert problems_of(path) == [
        "certfan.toml: authority.pebble.ca_file: ca.pem cannot be read: No such file or directory"
    ]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Bücher.Example.ORG", "xn--bcher-kva.example.org"),
        ("straße.example.org", "xn--strae-oqa.example.org"),
        ("xn--bcher-kva.example.org", "xn--bcher-kva.example.org"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
    ],
)
def test_identifiers_take_their_one_form(written: str, expected: str) -> None:
    """U-labels become A-labels by IDNA 2008, addresses their short form, letters small."""
    assert expected == identifier(written)


@pytest.mark.parametrize(
    "written",
    [
        "\n",
        "",
        "a\xa0b.test",
        "a_b.test",
        "-a.test",
        "a..test",
        "a.test.",
        "1.2.3.400",
        "0.0.0.0",
        "::ffff:1.2.3.4",
        "[::1]",
        "http://a.test\n",
        "",
        "xn--a.test",
        "fe80::1%eth0",
        "*.*.test",
        "a.test:80\n",
        "",
        "",
    ],
)
def test_identifiers_that_no_authority_could_prove_are_refused(written: str) -> None:
    """The text says what is wrong before an authority counts a failure."""
    with pytest.raises(ValueError, match=r".+"):
        identifier(written)


def test_an_identifier_twice_and_too_many_are_refused(tmp_path: Path) -> None:
    """Two spellings of one name are the same name; more than 100 fit into no certificate."""
    many = str([f"n{i}.test" for i in range(101)]).replace("'", '"')
    path = write(tmp_path, a=one('["bücher.test", "xn--bcher-kva.test"]') + one(many))

    assert problems_of(path) == [
        "conf.d/a.toml: certificate[0].names: xn--bcher-kva.test stands here twice",
        "conf.d/a.toml: certificate[1].names: list should have at most 100 items after validation, not 101",
    ]


def test_an_ipv6_certificate_needs_a_name_of_its_own(tmp_path: Path) -> None:
    """An address with colons is no folder's name, so the admin gives one."""
    path = write(tmp_path, a=one('["2001:db8::1"]'))

    assert problems_of(path) == [
        'conf.d/a.toml: certificate[0].name: is missing, and "2001:db8::1" cannot be a folder\'s name'
    ]


def test_a_name_with_a_bad_character_is_told_plainly(tmp_path: Path) -> None:
    """A consumer's name becomes a folder, a URI and a line in every table."""
    path = write(tmp_path, a="[consumer.WEB_2]\n")

    (problem,) = problems_of(path)

    assert problem == (
        "conf.d/a.toml: consumer.WEB_2: must be 1 to 63 of a-z 0-9 -, not beginning or ending in a hyphen"
    )


def test_the_digest_is_of_values(tmp_path: Path) -> None:
    """A comment changes nothing, a value does."""
    before = config.load(write(tmp_path)).digest

    commented = config.load(write(tmp_path, "# hello\n" + MAIN)).digest
    changed = config.load(write(tmp_path, MAIN.replace("/srv/le", "/srv/other"))).digest

    assert before == commented
    assert before != changed


def test_hidden_and_backup_files_do_not_count(tmp_path: Path) -> None:
    """What editors leave in conf.d is not config."""
    path = write(tmp_path, a=one('["a.test"]'))
    for name in (".a.toml.swp", ".#b.toml", "c.toml~", ".hidden.toml"):
        (tmp_path / "conf.d" / name).write_text("no toml [")

    assert list(config.load(path).desired.certificates) == ["a.test"]


def test_a_missing_config_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    """The text names the file."""
    assert problems_of(tmp_path / "certfan.toml") == [
        "certfan.toml: cannot be read: No such file or directory"
    ]


def test_the_examples_parse(examples: Path) -> None:
    """What config/ shows is a config that works."""
    loaded = config.load(examples / "certfan.toml")

    assert {"www.example.org", "mail", "xn--bcher-kva.example.org"} == set(loaded.desired.certificates)
    assert loaded.desired.certificates["mail"].authority == "letsencrypt"


KEYS = st.sampled_from(
    [
        "fleet",
        "share",
        "path",
        "http01",
        "listen",
        "channel",
        "address",
        "certificate",
        "names",
        "consumers",
        "name",
        "mode",
        "custody",
        "key_type",
        "authority",
        "directory",
        "agree_to_terms",
        "consumer",
        "web1",
    ]
)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-5, 1 << 70),
    st.text(max_size=12),
    st.sampled_from(["a.test", "*.a.test", "[::1]:80"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=60), st.dictionaries(KEYS, VALUES, max_size=6).map(lambda d: dump(d))))
def test_whatever_is_written_is_read_or_refused(tmp_path: Path, text: str) -> None:
    """No content of a file gets past the error tree."""
    path = tmp_path / "certfan.toml"
    path.write_bytes(text.encode(errors="surrogatepass"))

    try:
        config.load(path)
    except ConfigError as error:
        refused = error

    assert refused.exit_code == 78


def dump(document: dict[str, object]) -> str:
    """Write a document as TOML with inline tables."""
    return "\n".join(f"{key} = {_inline(value)}" for key, value in document.items())


def _inline(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case list():
            return f"[{', '.join(map(_inline, value))}]"
        case dict():
            return "{" + ", ".join(f"{k} = {_inline(v)}" for k, v in value.items()) + "}"
        case _:
            escaped = "".join(c if c.isalnum() or c in ".*[]: " else f"\\U{ord(c):08x}" for c in str(value))
            return f'"{escaped}"'


def test_a_fleet_name_that_the_internal_ca_cannot_carry_is_refused(examples: Path) -> None:
    """It is found when the config is read, not when the daemon starts."""
    path = examples / "certfan.toml"
    path.write_text(path.read_text().replace('fleet = "example"', f'fleet = "{"f" * 49}"'))

    with pytest.raises(ConfigInvalid, match="fleet: must be 1 to 48"):
        config.load(path)
