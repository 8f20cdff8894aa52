"""What `certfan snippet` prints, in the real servers, with a real daemon behind them and an authority in front."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trustme

from tests.lab import machine
from tests.real.daemon_place import Daemon, Place, authority, certificate
from tests.real.snippet_servers import HSTS, LIMITS, OWN, Web

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

PAGE = Path(__file__).parents[2] / "docs/snippets.md"
TOKEN = "/.well-known/acme-challenge/" + "x" * 43


@pytest.fixture(scope="module")
def webs(daemons: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[Web]]:
    """Every server twice: where the daemon answers over IPv4, and where it does over IPv6."""
    folder = tmp_path_factory.mktemp("snippets")
    trustme.CA().issue_cert("secure.test").private_key_and_cert_chain_pem.write_to_path(folder / "pem")
    upstreams = (f"127.0.0.1:{daemons.responder}", f"[::1]:{daemons.responder}")
    webs = [
        Web(kind, upstream, daemons.responder, folder / f"{kind}{number}", number)
        for number, (kind, upstream) in enumerate((kind, one) for kind in OWN for one in upstreams)
    ]
    with contextlib.ExitStack() as ending:
        begun = [web.begin(folder / "pem") for web in webs]
        for process in begun:
            ending.callback(machine.end, process)
        for web, process in zip(webs, begun, strict=True):
            web.wait(process)
        yield webs


@pytest.fixture(scope="module")
def daemon(daemons: Place, webs: Sequence[Web]) -> Iterator[Daemon]:
    """A daemon behind all of them."""
    vhosts = [vhost for web in webs for vhost in web.vhosts() if vhost.works]
    for vhost in vhosts:
        daemons.dns.tell("/add-a", {"host": f"{vhost.name}.", "addresses": [vhost.address]})
    wanted = certificate(*(vhost.name for vhost in vhosts), name="snippets")
    with daemons.running(authority("pebble", daemons.pebble()), wanted) as daemon:
        yield daemon


def test_one_order_proves_every_vhost_of_every_server(daemon: Daemon, webs: Sequence[Web]) -> None:
    """Our line first or last, beside redirects, denials and both: the authority reads the daemon's answer through each."""
    names = {vhost.name for web in webs for vhost in web.vhosts() if vhost.works}

    assert set(daemon.issued("snippets", timeout=90).leaf.names) == names
    assert {web.kind for web in webs} == {"apache", "nginx", "haproxy", "caddy"}
    assert [] == daemon.events("step.failed")


def test_what_a_vhost_had_of_its_own_still_holds(daemon: Daemon, webs: Sequence[Web]) -> None:
    """The challenge's path is opened, and nothing else."""
    for web in webs:
        for vhost in web.vhosts():
            kind = vhost.name.partition("-")[0]
            if kind in {"deny", "error", "redirect", "rewrite", "both", "password"}:
                assert web.ask(vhost.name, "/private").status in {301, 401, 403}, vhost.name


def test_the_redirect_goes_to_https_without_the_port_and_can_be_left_out(
    daemon: Daemon, webs: Sequence[Web]
) -> None:
    """A validator's Host carries :80, and https://name:80 would be a dead end; a feed may stay where it is."""
    for web in webs:
        name = web.name("sslredir", "last")
        answer = web.ask(name, "/page?x=1")
        assert (301, f"https://{name}/page?x=1") == (answer.status, answer.getheader("Location")), name
        if web.kind != "haproxy":  # one more condition there
            assert web.ask(name, "/feed").status not in {301, 302}, name


def test_browsers_are_told_to_stay_with_https(daemon: Daemon, webs: Sequence[Web]) -> None:
    """Once, over TLS."""
    for web in webs:
        told = web.ask("secure.test", "/", secure=True).headers.get_all("Strict-Transport-Security")
        assert [HSTS] == told, web.kind


def test_what_the_printed_texts_call_impossible_is(daemon: Daemon, webs: Sequence[Web]) -> None:
    """The control of all above: behind a rule that comes earlier no challenge gets through."""
    for web in (web for web in webs if web.number % 2 == 0 and web.kind in LIMITS):
        kind, status = LIMITS[web.kind]
        assert status == web.ask(web.name(kind, "last"), TOKEN).status, web.kind


@pytest.mark.parametrize("kind", ["apache", "nginx", "caddy"])
def test_the_servers_take_what_the_page_shows(webs: Sequence[Web], tmp_path: Path, kind: str) -> None:
    """The examples of docs/snippets.md, with the printed text beside them, pass each server's own test of its config."""
    (example, *_) = re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    pem = webs[0].folder.parent / "pem"
    example = re.sub(r"/etc/certfan/live/[\w.]+/(fullchain|privkey)\.pem", str(pem), example)
    (web,) = (web for web in webs if web.kind == kind and web.number % 2 == 0)

    refused = web.refuses(example, tmp_path)
    spoilt = web.refuses(example.replace("le_proxy", "le_nothing"), tmp_path)

    assert refused == ""
    assert "le_nothing" in spoilt
