"""What is read of another program's folder, what becomes of it beside our config, and the file that asks for it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from josepy import jwk

from certfan import pki
from certfan.cli import conf_files
from certfan.core.model import Authority, Desired, Identifier, KeyType
from certfan.daemon.config.checks import why_not_asked
from certfan.daemon.config.loading import load
from certfan.errors import ActionRefused, ConfigInvalid, TreeUnreadable
from certfan.takeover import advice, fragment, planning, reading, servers, serving
from certfan.takeover.servers import Kind
from certfan.takeover.tree import Tree, Way
from tests.unit.planner_parts import DAY, NOW, make_certificate, make_desired
from tests.unit.test_config import MAIN

CA = "https://ca.example/dir"
STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"
PAIRS = {name: pki.make_placeholder([name], NOW) for name in ("a.test", "b.test", "*.w.test")}
OTHER_A = pki.make_placeholder(["a.test"], NOW + DAY)


def lay(folder: Path, pair: tuple[bytes, bytes]) -> None:
    folder.mkdir(parents=True)
    (folder / "privkey.pem").write_bytes(pair[0])
    (folder / "fullchain.pem").write_bytes(pair[1])


def lineage(root: Path, name: str, pair: tuple[bytes, bytes], **params: str) -> None:
    lay(root / "live" / name, pair)
    (root / "renewal").mkdir(exist_ok=True)
    lines = [
        f"{key} = {value}" for key, value in {"server": CA, "authenticator": "webroot", **params}.items()
    ]
    text = "\n".join(["version = 2.1.0", "[renewalparams]", *lines, "[[webroot_map]]", f"{name} = /var/www"])
    (root / "renewal" / f"{name}.conf").write_text(text)


def account(root: Path, directory: str, ident: str, uri: str) -> bytes:
    folder = root / "accounts" / directory.removeprefix("https://") / ident
    folder.mkdir(parents=True)
    key = pki.make_key("rsa-2048")
    known = jwk.JWKRSA.load(key)
    (folder / "private_key.json").write_text(json.dumps(known.to_json()))
    (folder / "regr.json").write_text(
        json.dumps({"uri": uri, "body": {"contact": ["mailto:me@a.test", "x y"]}})
    )
    return key


@pytest.fixture
def certbot(tmp_path: Path) -> Path:
    root = tmp_path / "letsencrypt"
    lineage(root, "a.test", PAIRS["a.test"], account="two", renew_hook="systemctl reload apache2")
    lineage(
        root,
        "b.test",
        PAIRS["b.test"],
        account="two",
        authenticator="standalone",
        preferred_profile="tlsserver",
    )
    lineage(root, "w.test", PAIRS["*.w.test"])
    lineage(root, "gone.test", PAIRS["a.test"])
    (root / "live/gone.test/privkey.pem").unlink()
    account(root, CA, "one", f"{CA}/acct/1")
    account(root, CA, "two", f"{CA}/acct/2")
    account(root, STAGING, "three", f"{STAGING}/acct/3")
    return root


def planned(tree: Tree, desired: Desired, now: Any = NOW) -> planning.Plan:
    roots = b"".join(cert for _, cert in (*PAIRS.values(), OTHER_A))
    return planning.make(tree, desired, why_not=why_not_asked, roots=lambda _: roots, now=now)


def left_out(plan: planning.Plan) -> Mapping[str, str]:
    return {one.name: one.why for one in plan.left_out}


def test_certbots_folder_is_read_with_what_is_broken_in_it(certbot: Path) -> None:
    """Accounts with their keys, pairs with how they were proven; a lineage without its key is named, not fatal."""
    tree = reading.read(certbot)

    ways = {pair.name: pair.way for pair in tree.pairs}
    assert "certbot" == tree.kind
    assert Way("webroot", ("/var/www",), ("renew_hook = systemctl reload apache2",)) == ways["a.test"]
    assert "standalone" == ways["b.test"].authenticator
    assert {"two": f"{CA}/acct/2", "one": f"{CA}/acct/1"} == {
        one.where.name: one.uri for one in tree.accounts_at(CA)
    }
    assert ["two", "one"] == [one.where.name for one in tree.accounts_at(CA)]
    assert ("mailto:me@a.test",) == tree.accounts_at(CA)[0].contact
    assert [("gone.test", f"{certbot}/live/gone.test/privkey.pem: no such file or directory")] == [
        (one.name, one.why) for one in tree.left_out
    ]


def test_an_account_key_as_jwk_is_the_same_key_as_pem(tmp_path: Path) -> None:
    """Certbot keeps JSON, we keep PEM."""
    (tmp_path / "renewal").mkdir()
    key = account(tmp_path, CA, "one", f"{CA}/1")

    (found,) = reading.read(tmp_path).accounts

    assert pki.public_key_hash(key) == pki.public_key_hash(found.key_pem)
    assert "PRIVATE" not in repr(found)


def test_dehydrateds_shell_config_is_read_as_plain_lines_only(tmp_path: Path) -> None:
    """Values of earlier lines count, commands do nothing; a certificate's own config wins over it."""
    lay(tmp_path / "base/certs/a.test", PAIRS["a.test"])
    (tmp_path / "base/certs/a.test/config").write_text("CHALLENGETYPE=dns-01\n")
    lay(tmp_path / "base/certs/b", PAIRS["b.test"])
    (tmp_path / "domains.txt").touch()
    (tmp_path / "config").write_text(
        f'BASEDIR={tmp_path}/base\nWELLKNOWN="${{BASEDIR}}/answers" # here\nCA="letsencrypt-test"\n'
        f"HOOK=$(touch {tmp_path}/ran)\nCERTDIR=$BASEDIR/certs\n"
    )

    tree = reading.read(tmp_path)

    assert {"a.test": Way("dns-01"), "b": Way("webroot", (f"{tmp_path}/base/answers",))} == {
        one.name: one.way for one in tree.pairs
    }
    assert {STAGING} == {one.directory for one in tree.pairs}
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_of_neither_is_refused_with_what_to_give(tmp_path: Path, folder: str) -> None:
    """An empty folder, and none."""
    with pytest.raises(TreeUnreadable, match=r"neither|no folder"):
        reading.read(tmp_path / folder)


def test_beside_an_empty_config_authorities_and_certificates_are_to_be_added(certbot: Path) -> None:
    """The account that the lineages use is adopted, the other one named; a wildcard cannot be asked for."""
    plan = planned(reading.read(certbot), Desired({}, {}, {}))

    assert {"ca-example": CA, "letsencrypt-staging": STAGING} == plan.authorities
    assert {"ca-example": "two", "letsencrypt-staging": "three"} == {
        n: a.where.name for n, a in plan.accounts.items()
    }
    assert [("a.test", "ca-example", False), ("b.test", "ca-example", False)] == [
        (one.name, one.authority, one.in_config) for one in plan.adoptions
    ]
    assert {"gone.test", "w.test", "account one"} == left_out(plan).keys()
    assert "wildcard" in left_out(plan)["w.test"]
    assert {"w.test"} == {one.name for one in plan.left_out if one.stays}


def test_the_configs_own_names_win(certbot: Path) -> None:
    """Its authority by directory, its certificate by identifiers; another key type there would mean an order."""
    desired = replace(
        make_desired(
            make_certificate("mine", names=("a.test",)),
            replace(make_certificate("b", names=("b.test",)), key_type=KeyType.RSA_2048),
        ),
        authorities={"ours": Authority("ours", CA)},
    )

    plan = planned(reading.read(certbot), desired)

    assert {"letsencrypt-staging": STAGING} == plan.authorities
    assert [("mine", "ours", True)] == [(one.name, one.authority, one.in_config) for one in plan.adoptions]
    assert "certificate b of the config asks for rsa-2048, not ecdsa-p256" == left_out(plan)["b.test"]


def test_of_two_pairs_for_one_certificate_the_newer_is_taken(certbot: Path) -> None:
    """Both lineages have exactly the names of the config's one."""
    lineage(certbot, "a.test-0001", OTHER_A)
    desired = replace(
        make_desired(make_certificate("mine", names=("a.test",))), authorities={"ours": Authority("ours", CA)}
    )

    plan = planned(reading.read(certbot), desired)

    assert "a.test-0001" == next(one.found.name for one in plan.adoptions if one.name == "mine")
    assert "a.test-0001 has the same names and is newer" == left_out(plan)["a.test"]


def test_what_has_expired_or_is_nobodys_is_left_out_with_its_cause(certbot: Path) -> None:
    """An expired pair is no use, nor is one for a name that the config has for something else."""
    desired = make_desired(make_certificate("a.test", names=("z.test",)))

    assert "is valid from" in left_out(planned(reading.read(certbot), desired, NOW + 31 * DAY))["b.test"]
    assert (
        "certificate a.test of the config is for other names"
        == left_out(planned(reading.read(certbot), desired))["a.test"]
    )


def test_the_written_file_is_a_config_that_asks_for_what_was_adopted(certbot: Path, tmp_path: Path) -> None:
    """Loaded beside a main config: names, key type, authority and profile; the comments say where from."""
    tree = reading.read(certbot)
    plan = planned(tree, Desired({}, {}, {}))
    text = "\n".join(
        [
            fragment.head(tree, NOW),
            fragment.authorities(plan.authorities, plan.accounts, {"le": planning.LETSENCRYPT}),
            fragment.certificates(plan.adoptions, ["web1"]),
        ]
    )
    config = tmp_path / "certfan.toml"
    config.write_text(MAIN)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/taken.toml").write_text(text)

    desired = load(config).desired

    (a, b) = (desired.certificates[name] for name in ("a.test", "b.test"))
    assert ((Identifier("a.test"),), ("web1",), "ca-example", KeyType.ECDSA_P256) == (
        a.identifiers,
        a.consumers,
        a.authority,
        a.key_type,
    )
    assert "tlsserver" == b.profile
    assert CA == desired.authorities["ca-example"].directory
    assert "# ran after a renewal: renew_hook = systemctl reload apache2" in text


def test_production_is_written_with_its_staging_authority() -> None:
    """Where the tree has accounts at both, trial orders know where to go."""
    places = {"letsencrypt": planning.LETSENCRYPT, "le-staging": STAGING}

    tables = tomllib.loads(fragment.authorities(places, {}, {}))["authority"]

    assert "le-staging" == tables["letsencrypt"]["staging"]
    assert "staging" not in tables["le-staging"]


def test_lines_of_servers_that_must_change_are_found(tmp_path: Path) -> None:
    """Proxied challenges, answered ones, and pairs of the tree; comments and links to the same file are no lines."""
    sites = tmp_path / "apache2/sites-available"
    sites.mkdir(parents=True)
    (sites / "a.conf").write_text(
        "ProxyPass /.well-known/acme-challenge/ http://192.168.1.9:80/.well-known/acme-challenge/\n"
        "Alias /.well-known/acme-challenge/ /var/www/acme/\n"
        "#SSLCertificateFile /etc/letsencrypt/live/a.test/fullchain.pem\n"
        "  SSLCertificateFile /etc/letsencrypt/live/a.test/fullchain.pem\n"
    )
    (tmp_path / "apache2/sites-enabled").mkdir()
    (tmp_path / "apache2/sites-enabled/a.conf").symlink_to(sites / "a.conf")

    found = servers.lines([tmp_path / "apache2", tmp_path / "none"], Path("/etc/letsencrypt"))

    assert [(1, Kind.PROXY), (2, Kind.CHALLENGE), (4, Kind.PAIR)] == [(one.number, one.kind) for one in found]
    texts = advice.line_texts(found, "192.168.1.1:8055", "/etc/certfan")
    assert f"  {sites}/a.conf:1: ProxyPass" in texts[1]
    assert "192.168.1.1:8055" in texts[0]


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (Way("webroot", ("/var/www",)), "out of /var/www"),
        (Way("standalone"), "on port 80"),
        (Way("nginx"), "certfan snippet nginx"),
        (Way("apache"), "certfan snippet apache"),
        (Way("dns-rfc2136"), "proven by dns-rfc2136"),
    ],
)
def test_each_way_of_answering_challenges_has_its_advice(way: Way, said: str) -> None:
    """With our own address in it."""
    text = advice.way_text(way, "192.168.1.1:8055")

    assert said in text
    assert "192.168.1.1:8055" in text


@pytest.mark.parametrize("text", ["192.168.1.5", "web1:443", "[fd00::5]", "fd00::5:443", "1.2.3.4:0"])
def test_a_place_to_look_at_is_a_literal_address_and_a_port(text: str) -> None:
    """A name could lead elsewhere than the operator thinks."""
    assert ("fd00::5", 443) == serving.place_of("[fd00::5]:443")
    with pytest.raises(ValueError, match=r"."):
        serving.place_of(text)


def test_tables_that_the_daemon_refuses_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is as it was before, none if there was none; the problems are told."""
    problems = [["no"], [], [], ["no"], []]
    # A daemon's verdict, without a daemon: the real one is asked in tests/real/test_take_over.py.
    monkeypatch.setattr(conf_files, "_reload", lambda _: problems.pop(0))
    config = tmp_path / "certfan.toml"
    file = conf_files.place(config, "certbot")

    with pytest.raises(ConfigInvalid):
        conf_files.extend(config, file, "# head\n", "[authority.x]\n")
    assert not file.exists()
    conf_files.extend(config, file, "# head\n", "[authority.x]\n")
    with pytest.raises(ConfigInvalid):
        conf_files.extend(config, file, "# head\n", "[authority.y]\n")

    assert "# head\n\n[authority.x]\n" == file.read_text()
    assert 0o644 == file.stat().st_mode & 0o777


def test_there_is_nothing_to_undo_without_its_file(tmp_path: Path) -> None:
    """Whoever undoes twice is told so."""
    with pytest.raises(ActionRefused, match="nothing was imported from certbot"):
        conf_files.undo(tmp_path / "certfan.toml", "certbot", True)
