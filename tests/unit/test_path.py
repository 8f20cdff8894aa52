"""The judgement of a challenge's path: which redirects a CA follows, and what the hops of a name say."""

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfan.core.model import Identifier, Problem
from certfan.core.path import (
    CODE,
    Failure,
    Hop,
    Target,
    addresses_of,
    choose,
    verdict,
    why_failed,
    why_not_dial,
    why_not_follow,
)

NAME = Identifier("www.example.org")
PATH = "/.well-known/acme-challenge/<probe>"
URL = f"http://{NAME}{PATH}"
FOUR, SIX = "192.0.2.1", "2001:db8::1"
PORTS = (80, 443)


def good(address: str = FOUR) -> list[Hop]:
    return [Hop(URL, address, status=200, length=74, equals_ours=True)]


def bad(failure: Failure, address: str = FOUR) -> list[Hop]:
    return [Hop(URL, address, failure=failure)]


def redirect(url: str, location: str, failure: Failure | None = None) -> Hop:
    return Hop(url, FOUR, status=301, location=location, failure=failure)


def target(scheme: str = "https", host: str = "a.test", port: int | None = 443, url: str = "") -> Target:
    return Target(url or f"{scheme}://{host}{PATH}", scheme=scheme, host=host, port=port)


def told(*walks: list[Hop], name: Identifier = NAME) -> Problem:
    problem = verdict(name, walks)
    assert problem is not None
    assert problem.code == CODE
    return problem


def test_our_answer_on_every_address_is_good() -> None:
    """Through redirects or not."""
    around = [redirect(URL, f"https://a.test{PATH}"), good(SIX)[0]]

    assert verdict(NAME, [good(), around]) is None


@pytest.mark.parametrize(
    ("hop", "failure"),
    [
        (Hop(URL, FOUR, status=404), Failure.NOT_FOUND),
        (Hop(URL, FOUR, status=410), Failure.NOT_FOUND),
        (Hop(URL, FOUR, status=401), Failure.DENIED),
        (Hop(URL, FOUR, status=403), Failure.DENIED),
        (Hop(URL, FOUR, status=502), Failure.NO_DAEMON),
        (Hop(URL, FOUR, status=503), Failure.NO_DAEMON),
        (Hop(URL, FOUR, status=504), Failure.NO_DAEMON),
        (Hop(URL, FOUR, status=200, length=128), Failure.FOREIGN),
        (Hop(URL, FOUR, status=200, length=129), Failure.TOO_LONG),
        (Hop(URL, FOUR, status=303), Failure.ODD_STATUS),
        (Hop(URL, FOUR, status=500), Failure.ODD_STATUS),
        (Hop(URL, FOUR, status=206), Failure.ODD_STATUS),
    ],
)
def test_an_answer_that_is_not_ours_has_a_failure_of_its_kind(hop: Hop, failure: Failure) -> None:
    """By status and length alone."""
    assert why_failed([hop]) is failure


@pytest.mark.parametrize("failure", Failure)
def test_every_failure_is_told_with_name_hop_cause_and_what_to_do(failure: Failure) -> None:
    """No text lacks a word that it names."""
    url = f"https://b.test{PATH}"
    hop = Hop(url, SIX, status=418, length=7, location="http://c.test/", failure=failure)

    problem = told([redirect(URL, url), hop])

    assert problem.detail.startswith(f"{NAME}: hop 2, {url} at {SIX} ")
    assert len(problem.hint) > 10
    assert not re.search(r"[{}]|None", problem.detail + problem.hint)


def test_no_two_failures_are_told_alike() -> None:
    """An admin can tell them apart without the code."""
    details = {told(bad(failure)).detail for failure in Failure}

    assert len(details) == len(Failure)


def test_a_name_without_an_address_is_told_without_one() -> None:
    """There is no hop's address to name, and nothing for curl to look at."""
    problem = told([Hop(URL, failure=Failure.NXDOMAIN)])

    assert problem.detail == (f"{NAME}: {URL} has no address: {NAME} does not exist in the DNS (NXDOMAIN)")
    assert problem.hint.endswith(f"look with: dig {NAME}")


@pytest.mark.parametrize(
    ("works", "fails", "text"),
    [
        (FOUR, SIX, f"answers over IPv4 but not over IPv6 [{SIX}]: "),
        (SIX, FOUR, f"answers over IPv6 but not over IPv4 {FOUR}: "),
        ("192.0.2.2", FOUR, f"answers at 192.0.2.2 but not at {FOUR}: "),
    ],
)
def test_an_address_that_fails_beside_one_that_answers_is_told_apart(
    works: str, fails: str, text: str
) -> None:
    """The CA may look at either."""
    problem = told(good(works), bad(Failure.REFUSED, fails))

    assert problem.detail == f"{NAME}: {text}{URL} at {fails} refuses the connection"
    assert "self_check" not in problem.hint


def test_a_family_that_works_at_all_is_not_said_to_fail() -> None:
    """One of two IPv6 addresses is that address's fault."""
    problem = told(good(FOUR), good("2001:db8::2"), bad(Failure.REFUSED, SIX))

    assert "answers at 192.0.2.1 but not at 2001:db8::1" in problem.detail


def test_an_unreachable_name_may_be_the_fault_of_our_own_network() -> None:
    """Hairpin NAT is named only when no address answers."""
    problem = told(bad(Failure.NOT_CONNECTED), bad(Failure.NOT_CONNECTED, SIX))

    assert 'self_check = "off"' in problem.hint
    assert f"curl -vkL --resolve {NAME}:80:{FOUR} http://{NAME}/.well-known/acme-challenge/x" in problem.hint


@pytest.mark.parametrize(("walks", "is_good"), [([good()], True), ([], False)])
def test_a_family_that_this_machine_lacks_is_judged_only_alone(walks: list[list[Hop]], is_good: bool) -> None:
    """That we cannot look says nothing about what a CA sees, but something must have been seen."""
    problem = verdict(NAME, [bad(Failure.NO_ROUTE, SIX), *walks])

    assert (problem is None) == is_good


def test_an_identifier_that_is_an_address_is_asked_in_brackets() -> None:
    """There is nothing to --resolve for curl."""
    hop = Hop(f"http://[{SIX}]{PATH}", SIX, status=404)

    problem = told([hop], name=Identifier(SIX))

    assert f"into the vhost of [{SIX}]" in problem.hint
    assert problem.hint.endswith(f"curl -vkL http://[{SIX}]/.well-known/acme-challenge/x")


def test_the_socket_to_open_has_the_port_of_the_hop() -> None:
    """443 for an https hop, and a port of the URL's own."""
    hints = [
        told([Hop(url, SIX, failure=Failure.REFUSED)]).hint for url in ("https://a.test/", "http://a:81/")
    ]

    assert [f"listen on [{SIX}]:{port}" in hint for port, hint in zip((443, 81), hints, strict=True)] == [
        True
    ] * 2


@given(st.text(max_size=300))
def test_a_foreign_location_is_told_in_printable_ascii_and_cut(text: str) -> None:
    """It ends up in a terminal and on a page; braces in it are no template."""
    problem = told([redirect(URL, text, Failure.BAD_SCHEME)])

    assert re.fullmatch(r"[\x20-\x7e]*", problem.detail + problem.hint)
    assert len(problem.detail) < 500


@pytest.mark.parametrize(
    ("one", "failure"),
    [
        (target(), None),
        (target("http", port=80), None),
        (target("http", port=443), None),
        (target(host="192.0.2.7"), None),
        (target(host="2001:db8::7"), None),
        (target(host="xn--strae-oqa.example."), None),
        (target(host="web1"), None),
        (target("ftp", port=21), Failure.BAD_SCHEME),
        (target("unix", port=None), Failure.BAD_SCHEME),
        (target(port=8443), Failure.BAD_PORT),
        (target("http", port=8080), Failure.BAD_PORT),
        (target(host="example.org.well-known"), Failure.NO_SLASH),
        (target(host=""), Failure.BAD_LOCATION),
        (target(host="a b"), Failure.BAD_LOCATION),
        (target(host="127.1"), Failure.BAD_LOCATION),
        (target(host="2130706433"), Failure.BAD_LOCATION),
        (target(host="0x7f.1"), Failure.BAD_LOCATION),
        (target(host="0x7f000001"), Failure.BAD_LOCATION),
        (target(host="010.0.0.1"), Failure.BAD_LOCATION),
        (target(host="fe80::1%eth0"), Failure.BAD_LOCATION),
        (target(host="\u0661.test"), Failure.BAD_LOCATION),
        (target(url="https://a.test/" + "x" * 2000), Failure.BAD_LOCATION),
    ],
)
def test_a_redirect_is_followed_by_the_cas_rules(one: Target, failure: Failure | None) -> None:
    """To http and https, ports 80 and 443, a host that no library takes for an address in disguise."""
    assert why_not_follow(one, [redirect(URL, one.url)], PORTS) is failure


def test_no_credentials_are_carried_along() -> None:
    """A CA sends none."""
    one = Target("https://a.test/", scheme="https", host="a.test", port=443, has_credentials=True)

    assert why_not_follow(one, [redirect(URL, one.url)], PORTS) is Failure.CREDENTIALS


@pytest.mark.parametrize(("redirects", "failure"), [(10, None), (11, Failure.TOO_MANY)])
def test_the_tenth_redirect_is_followed_and_the_eleventh_is_not(
    redirects: int, failure: Failure | None
) -> None:
    """FACTS: at most 10."""
    walk = [redirect(f"{URL}/{n}", f"{URL}/{n + 1}") for n in range(redirects)]

    assert why_not_follow(target(url=f"{URL}/{redirects}"), walk, PORTS) is failure


def test_a_url_that_was_asked_before_is_a_loop() -> None:
    """On the first round, not after ten."""
    walk = [redirect(URL, f"https://a.test{PATH}"), redirect(f"https://a.test{PATH}", URL)]

    assert why_not_follow(target("http", port=80, url=URL), walk, PORTS) is Failure.LOOP


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "169.254.1.1",
        "224.0.0.1",
        "0.0.0.0",
        "::1",
        "fe80::1",
        "ff02::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
    ],
)
def test_no_redirect_leads_to_an_address_that_no_ca_can_reach(address: str) -> None:
    """Nor to one of them that is dressed as IPv6."""
    assert why_not_dial(address, 80, (), is_local=False) is Failure.BAD_ADDRESS


@pytest.mark.parametrize("address", [FOUR, SIX, "192.168.1.5", "fd00::5"])
def test_a_redirect_to_a_network_of_our_own_is_followed(address: str) -> None:
    """Where a name is in split DNS, or its web server beside us."""
    assert why_not_dial(address, 80, [("192.168.1.1", 80)], is_local=False) is None


@pytest.mark.parametrize(
    ("own", "is_local", "failure"),
    [
        ((FOUR, 80), False, Failure.OURSELVES),
        ((FOUR, 8055), False, None),
        (("192.0.2.9", 80), True, None),
        (("0.0.0.0", 80), True, Failure.OURSELVES),
        (("0.0.0.0", 80), False, None),
        (("::", 80), True, None),
    ],
)
def test_no_redirect_leads_to_our_own_listeners(
    own: tuple[str, int], is_local: bool, failure: Failure | None
) -> None:
    """An unspecified address of ours is every address that this machine has, of its family."""
    assert why_not_dial(FOUR, 80, [own], is_local=is_local) is failure


@given(st.ip_addresses(), st.sampled_from(PORTS))
def test_an_address_is_refused_for_what_it_is_or_for_being_ours(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    """One of ours is never dialled, whatever else it is."""
    assert why_not_dial(str(address), port, [(str(address), port)], is_local=True) is not None


@pytest.mark.parametrize(
    ("a", "aaaa", "expected"),
    [
        ((FOUR,), (SIX,), (FOUR, SIX)),
        ((FOUR,), Failure.NO_ADDRESS, (FOUR,)),
        (Failure.SERVFAIL, (SIX,), (SIX,)),
        (Failure.NO_ADDRESS, Failure.NO_ADDRESS, Failure.NO_ADDRESS),
        (Failure.NXDOMAIN, Failure.DNS_TIMEOUT, Failure.NXDOMAIN),
        (Failure.NO_ADDRESS, Failure.SERVFAIL, Failure.SERVFAIL),
        (Failure.DNS_FAILED, Failure.DNS_TIMEOUT, Failure.DNS_TIMEOUT),
        (Failure.DNS_FAILED, Failure.NO_ADDRESS, Failure.DNS_FAILED),
        ((), (), Failure.NO_ADDRESS),
    ],
)
def test_the_look_ups_of_both_families_are_one_answer(
    a: tuple[str, ...] | Failure, aaaa: tuple[str, ...] | Failure, expected: tuple[str, ...] | Failure
) -> None:
    """A family that fails is told only when the other finds nothing."""
    assert addresses_of(a, aaaa) == expected


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (("192.0.2.9", FOUR, SIX), FOUR),
        (("2001:db8::9", "192.0.2.9"), "192.0.2.9"),
        (("2001:db8::9",), "2001:db8::9"),
    ],
)
def test_a_walk_goes_on_at_its_first_address_or_in_its_family(
    addresses: tuple[str, ...], expected: str
) -> None:
    """So the https side of every address is seen, not ten times that of one."""
    assert choose(addresses, FOUR) == expected
