"""The registered domain that an authority counts a name for."""

import subprocess
import sys

import pytest

from certfan.daemon.issuing.domains import registered_domain


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("www.example.org", "example.org"),
        ("example.org", "example.org"),
        ("new.blog.example.co.uk", "example.co.uk"),
        ("*.example.org", "example.org"),
        ("*.github.io", "github.io"),
        ("www.xn--bcher-kva.example.xn--p1ai", "example.xn--p1ai"),
        ("host.somebody.github.io", "somebody.github.io"),  # the list's private part
        ("host.a.b.kobe.jp", "a.b.kobe.jp"),  # a rule with a wildcard
        ("www.city.kobe.jp", "city.kobe.jp"),  # and its exception
        ("co.uk", "co.uk"),
        ("mail.example.test", "example.test"),  # no rule: the last label is the suffix
    ],
)
def test_a_name_counts_for_its_registered_domain(name: str, domain: str) -> None:
    """As the Public Suffix List has it, which Let's Encrypt names as its source."""
    assert domain == registered_domain(name)


@pytest.mark.parametrize(
    ("address", "domain"),
    [("192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64")],
)
def test_an_address_counts_for_itself_or_its_network(address: str, domain: str) -> None:
    """One IPv6 subscriber has a /64, so 2**64 addresses are one domain."""
    assert domain == registered_domain(address)


def test_the_list_is_read_only_when_a_name_is_asked_for() -> None:
    """A daemon whose authorities have no limit per domain never pays for it."""
    script = "import sys, certfan.daemon.issuing.domains; print('publicsuffixlist' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
